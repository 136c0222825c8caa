"""Whole clusters under random histories: what is promised of events and data holds in all of them.

``tests/support/sim.py`` is the world, ``tests/support/checks.py`` says what must hold.
"""

from __future__ import annotations

from typing import get_args

from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from tests.support.checks import check, check_settled
from tests.support.sim import TTL, Life, Mode, Simulation

NODES = ("a", "b", "c", "d")

_nodes = st.sampled_from(NODES)
_happenings = st.one_of(
    st.tuples(st.just("start"), _nodes),
    st.tuples(st.just("start"), _nodes),
    st.tuples(st.sampled_from(["leave", "crash", "restart", "take over"]), _nodes),
    st.tuples(st.sampled_from(["cut", "heal", "reread", "remove", "rebalance"]), _nodes),
    st.tuples(st.just("hooks"), _nodes, st.sampled_from(get_args(Mode))),
    st.tuples(st.just("delay"), _nodes, st.sampled_from([0.0, 0.1, 1.0])),
    st.tuples(st.just("outages"), _nodes, st.integers(1, 3)),
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.1, 0.3, 1.0, 2.0, 4.0, TTL + 2.0])),
    st.tuples(st.just("wait"), st.sampled_from([0.3, 1.0, TTL + 2.0])),
)


def happen(sim: Simulation, replication: int, what: tuple[str, *tuple[object, ...]]) -> None:
    match what:
        case "wait", float(seconds):
            sim.run_for(seconds)
        case str(kind), str(node_id), *more:
            _do(sim, replication, kind, node_id, sim.life(node_id), more)


def _do(
    sim: Simulation,
    replication: int,
    kind: str,
    node_id: str,
    life: Life | None,
    more: list[object],
) -> None:
    match kind:
        case "start" if life is None:
            sim.start(node_id, replication=replication)
        case "take over":
            sim.start(node_id, replication=replication)
        case "remove":
            sim.remove(node_id)
        case "rebalance":
            sim.rebalance()
        case _ if life is not None:
            match kind, more:
                case "leave", _:
                    life.leave()
                case "crash", _:
                    life.crash()
                case "restart", _:
                    life.crash()
                    sim.start(node_id, replication=replication)
                case "cut", _:
                    life.cut_off()
                case "heal", _:
                    life.heal()
                case "reread", _:
                    life.reread()
                case "hooks", [("ok" | "fails" | "slow" | "never") as mode]:
                    life.mode = mode
                case "delay", [float(seconds)]:
                    life.delay = seconds
                case "outages", [int(times)]:
                    _outages(sim, life, times)


def _outages(sim: Simulation, life: Life, times: int) -> None:
    """A node loses its lease and joins again, more than once before its watch comes back."""
    life.delay = times * 2 * TTL
    for _ in range(times):
        life.cut_off()
        sim.run_for(TTL + 2.0)
        life.heal()
        sim.run_for(3.0)
    life.delay = 0.0


@settings(max_examples=150)
@given(
    happenings=st.lists(_happenings, min_size=4, max_size=40),
    replication=st.integers(1, 3),
    late_news=st.sampled_from([0.0, 0.2]),
)
@example(
    # What the process that was displaced copies is not what its successor has.
    happenings=[
        ("start", "a"),
        ("take over", "a"),
        ("hooks", "a", "slow"),
        ("start", "d"),
        ("wait", 0.3),
        ("leave", "d"),
    ],
    replication=1,
    late_news=0.0,
)
def test_whatever_happens_events_are_true_and_data_follows(
    happenings: list[tuple[str, *tuple[object, ...]]], replication: int, late_news: float
) -> None:
    sim = Simulation(compare_every=2.0)
    try:
        for what in happenings:
            happen(sim, replication, what)
            for life in sim.lives:
                life.late_news = late_news
        sim.run_for(1.0)
        check(sim)
        sim.settle()
        check(sim)
        check_settled(sim)
        assert not any(life.doubts for life in sim.lives)  # no view was ever wrong
        event(f"processes: {min(len(sim.lives), 8)}")
    finally:
        sim.close()
