"""The validators catch builds that are broken on purpose; a whole one passes the same story."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from clusterkit.core import codec
from clusterkit.core.records import RebalanceRequest
from clusterkit.engine.clock import SystemClock
from tests.chaos.history import load
from tests.chaos.nodes import until
from tests.chaos.records import now
from tests.chaos.stays import KEYS
from tests.chaos.validators import validate
from tests.chaos.world import SECONDS, World


def _joined(world: World, *node_ids: str) -> None:
    for life in [world.join(node_id) for node_id in node_ids]:
        assert world.joined(life)
        assert until(partial(life.has, "write"), SECONDS)  # it owns something, and is at work


def _cut_off_for_good(world: World) -> None:
    """A node works on while nothing gets through to etcd, until its lease has expired."""
    _joined(world, "n0", "n1")
    life = world.lives["n0"]
    nonce, began = world.nonce_of(life), now()
    life.proxy.swallow()
    assert world.ended(nonce, "health_check_failure")
    ended = now()
    assert until(lambda: life.has("guard", ended + 0.2) or life.has("refused", began), SECONDS)


def _broken_stream(world: World) -> None:
    """A node's stream breaks, another node joins, and the stream is resumed."""
    _joined(world, "n0", "n1")
    life, began = world.lives["n0"], now()
    life.proxy.cut()
    assert until(lambda: life.has("broke", began), SECONDS)
    assert world.joined(world.join("n2"))
    life.proxy.heal()

    def resumed() -> bool:
        request = RebalanceRequest("", "chaos", SystemClock().now())
        assert world.put(KEYS.rebalance, codec.encode_rebalance(request))
        return life.count("view", how="watch") > before

    before = life.count("view", how="watch")
    assert until(resumed, SECONDS)


def _kill(world: World) -> None:
    """A node dies."""
    _joined(world, "n0", "n1")
    life = world.lives.pop("n1")
    nonce = world.nonce_of(life)
    life.kill()
    assert world.ended(nonce, "health_check_failure")
    witness = world.lives["n0"]
    assert until(lambda: witness.has("hook", kind="node_leave"), SECONDS)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "broken"])
@pytest.mark.parametrize(
    "broken, story, ttl, rules",
    [
        ("fencing", _cut_off_for_good, 2, {"guards"}),
        ("resume", _broken_stream, 10, {"views"}),
        ("reason", _kill, 2, {"reasons"}),
    ],
    ids=["fencing", "resume", "reason"],
)
def test_the_validators_catch_a_broken_build(
    tmp_path: Path,
    whole: bool,
    broken: str,
    story: Callable[[World], None],
    ttl: int,
    rules: set[str],
) -> None:
    world = World(tmp_path, lease_ttl=ttl, broken=None if whole else broken)
    try:
        story(world)
    finally:
        world.close()
    violations = validate(load(tmp_path))
    if whole:
        assert violations == []
    else:
        assert {v.rule for v in violations} >= rules, violations
