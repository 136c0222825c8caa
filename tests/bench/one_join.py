"""What follows from one join for a node whose only hook has ``mine=True``.

From the new rows to the gains of all nodes, the ledger, and the snapshot; and to the rebalance that
is due when the burst has settled. Before each join all copies have arrived, and nothing is owed.
"""

from __future__ import annotations

import time
from statistics import median

from clusterkit.core.holdings import Holdings
from clusterkit.core.ownership import Assignment
from clusterkit.core.plan import Cause
from clusterkit.engine.delivery import Delivery
from clusterkit.engine.dispatcher import Dispatcher
from clusterkit.engine.effects import Instant, Outbox
from clusterkit.engine.snapshot import Snapshots
from clusterkit.hooks import Hooks
from clusterkit.model import ClusterHealth, KitState

from .common import Row, tidy, untidied
from .state import AT, EPOCH, cluster, joined, left

NODES, PARTITIONS = 1000, 65_536
MILLISECONDS = 1.0


def rows(rounds: int) -> list[Row]:
    """Milliseconds to the new rows, from them to the new snapshot, and from there to the plan."""
    names = [f"node-{i}" for i in range(NODES)]
    me = names[0]
    state = cluster(names, partitions=PARTITIONS)
    assignment = Assignment()
    old = assignment.follow(state)
    holdings = Holdings()
    nonces = {node_id: m.nonce for node_id, m in state.members.items()}
    holdings.assume(old, nonces, state.receipts, EPOCH - 1)
    snapshots = Snapshots(me)
    health = ClusterHealth("healthy", NODES, 0, NODES, (), ())
    at = Instant(0.0, AT)
    times: dict[str, list[float]] = {"assignment": [], "difference": [], "snapshot": [], "plan": []}
    with untidied():
        for number in range(2 * rounds + 2):
            come, node_id = number % 2 == 0, f"newcomer-{number // 2}"
            state = joined(state, node_id) if come else left(state, node_id)
            delivery = _delivery(me)
            delivery.ledger.start_from(old, holdings)
            if number == 2:
                tidy()
            began = time.perf_counter()
            new = assignment.follow(state)
            assigned = time.perf_counter()
            gone = () if come else (node_id,)
            gains = holdings.advance(old, new, epoch=state.epoch, reset=(), gone=gone)
            cause = Cause("node_join" if come else "node_leave", node_id)
            delivery.gained(gains, [cause], new, state, at)
            differed = time.perf_counter()
            snapshots.next(
                state,
                new,
                kit_state=KitState.JOINED,
                session=None,
                initial_copies_done=True,
                was_ready=True,
                health=health,
            )
            shown = time.perf_counter()
            delivery.due(new, state, holdings, at)
            ended = time.perf_counter()
            if come and number:
                times["assignment"].append(assigned - began)
                times["difference"].append(differed - assigned)
                times["snapshot"].append(shown - differed)
                times["plan"].append(ended - shown)
            for member in state.members:
                holdings.prove(member, state.epoch)
            old = new
    before, differed, shown, planned = (median(t) * 1e3 for t in times.values())
    both = differed + shown
    work = f"one join at {PARTITIONS:,} x {NODES:,}, mine=True: "
    return [
        Row(
            work + "diff, events and snapshot",
            both,
            MILLISECONDS,
            "ms",
            both / MILLISECONDS,
            f"at most {MILLISECONDS:g} ms",
            both <= MILLISECONDS,
        ),
        Row(work + "the new rows before that", before, both, "ms", before / both),
        Row(work + "the rebalance after it", planned, both, "ms", planned / both),
    ]


def _delivery(me: str) -> Delivery:
    hooks = Hooks()
    hooks.on_partition_change(mine=True)(lambda event: None)
    dispatcher = Dispatcher(hooks._specs(), incarnation=f"i-{me}")
    return Delivery(dispatcher, Outbox(), node_id=me, incarnation=f"i-{me}", settle_seconds=0.0)
