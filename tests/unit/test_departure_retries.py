"""Writing down a departure that etcd refuses: further and further apart, each survivor its own."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

from clusterkit.core import codec
from clusterkit.core.membership import State
from clusterkit.core.records import Registration
from clusterkit.engine.departures import Departures

STAY = Registration("the nonce", "the incarnation", datetime(2024, 1, 1, tzinfo=UTC))


def times(survivor: str, until: float = 300.0) -> list[float]:
    """When it writes, if the history never changes."""
    history = codec.decode_history(codec.history_with(b"", ended=None, opened=STAY))
    state = State(1, 1, history={"gone": history}, history_revisions={"gone": 1})
    departures = Departures(survivor)
    departures.found(state, 0.0)
    found: list[float] = []
    while (at := departures.wake_at()) is not None and at < until:
        assert len(departures.due(state, at)) == 1
        found.append(at)
    return found


def test_the_pauses_grow_to_a_limit_and_differ() -> None:
    written = times("a")
    pauses = [after - before for before, after in pairwise(written)]
    assert pauses == sorted(pauses)
    assert 1.0 <= pauses[0] <= 3.0
    assert pauses[-1] == pauses[-2] <= 45.0
    assert len({round(times(name)[1] - times(name)[0], 3) for name in "abcdef"}) == 6
