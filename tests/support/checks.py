"""What must hold of every simulated history, whatever it was; see ``sim.py`` for the records."""

from __future__ import annotations

from clusterkit.events import (
    NodeJoinEvent,
    NodeLeaveEvent,
    NodeRejoinEvent,
    PartitionChangeEvent,
    RebalanceEvent,
)
from clusterkit.model import KitState

from .sim import RESERVED, SLOTS, Call, Life, Simulation

_NODE_KINDS = ("node_join", "node_rejoin", "node_leave")


def check(sim: Simulation) -> None:
    """Everything that holds at any time."""
    assert sim.faults == []
    for life in sim.lives:
        _node_events(sim, life)
        _rebalances(life)
        _partitions(life)
        _slots(life)


def check_settled(sim: Simulation) -> None:
    """What holds in addition when all faults are over and time has passed."""
    lives = [life for life in sim.lives if life.running]
    members = sim.members[max(sim.members)]
    inside = [life for life in lives if _state(life) is not KitState.REMOVED]
    assert {life.node_id: life.incarnation for life in inside} == {
        node_id: record.node.incarnation for node_id, record in members.items()
    }
    views = [life.snapshot.view for life in inside if life.snapshot is not None]
    assert all(view == views[0] for view in views)
    for life in lives:
        assert life.dispatcher.idle, f"{life.node_id} still has work"
        if life not in inside:
            _put_out(sim, life)
    for life in inside:
        snapshot = life.snapshot
        assert snapshot is not None
        assert snapshot.kit_state is KitState.JOINED
        assert not life.machine.ledger.entries
        assert snapshot.initial_copies_done
        receipt = snapshot.state.receipts[life.node_id]
        nonce = members[life.node_id].nonce
        assert (receipt.nonce, receipt.epoch) == (nonce, snapshot.epoch)
        mine = sim.data.get((life.node_id, nonce), {})
        for index, row in enumerate(snapshot.rows):
            if life.node_id in row:
                _gained(life, index, nonce)
                assert f"partition-{index}" in mine, f"{life.node_id} lacks partition-{index}"


def _put_out(sim: Simulation, life: Life) -> None:
    """Only somebody else's will keeps a process out: an administrator's, or a rival's."""
    stays = [m[life.node_id] for m in sim.members.values() if life.node_id in m]
    rival = any(stay.node.incarnation != life.incarnation for stay in stays)
    removed = any(
        sim.ends.get(stay.nonce) == "removed_by_admin"
        for stay in stays
        if stay.node.incarnation == life.incarnation
    )
    assert rival or removed, f"{life.node_id} stays out, and nobody wanted that"


def _gained(life: Life, index: int, nonce: str) -> None:
    stay = f"partition_change/partition-{index}/{life.node_id}/{nonce}/"
    assert any(
        call.event.event_id.startswith(stay) and call.ended is not None and call.error is None
        for call in life.calls
    ), f"{life.node_id} was never told that it holds partition-{index}"


def _state(life: Life) -> KitState | None:
    return None if life.snapshot is None else life.snapshot.kit_state


def _node_events(sim: Simulation, life: Life) -> None:
    """None is missed, none comes twice, and all come in the order of the revisions."""
    expected: list[tuple[str, ...]] = []
    live = False
    for step in life.steps:
        before, after = sim.members_at(step.old), sim.members_at(step.new)
        me = after.get(life.node_id)
        live = live or (me is not None and me.nonce == step.expected)
        if not live:
            continue
        arrivals: list[tuple[str, ...]] = []
        for node_id in sorted(before.keys() | after.keys()):
            old, new = before.get(node_id), after.get(node_id)
            if old is not None and (new is None or new.nonce != old.nonce):
                reason = sim.ends[old.nonce]
                if reason != "replaced":
                    expected.append(("node_leave", old.nonce, reason))
            if new is not None and (old is None or new.nonce != old.nonce):
                kind = "node_join" if new.previous is None else "node_rejoin"
                arrivals.append((kind, new.nonce))
        expected += arrivals
    told = [call for call in life.calls if call.kind in _NODE_KINDS]
    actual = [_told(call) for call in told]
    assert actual == expected[: len(actual)], f"{life.node_id} was told something else"
    revisions = [call.event.revision for call in told]
    assert revisions == sorted(revisions)
    if life.running and life.dispatcher.idle:
        assert actual == expected, f"{life.node_id} was not told everything"


def _told(call: Call) -> tuple[str, ...]:
    kind, _, nonce = call.event.event_id.split("/")
    assert kind == call.kind
    match call.event:
        case NodeLeaveEvent(reason=reason):
            return kind, nonce, reason
        case NodeJoinEvent() | NodeRejoinEvent():
            return kind, nonce
    raise AssertionError(call.event)


def _rebalances(life: Life) -> None:
    """News before it are over → start → changes → exactly one complete."""
    news = [call for call in life.calls if call.kind in _NODE_KINDS]
    changes = [call for call in life.calls if call.kind == "partition_change"]
    starts = [call for call in life.calls if call.kind == "rebalance_start"]
    completes = [call for call in life.calls if call.kind == "rebalance_complete"]
    ids = [call.event.event_id for call in starts]
    assert len(set(ids)) == len(ids)
    done = [call.event.event_id for call in completes]
    assert len(set(done)) == len(done)
    if life.running and life.dispatcher.idle:
        assert sorted(done) == sorted(ids), f"{life.node_id}: a rebalance did not complete"
    if any(call.timed_out is not None for call in (*starts, *completes)):
        return  # the hooks of rebalances to come wait behind it, and hold up nobody
    assert done == ids[: len(done)]
    for start in starts:
        for call in news:
            # What was queued behind a hook that is out of time and had not ended holds up nobody.
            stuck = any(
                n.timed_out is not None
                and n.place < call.place
                and (n.ended_revision is None or n.ended_revision >= call.event.revision)
                for n in news
            )
            if call.event.revision <= start.event.revision and not stuck:
                assert _over_by(call, start.place), "a rebalance began before the news were over"
    for change in changes:
        begun = [start for start in starts if start.place < change.place]
        assert begun, "a partition change outside of any rebalance"
        assert _over_by(begun[-1], change.place), "a partition change beside the start hook"
    for number, complete in enumerate(completes):
        start = starts[number]
        until = starts[number + 1].place if number + 1 < len(starts) else None
        assert _over_by(start, complete.place)
        event = complete.event
        assert isinstance(event, RebalanceEvent)
        assert event is start.event
        assert complete.job.args[0] is event
        for change in changes:
            within = start.place < change.place and (until is None or change.place < until)
            if not within or _over_by(change, complete.place):
                continue
            later = [
                plan for plan in life.dispatcher.plans if change.place < plan.place < complete.place
            ]
            adopted = any(change.event.event_id in plan.wanted for plan in later)
            assert adopted, "a rebalance completed before its changes were over"


def _over_by(call: Call, place: int) -> bool:
    return call.over is not None and call.over < place


def _partitions(life: Life) -> None:
    """The changes of one partition never run beside each other."""
    last: dict[str, Call] = {}
    for call in life.calls:
        if not isinstance(call.event, PartitionChangeEvent) or call.kind != "partition_change":
            continue
        before = last.get(call.event.partition_id)
        assert before is None or (before.ended is not None and before.ended < call.place)
        last[call.event.partition_id] = call


def _slots(life: Life) -> None:
    """Never more runs at once than there are slots; changes leave some of them free."""
    moments = [(call.place, 1, call) for call in life.calls]
    moments += [(call.over, -1, call) for call in life.calls if call.over is not None]
    running = changes = 0
    for _, more, call in sorted(moments, key=lambda moment: moment[0]):
        running += more
        changes += more * (call.kind == "partition_change")
        assert running <= SLOTS
        assert changes <= SLOTS - RESERVED
