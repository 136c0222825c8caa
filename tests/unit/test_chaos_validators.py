"""The validators of chaos runs: a true history has no violation, and each lie in it has one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from clusterkit.core import codec, membership
from clusterkit.core.membership import State
from clusterkit.core.records import (
    ClusterConfig,
    Departure,
    EndReason,
    NodeRecord,
    Process,
    Registration,
)
from clusterkit.model import Node
from clusterkit.ports import KeyValue, WatchBatch, WatchEvent
from tests.chaos.history import History
from tests.chaos.records import Record
from tests.chaos.stays import KEYS
from tests.chaos.validators import validate

_WHEN = datetime(2026, 1, 1, tzinfo=UTC)
_CONFIG = ClusterConfig(4, 1, "crc32", 1, 7)


class Etcd:
    """Makes revisions as joins and ends of stays make them; revision R comes at time R."""

    def __init__(self) -> None:
        self.truth: list[tuple[float, WatchBatch]] = []
        self._histories: dict[str, bytes] = {}
        self._stays: dict[str, Registration] = {}
        self._revision = 1

    def join(self, node_id: str, nonce: str, previous: Departure | None = None) -> None:
        """A join, or a takeover where another process holds the node id."""
        here = Registration(nonce, f"incarnation-{nonce}", _WHEN)
        node = Node(
            id=node_id,
            address=f"{node_id}.test:1",
            services={},
            zone=None,
            weight=100,
            labels={},
            incarnation=here.incarnation,
            state="active",
            joined_at=_WHEN,
        )
        record = NodeRecord(node, nonce, "memory", previous, not self.truth, Process())
        there = self._stays.get(node_id)
        replaced = None if there is None else Departure(there, "replaced", _WHEN, 0)
        raw = self._histories.get(node_id, b"")
        self._histories[node_id] = codec.history_with(raw, ended=replaced, opened=here)
        self._stays[node_id] = here
        self._put(
            (KEYS.config, codec.encode_config(_CONFIG, _WHEN)),
            (KEYS.membership, codec.encode_membership(node_id, _WHEN)),
            (KEYS.node(node_id), codec.encode_node(record)),
            (KEYS.history(node_id), self._histories[node_id]),
        )

    def leave(self, node_id: str) -> Departure:
        departure = self._departure(node_id, "graceful_shutdown")
        raw = codec.history_with(self._histories[node_id], ended=departure)
        self._histories[node_id] = raw
        self._put((KEYS.history(node_id), raw), gone=KEYS.node(node_id))
        return departure

    def expire(self, node_id: str) -> None:
        self._departure(node_id, "health_check_failure")
        self._put(gone=KEYS.node(node_id))

    def _departure(self, node_id: str, reason: EndReason) -> Departure:
        return Departure(self._stays.pop(node_id), reason, _WHEN, 0)

    def _put(self, *puts: tuple[bytes, bytes], gone: bytes | None = None) -> None:
        self._revision += 1
        r = self._revision
        lease = {KEYS.node("a"): 8, KEYS.node("b"): r + 3}  # b's last stay, of revision 6, has 9
        events = [WatchEvent("put", KeyValue(k, v, r, r, 1, lease.get(k, 0))) for k, v in puts]
        if gone is not None:
            events.append(WatchEvent("delete", KeyValue(gone, b"", 0, r, 0)))
        self.truth.append((float(r), WatchBatch(r, tuple(events), 1)))


@dataclass
class Raw:
    """A history before it is worked out, so that a test can make it lie."""

    truth: list[tuple[float, WatchBatch]]
    lives: dict[str, list[Record]]
    storage: list[Record]
    done: list[Record]

    def violations(self) -> set[str]:
        history = History(self.truth, self.lives, self.storage, self.done, frozenset({"a.1"}))
        return {v.rule for v in validate(history)}

    def hook(self, kind: str) -> Record:
        return next(r for r in self.lives["a.1"] if r.get("kind") == kind)

    def view(self, revision: int) -> Record:
        return next(r for r in self.lives["a.1"] if r["k"] == "view" and r["rev"] == revision)

    def drop(self, record: Record) -> None:
        self.lives["a.1"].remove(record)


def _views(truth: Sequence[tuple[float, WatchBatch]], session: str) -> list[Record]:
    """What a node that starts before everything publishes: one view a revision, just after it."""
    history = History(truth, {})
    found: list[Record] = []
    for revision in [1, *history.revisions]:
        m = history.at(revision)
        found.append(
            {
                "k": "view",
                "t": revision + 0.1,
                "rev": revision,
                "epoch": m.epoch,
                "rows": m.rows_name,
                "members": dict(m.members),
                "how": "watch" if found else "start",
                "kit": "joined",
                "session": session,
            }
        )
    return found


def _hook(t: float, kind: str, node_id: str, nonce: str, **more: object) -> Record:
    event_id = f"{kind}/{node_id}/{nonce}"
    return {"k": "hook", "t": t, "kind": kind, "id": event_id, "rev": int(t), **more}


def _true() -> Raw:
    """a joins (2), b joins (3) and leaves (4), b is back (5), is taken over (6) and expires (7)."""
    etcd = Etcd()
    etcd.join("a", "a-1")
    etcd.join("b", "b-1")
    etcd.join("b", "b-2", etcd.leave("b"))
    etcd.join("b", "b-3", Departure(Registration("b-2", "i", _WHEN), "replaced", _WHEN, 0))
    etcd.expire("b")
    moments = History(etcd.truth, {})
    last = moments.at(7)
    records: list[Record] = [
        {"k": "starting", "t": 0.9},
        {"k": "expect", "t": 0.95, "nonce": "a-1"},
        *_views(etcd.truth, "a-1"),
        _hook(2.2, "node_join", "a", "a-1"),
        _hook(3.2, "node_join", "b", "b-1"),
        _hook(4.2, "node_leave", "b", "b-1", reason="graceful_shutdown"),
        _hook(5.2, "node_rejoin", "b", "b-2"),
        _hook(6.2, "node_rejoin", "b", "b-3"),
        _hook(7.2, "node_leave", "b", "b-3", reason="health_check_failure"),
        {"k": "hook", "t": 7.3, "kind": "rebalance_start", "id": "r/1", "rev": 7},
        *(
            {
                "k": "hook",
                "t": 7.4,
                "kind": "partition_change",
                "id": f"partition_change/partition-{p}/a/a-1/{last.epoch}",
                "rev": 7,
            }
            for p in range(4)
        ),
        *(
            {
                "k": "hook",
                "t": 7.45,
                "kind": "partition_role",
                "id": f"partition_role/partition-{p}/a/a-1/{last.epoch}",
                "partition_id": f"partition-{p}",
                "old_role": None,
                "new_role": "primary",
                "rev": 7,
            }
            for p in range(4)
        ),
        {"k": "hook", "t": 7.5, "kind": "rebalance_complete", "id": "r/1", "rev": 7},
        {"k": "guard", "t": 7.6, "at": 7.6, "p": 0, "e": last.epoch},
    ]
    records.sort(key=lambda r: r["t"])
    lives: dict[str, list[Record]] = {"a.1": records}
    for number, nonce in ((1, "b-1"), (2, "b-2"), (3, "b-3")):
        lives[f"b.{number}"] = [
            {"k": "starting", "t": 0.0},
            {"k": "expect", "t": 0.0, "nonce": nonce},
        ]
    epoch = moments.at(5).epoch
    mine = next(p for p, row in enumerate(moments.at(5).rows) if row[0] == "b")
    lives["b.2"].append({"k": "guard", "t": 5.5, "at": 5.5, "p": mine, "e": epoch})
    return Raw(
        etcd.truth,
        lives,
        [
            {"life": "b.2", "p": mine, "e": epoch, "ok": True},
            {"life": "a.1", "p": mine, "e": last.epoch, "ok": True},
            {"life": "b.2", "p": mine, "e": epoch, "ok": False},
        ],
        [
            *({"k": "done", "what": "go", "life": life, "t": 0.0} for life in lives),
            {"k": "done", "what": "stop", "life": "b.1", "t": 3.5},
            {"k": "done", "what": "kill", "life": "b.2", "t": 6.0},
            {"k": "done", "what": "kill", "life": "b.3", "t": 6.5},
        ],
    )


def test_a_true_history_has_no_violation() -> None:
    assert _true().violations() == set()


def _a_revision_is_left_out(h: Raw) -> None:
    h.drop(h.view(4))


def _hold(h: Raw, *steps: tuple[int, str]) -> None:
    """As if revisions 3 to 5 had waited for the answer to a join."""
    for revision in (3, 4):
        h.drop(h.view(revision))
    h.view(5).update(how="held", steps=steps)


def _a_held_revision_is_left_out(h: Raw) -> None:
    _hold(h, (3, "watch"), (5, "watch"))


def _a_held_event_is_left_out(h: Raw) -> None:
    _hold(h, (3, "watch"), (4, "watch"), (5, "watch"))
    h.drop(h.hook("node_leave"))


def _half_a_revision(h: Raw) -> None:
    h.view(4)["members"]["b"] = "b-1"


def _another_assignment(h: Raw) -> None:
    h.view(4)["rows"] = "else"


def _back_in_time(h: Raw) -> None:
    h.lives["a.1"].append({**h.view(4), "t": 9.0})


def _never_at_the_end(h: Raw) -> None:
    h.drop(h.view(7))


def _an_epoch_of_two(h: Raw) -> None:
    h.lives["b.3"].append({**h.lives["b.2"][-1], "t": 6.5, "at": 6.5})


def _a_guessed_reason(h: Raw) -> None:
    h.lives["a.1"][h.lives["a.1"].index(h.hook("node_leave"))]["reason"] = "health_check_failure"


def _a_leave_that_nobody_asked_for(h: Raw) -> None:
    h.done = [{**r, "what": "kill"} if r["what"] == "stop" else r for r in h.done]


def _a_missing_event(h: Raw) -> None:
    h.drop(h.hook("node_rejoin"))


def _a_missing_last_event(h: Raw) -> None:
    h.drop([r for r in h.lives["a.1"] if r.get("kind") == "node_leave"][-1])


def _an_event_twice(h: Raw) -> None:
    h.lives["a.1"].append(copy.copy(h.hook("node_leave")))


def _a_wrong_order(h: Raw) -> None:
    records = h.lives["a.1"]
    i, j = records.index(h.hook("node_leave")), records.index(h.hook("node_rejoin"))
    records[i], records[j] = records[j], records[i]


def _a_takeover_told_as_a_leave(h: Raw) -> None:
    leave = _hook(6.15, "node_leave", "b", "b-2", reason="health_check_failure")
    h.lives["a.1"].insert(h.lives["a.1"].index(h.view(6)) + 1, leave)


def _no_complete(h: Raw) -> None:
    h.drop(h.hook("rebalance_complete"))


def _a_move_that_never_was(h: Raw) -> None:
    h.hook("partition_change")["id"] = "partition_change/partition-0/a/a-1/17"


def _never_told_that_it_holds(h: Raw) -> None:
    h.drop(h.hook("partition_change"))


def _a_role_never_told(h: Raw) -> None:
    h.drop(h.hook("partition_role"))


def _a_role_from_another(h: Raw) -> None:
    h.hook("partition_role")["old_role"] = "replica"


def _a_smaller_epoch_accepted(h: Raw) -> None:
    h.storage[2]["ok"] = True


def _a_write_of_another(h: Raw) -> None:
    h.storage[1]["life"] = "b.3"


def _guard_after_the_end(h: Raw) -> None:
    moment = History(h.truth, {}).at(6)
    mine = next(p for p, row in enumerate(moment.rows) if row[0] == "b")
    guard = {"k": "guard", "t": 7.5, "at": 7.5, "p": mine, "e": moment.epoch}
    h.lives["b.3"].append(guard)


def _guard_of_no_owner(h: Raw) -> None:
    moment = History(h.truth, {}).at(6)
    theirs = next(p for p, row in enumerate(moment.rows) if row[0] == "a")
    guard = {"k": "guard", "t": 6.5, "at": 6.5, "p": theirs, "e": moment.epoch}
    h.lives["b.3"].append(guard)


def _guard_at_an_old_epoch(h: Raw) -> None:
    guard = h.lives["a.1"][-1]
    guard["e"] = History(h.truth, {}).at(2).epoch


def _an_end_by_itself(h: Raw) -> None:
    h.done = [r for r in h.done if r["life"] != "b.3" or r["what"] == "go"]


def _a_zombie_comes_back(h: Raw) -> None:
    h.lives["b.1"].append({"k": "expect", "t": 1.0, "nonce": "b-3"})
    h.lives["b.3"].pop()
    h.lives["b.1"].append({"k": "expect", "t": 1.0, "nonce": "b-1"})
    etcd = Etcd()
    etcd.join("a", "a-1")
    for nonce in ("b-1", "b-2", "b-3"):
        etcd.join("b", nonce)
    h.truth = etcd.truth


@pytest.mark.parametrize(
    "lie, rule",
    [
        (_a_revision_is_left_out, "views"),
        (_a_held_revision_is_left_out, "views"),
        (_a_held_event_is_left_out, "events"),
        (_half_a_revision, "views"),
        (_another_assignment, "views"),
        (_back_in_time, "views"),
        (_never_at_the_end, "views"),
        (_an_epoch_of_two, "epochs"),
        (_a_guessed_reason, "reasons"),
        (_a_leave_that_nobody_asked_for, "reasons"),
        (_a_missing_event, "events"),
        (_a_missing_last_event, "events"),
        (_an_event_twice, "events"),
        (_a_wrong_order, "events"),
        (_a_takeover_told_as_a_leave, "events"),
        (_no_complete, "rebalances"),
        (_a_move_that_never_was, "rebalances"),
        (_never_told_that_it_holds, "rebalances"),
        (_a_role_never_told, "rebalances"),
        (_a_role_from_another, "rebalances"),
        (_a_smaller_epoch_accepted, "storage"),
        (_a_write_of_another, "storage"),
        (_guard_after_the_end, "guards"),
        (_guard_of_no_owner, "guards"),
        (_guard_at_an_old_epoch, "guards"),
        (_an_end_by_itself, "lives"),
        (_a_zombie_comes_back, "lives"),
    ],
)
def test_each_lie_is_found(lie: Callable[[Raw], None], rule: str) -> None:
    history = _true()
    lie(history)
    assert rule in history.violations()


def test_of_revisions_that_waited_together_each_is_applied() -> None:
    history = _true()
    _hold(history, (3, "watch"), (4, "watch"), (5, "watch"))
    assert history.violations() == set()


def test_a_reading_among_them_passes_over_what_is_older() -> None:
    """Nobody was told of b's first stay: the reading came with its end in it."""
    history = _true()
    _hold(history, (5, "reread"), (3, "watch"), (4, "watch"))
    history.drop([r for r in history.lives["a.1"] if r.get("kind") == "node_join"][-1])
    history.drop(history.hook("node_leave"))
    assert history.violations() == set()


@pytest.mark.parametrize("asked, excused", [(6.5, True), (5.6, False), (7.1, False)])
def test_a_lease_that_etcd_ends_before_its_time_excuses_the_node(
    asked: float, excused: bool
) -> None:
    """Only a renewal from before the end, and only for as long as it had promised."""
    history = _true()
    _guard_after_the_end(history)
    history.lives["b.3"].append({"k": "renewed", "t": 7.2, "at": asked, "lease": 9, "ttl": 1.2})
    assert ("guards" in history.violations()) is not excused


def test_the_stays_are_those_of_the_state_machine() -> None:
    truth = _true().truth
    state = State(0, 0)
    for _, batch in truth:
        state, _ = membership.step(KEYS, state, batch)
    stays = History(truth, {}).stays
    standing = {s.node_id: s.nonce for s in stays.values() if s.ended is None}
    assert standing == {node_id: m.nonce for node_id, m in state.members.items()}
    assert [(s.nonce, s.reason) for s in stays.values()] == [
        ("a-1", None),
        ("b-1", "graceful_shutdown"),
        ("b-2", "replaced"),
        ("b-3", "health_check_failure"),
    ]
