"""What the events of other nodes' partitions cost a node whose only hook has ``mine=True``.

It is measured where they arise: in ``Delivery``, which takes gains into the ledger, and makes
them a plan and a rebalance. Time here is a number that is passed in, and no hook runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from statistics import median

from clusterkit.core.holdings import Holdings
from clusterkit.core.membership import State
from clusterkit.core.motion import Gain
from clusterkit.core.ownership import rows_of
from clusterkit.core.placement import Row
from clusterkit.core.plan import Cause
from clusterkit.engine.delivery import Delivery
from clusterkit.engine.dispatcher import Dispatcher
from clusterkit.engine.effects import Instant, Outbox
from clusterkit.hooks import Hooks

from .common import Row as Line
from .common import tidy, untidied
from .state import AT, EPOCH, cluster

PARTITIONS = 20_000
NODES = tuple(f"node-{i}" for i in range(5))
ME, OTHERS = NODES[0], NODES[1:]
MICROSECONDS = 0.2


@dataclass(frozen=True)
class _Taken:
    """Seconds: to take the gains in, and to plan and begin the rebalance."""

    added: float
    planned: float
    gains: int


def rows(rounds: int) -> list[Line]:
    """The cost of an event of another node's partition, beside one of this node's own."""
    state = cluster(NODES, partitions=PARTITIONS, replication=1)
    assigned = rows_of(state)
    found: dict[str, list[_Taken]] = {"none": [], "mine": [], "others": []}
    reset = {"none": (), "mine": (ME,), "others": OTHERS}
    with untidied():
        for number in range(rounds + 1):
            for name, nodes in reset.items():
                taken = _begin(state, assigned, nodes)
                if number:
                    found[name].append(taken)

    def each(name: str, of: Callable[[_Taken], float]) -> float:
        """Microseconds for each gain, beyond what a rebalance without any takes; never below 0."""
        some, none = median(map(of, found[name])), median(map(of, found["none"]))
        return max(0.0, some - none) / found[name][0].gains * 1e6

    def planning(taken: _Taken) -> float:
        return taken.planned

    def everything(taken: _Taken) -> float:
        return taken.added + taken.planned

    theirs, own = each("others", planning), each("mine", planning)
    whole, own_whole = each("others", everything), each("mine", everything)
    count = found["others"][0].gains
    return [
        Line(
            f"plan and rebalance, {count} events of others / an own one, mine=True",
            theirs,
            own,
            "us/event",
            theirs / own,
            f"ours at most {MICROSECONDS:g}",
            theirs <= MICROSECONDS,
        ),
        Line(
            "the same with taking the gains into the ledger",
            whole,
            own_whole,
            "us/event",
            whole / own_whole,
        ),
    ]


def _begin(state: State, assigned: tuple[Row, ...], reset: Collection[str]) -> _Taken:
    """These nodes have come back without their data: all that they hold is a gain."""
    holdings = Holdings()
    nonces = {node_id: m.nonce for node_id, m in state.members.items()}
    holdings.assume(assigned, nonces, state.receipts, EPOCH - 1)
    hooks = Hooks()
    hooks.on_partition_change(mine=True)(lambda event: None)
    delivery = Delivery(
        Dispatcher(hooks._specs(), incarnation=f"i-{ME}"),
        Outbox(),
        node_id=ME,
        incarnation=f"i-{ME}",
        settle_seconds=0.0,
    )
    delivery.ledger.start_from(assigned, holdings)
    gains: list[Gain] = holdings.advance(assigned, assigned, epoch=EPOCH, reset=reset, gone=())
    at = Instant(0.0, AT)
    tidy()
    began = time.perf_counter()
    delivery.gained(gains, [Cause("node_rejoin", None)], assigned, state, at)
    added = time.perf_counter()
    delivery.due(assigned, state, holdings, at)
    return _Taken(added - began, time.perf_counter() - added, len(gains))
