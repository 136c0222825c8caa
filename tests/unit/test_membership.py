"""From etcd's keys to the state of the cluster: each rule on its own.

Histories that nobody chose are in ``tests/property/test_membership.py``.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

import pytest

from clusterkit.core import codec
from clusterkit.core.keys import Keys
from clusterkit.core.membership import (
    Change,
    ConfigChanged,
    Joined,
    Left,
    RebalanceRequested,
    Rejoined,
    State,
    Stored,
    Updated,
    epoch_of,
    read,
    reread,
    step,
)
from clusterkit.core.records import (
    Alive,
    ClusterConfig,
    Departure,
    EndReason,
    NodeRecord,
    Process,
    RebalanceRequest,
    Receipt,
)
from clusterkit.model import Node
from clusterkit.ports import KeyValue, WatchBatch, WatchEvent

KEYS = Keys.of("/clusterkit", "test")
T0 = datetime(2024, 1, 1, tzinfo=UTC)
T1 = datetime(2024, 1, 1, 1, tzinfo=UTC)
CONFIG = ClusterConfig(8, 2, "crc32", 1, 7)
CLUSTER = 5


def record(node_id: str, stay: int = 1, previous: Departure | None = None) -> NodeRecord:
    node = Node(
        node_id,
        f"{node_id}:1",
        MappingProxyType({}),
        None,
        100,
        MappingProxyType({}),
        f"{node_id}-inc-{stay}",
        "active",
        T0,
    )
    return NodeRecord(node, f"{node_id}-{stay}", "memory", previous, False, Process())


def end(of: NodeRecord, reason: EndReason, at: datetime | None = None) -> Departure:
    return Departure(of.registration, reason, at, 0)


def put(key: bytes, value: bytes, lease: int = 0) -> WatchEvent:
    return WatchEvent("put", KeyValue(key, value, 0, 0, 0, lease))


def gone(key: bytes) -> WatchEvent:
    return WatchEvent("delete", KeyValue(key, b"", 0, 0, 0))


def put_node(r: NodeRecord) -> WatchEvent:
    return put(KEYS.node(r.node.id), codec.encode_node(r), 3)


def history(node_id: str, *ends: Departure, opened: NodeRecord | None = None) -> WatchEvent:
    raw = b""
    for ended in ends:
        raw = codec.history_with(raw, ended=ended)
    raw = codec.history_with(raw, opened=None if opened is None else opened.registration)
    return put(KEYS.history(node_id), raw)


class Etcd:
    """A handful of keys, and the batches that made them."""

    def __init__(self, *first: WatchEvent) -> None:
        self.kvs: dict[bytes, KeyValue] = {}
        self.revision = 0
        self.apply(put(KEYS.config, codec.encode_config(CONFIG, T0)), *first)

    def apply(self, *events: WatchEvent) -> WatchBatch:
        self.revision += 1
        stamped: list[WatchEvent] = []
        for event in events:
            kv = replace(event.kv, mod_revision=self.revision)
            stamped.append(WatchEvent(event.kind, kv))
            if event.kind == "put":
                self.kvs[kv.key] = kv
            else:
                self.kvs.pop(kv.key, None)
        return WatchBatch(self.revision, tuple(stamped), CLUSTER)

    def read(self) -> State:
        return read(KEYS, self.kvs.values(), self.revision, CLUSTER)

    def reread(self, old: State) -> tuple[Change, ...]:
        new, changes = reread(KEYS, old, self.kvs.values(), self.revision, CLUSTER)
        assert new == self.read()
        return changes


def after(etcd: Etcd, *events: WatchEvent) -> tuple[Change, ...]:
    """The changes of one revision."""
    old = etcd.read()
    new, changes = step(KEYS, old, etcd.apply(*events))
    assert new == etcd.read()
    return changes


A = record("a")


def test_a_reading_has_every_record_of_every_kind() -> None:
    alive, receipt = Alive("a-1", ("db",)), Receipt("a-1", 77)
    request = RebalanceRequest("a", "why", T0)
    etcd = Etcd(
        put_node(A),
        put(KEYS.alive("a", "a-inc-1"), codec.encode_alive(alive)),
        history("a", opened=A),
        put(KEYS.applied("a"), codec.encode_receipt(receipt)),
        put(KEYS.membership, codec.encode_membership("a", T0)),
        put(KEYS.rebalance, codec.encode_rebalance(request)),
    )
    state = etcd.read()
    assert (state.revision, state.cluster_id, state.config) == (1, CLUSTER, CONFIG)
    assert state.members == {"a": A}
    assert state.stored == {"a": Stored(1, 3)}
    assert state.alive == {("a", "a-inc-1"): alive}
    assert state.history["a"].open == A.registration
    assert state.history_revisions == {"a": 1}
    assert state.receipts == {"a": receipt}
    assert (state.rebalance, state.rebalance_revision) == (request, 1)
    assert state.membership_revision == 1
    assert state.ignored == {}


def test_a_member_is_alive_by_its_present_incarnation_only() -> None:
    etcd = Etcd(put_node(A), put(KEYS.alive("a", "another"), codec.encode_alive(Alive("x"))))
    assert not etcd.read().is_alive("a")
    etcd.apply(put(KEYS.alive("a", "a-inc-1"), codec.encode_alive(Alive("a-1"))))
    assert etcd.read().is_alive("a")
    assert not etcd.read().is_alive("nobody")


def test_the_epoch_grows_with_membership_first_and_with_fewer_nodes_next() -> None:
    assert epoch_of(3, 5) == (3 << 16) + 65530
    assert epoch_of(3, 5) < epoch_of(3, 4) < epoch_of(3, 0) < epoch_of(4, 65_535)


# -- what a revision changes ---------------------------------------------------------------------


def test_a_revision_that_is_known_changes_nothing() -> None:
    etcd = Etcd()
    batch = etcd.apply(put_node(A))
    state = etcd.read()
    assert step(KEYS, state, batch) == (state, ())
    for revision in (1, 2):
        other = WatchBatch(revision, (put_node(record("b")),), CLUSTER)
        assert step(KEYS, state, other) == (state, ())


def test_progress_moves_the_revision_and_nothing_else() -> None:
    etcd = Etcd(put_node(A))
    state = etcd.read()
    new, changes = step(KEYS, state, WatchBatch(9, (), CLUSTER))
    assert (new, changes) == (replace(state, revision=9), ())


def test_a_step_leaves_the_state_before_as_it_was() -> None:
    etcd = Etcd(put_node(A))
    state = etcd.read()
    step(KEYS, state, etcd.apply(gone(KEYS.node("a")), put_node(record("b"))))
    assert list(state.members) == ["a"]


def test_a_join_and_a_rejoin() -> None:
    etcd = Etcd()
    assert after(etcd, put_node(A), history("a", opened=A)) == (Joined(A),)
    ended = end(A, "graceful_shutdown", T1)
    etcd.apply(history("a", ended), gone(KEYS.node("a")))
    back = record("a", 2, ended)
    assert after(etcd, put_node(back), history("a", ended, opened=back)) == (
        Rejoined(back, replaced=False),
    )


@pytest.mark.parametrize("reason", ["graceful_shutdown", "removed_by_admin"])
def test_a_leave_has_the_reason_that_its_revision_gives(reason: EndReason) -> None:
    etcd = Etcd(put_node(A), history("a", opened=A))
    changes = after(etcd, history("a", end(A, reason, T1)), gone(KEYS.node("a")))
    assert changes == (Left(A, reason, T1),)  # type: ignore[arg-type]  # never "replaced" here


def test_a_delete_that_nothing_explains_is_an_expiry() -> None:
    etcd = Etcd(put_node(A), history("a", opened=A))
    assert after(etcd, gone(KEYS.node("a"))) == (Left(A, "health_check_failure", None),)


def test_the_reason_of_an_earlier_stay_does_not_explain_a_later_end() -> None:
    ended = end(A, "graceful_shutdown", T1)
    back = record("a", 2, ended)
    etcd = Etcd(put_node(back), history("a", ended, opened=back))
    assert after(etcd, gone(KEYS.node("a"))) == (Left(back, "health_check_failure", None),)


def test_a_takeover_is_a_rejoin_and_no_leave() -> None:
    etcd = Etcd(put_node(A), history("a", opened=A))
    ended = end(A, "replaced")
    new = record("a", 2, ended)
    assert after(etcd, put_node(new), history("a", ended, opened=new)) == (
        Rejoined(new, replaced=True),
    )


def test_the_same_stay_put_again_is_nothing() -> None:
    etcd = Etcd(put_node(A))
    assert after(etcd, put_node(A)) == ()


@pytest.mark.parametrize(
    "what, placement",
    [
        ({"weight": 7}, True),
        ({"zone": "z"}, True),
        ({"state": "draining"}, True),
        ({"incarnation": "other"}, True),
        ({"address": "x:2"}, False),
        ({"labels": MappingProxyType({"a": "b"})}, False),
        ({"services": MappingProxyType({"a": "b"})}, False),
    ],
)
def test_an_update_says_whether_the_placement_hangs_on_it(
    what: dict[str, object], placement: bool
) -> None:
    etcd = Etcd(put_node(A))
    new = replace(A, node=replace(A.node, **what))  # type: ignore[arg-type]  # by name, from above
    assert after(etcd, put_node(new)) == (Updated(new, placement),)


def test_receipts_and_signs_of_life_are_no_changes() -> None:
    etcd = Etcd(put_node(A))
    assert (
        after(
            etcd,
            put(KEYS.applied("a"), codec.encode_receipt(Receipt("a-1", 1))),
            put(KEYS.alive("a", "a-inc-1"), codec.encode_alive(Alive("a-1"))),
        )
        == ()
    )
    assert after(etcd, gone(KEYS.applied("a")), gone(KEYS.alive("a", "a-inc-1"))) == ()
    assert (etcd.read().receipts, etcd.read().alive) == ({}, {})


def test_every_put_of_rebalance_is_a_request_even_the_same_again() -> None:
    etcd = Etcd()
    request = RebalanceRequest("a", "why", T0)
    for _ in range(2):
        changes = after(etcd, put(KEYS.rebalance, codec.encode_rebalance(request)))
        assert changes == (RebalanceRequested(request),)


def test_a_config_that_an_administrator_changes_is_a_change() -> None:
    etcd = Etcd(put_node(A))
    config = replace(CONFIG, replication_factor=3)
    assert after(etcd, put(KEYS.config, codec.encode_config(config, T0))) == (
        ConfigChanged(config),
    )
    assert after(etcd, put(KEYS.config, codec.encode_config(config, T1))) == ()


def test_a_config_that_is_mended_is_a_change() -> None:
    etcd = Etcd(put_node(A))
    etcd.apply(put(KEYS.config, b"\xff"))
    assert etcd.read().config is None
    assert after(etcd, put(KEYS.config, codec.encode_config(CONFIG, T0))) == (
        ConfigChanged(CONFIG),
    )


def test_the_config_that_the_first_join_makes_is_part_of_that_join() -> None:
    # Else the first rebalance of a cluster had two causes, and its reason were not "node_join".
    etcd = Etcd()
    empty = State(0, CLUSTER)
    batch = WatchBatch(2, (put(KEYS.config, codec.encode_config(CONFIG, T0)), put_node(A)), CLUSTER)
    assert step(KEYS, empty, batch)[1] == (Joined(A),)
    etcd.apply(put_node(A))
    assert etcd.reread(empty) == (Joined(A),)


def test_within_a_revision_leaves_come_before_arrivals_each_in_the_order_of_ids() -> None:
    b, c, d = record("b"), record("c"), record("d")
    etcd = Etcd(put_node(b), put_node(d))
    config = replace(CONFIG, replication_factor=3)
    request = RebalanceRequest("a", "why", T0)
    changes = after(
        etcd,
        put(KEYS.rebalance, codec.encode_rebalance(request)),
        put_node(c),
        gone(KEYS.node("d")),
        put_node(A),
        gone(KEYS.node("b")),
        put(KEYS.config, codec.encode_config(config, T0)),
    )
    assert changes == (
        ConfigChanged(config),
        Left(b, "health_check_failure", None),
        Left(d, "health_check_failure", None),
        Joined(A),
        Joined(c),
        RebalanceRequested(request),
    )


# -- what was missed -----------------------------------------------------------------------------


def test_a_leave_and_rejoin_that_nobody_saw_is_both() -> None:
    etcd = Etcd(put_node(A), history("a", opened=A))
    old = etcd.read()
    ended = end(A, "removed_by_admin", T1)
    back = record("a", 2, ended)
    etcd.apply(history("a", ended), gone(KEYS.node("a")))
    etcd.apply(put_node(back), history("a", ended, opened=back))
    expected = (Left(A, "removed_by_admin", T1), Rejoined(back, replaced=False))
    assert etcd.reread(old) == expected
    etcd.apply(gone(KEYS.history("a")))  # pruned: the node's own record still tells
    assert etcd.reread(old) == expected


def test_a_takeover_that_nobody_saw_is_no_leave() -> None:
    etcd = Etcd(put_node(A), history("a", opened=A))
    old = etcd.read()
    ended = end(A, "replaced")
    new = record("a", 2, ended)
    etcd.apply(put_node(new), history("a", ended, opened=new))
    assert etcd.reread(old) == (Rejoined(new, replaced=True),)


def test_two_takeovers_that_nobody_saw_are_no_leave() -> None:
    etcd = Etcd(put_node(A), history("a", opened=A))
    old = etcd.read()
    first = end(A, "replaced")
    second = end(record("a", 2, first), "replaced")
    new = record("a", 3, second)
    etcd.apply(put_node(new), history("a", first, second, opened=new))
    assert etcd.reread(old) == (Rejoined(new, replaced=True),)


def test_a_takeover_and_the_successors_leave_that_nobody_saw_is_that_leave() -> None:
    # The node is gone: to say nothing would leave the application with a member for ever.
    etcd = Etcd(put_node(A), history("a", opened=A))
    old = etcd.read()
    first = end(A, "replaced")
    successor = record("a", 2, first)
    left = end(successor, "graceful_shutdown", T1)
    etcd.apply(put_node(successor), history("a", first, opened=successor))
    etcd.apply(gone(KEYS.node("a")), history("a", first, left))
    assert etcd.reread(old) == (Left(A, "graceful_shutdown", T1),)
    back = record("a", 3, left)
    etcd.apply(put_node(back), history("a", first, left, opened=back))
    assert etcd.reread(old) == (
        Left(A, "graceful_shutdown", T1),
        Rejoined(back, replaced=False),
    )


def test_a_takeover_and_the_successors_expiry_that_nobody_saw_is_that_expiry() -> None:
    etcd = Etcd(put_node(A), history("a", opened=A))
    old = etcd.read()
    first = end(A, "replaced")
    etcd.apply(history("a", first, opened=record("a", 2, first)), gone(KEYS.node("a")))
    assert etcd.reread(old) == (Left(A, "health_check_failure", None),)


def test_a_stay_that_etcd_no_longer_remembers_is_told_as_lost() -> None:
    etcd = Etcd(put_node(A), history("a", opened=A))
    old = etcd.read()
    ended, new = end(record("a", 2), "replaced"), record("a", 3, end(record("a", 2), "replaced"))
    etcd.apply(put_node(new), history("a", ended, opened=new))
    assert etcd.reread(old) == (
        Left(A, "health_check_failure", None),
        Rejoined(new, replaced=False),
    )


# -- what cannot be understood -------------------------------------------------------------------


def test_what_is_not_ours_is_ignored_by_name_until_it_goes() -> None:
    etcd = Etcd()
    foreign = KEYS.root + b"owners/partition-1"
    assert after(etcd, put(foreign, b"x")) == ()
    assert list(etcd.read().ignored) == [foreign]
    assert after(etcd, gone(foreign)) == ()
    assert etcd.read().ignored == {}


def test_a_damaged_node_is_no_member_until_it_is_mended() -> None:
    etcd = Etcd(put_node(A))
    assert after(etcd, put(KEYS.node("a"), b"\xff")) == (Left(A, "health_check_failure", None),)
    state = etcd.read()
    assert KEYS.node("a") in state.ignored
    # A join compares this: without it no process could ever take the damaged key over.
    assert state.stored["a"].mod_revision == etcd.revision
    assert after(etcd, put_node(A)) == (Joined(A),)
    assert etcd.read().ignored == {}


def test_a_damaged_history_still_has_the_revision_that_a_join_compares() -> None:
    etcd = Etcd(put_node(A), history("a", opened=A))
    after(etcd, put(KEYS.history("a"), b"\xff"))
    state = etcd.read()
    assert (state.history, state.history_revisions) == ({}, {"a": 2})


def test_a_damaged_request_is_no_request() -> None:
    etcd = Etcd(put(KEYS.rebalance, codec.encode_rebalance(RebalanceRequest("a", "why", T0))))
    state = etcd.read()
    new, changes = step(KEYS, state, etcd.apply(put(KEYS.rebalance, b"\xff")))
    assert changes == ()
    assert (new.rebalance, new.rebalance_revision) == (state.rebalance, 1)
    assert KEYS.rebalance in new.ignored


@pytest.mark.parametrize(
    "harm",
    [
        (put(KEYS.config, b"\xff"), put(KEYS.rebalance, b"\xff")),
        (gone(KEYS.config), gone(KEYS.membership), gone(KEYS.rebalance)),
    ],
    ids=["damaged", "deleted"],
)
def test_what_was_agreed_stays_in_force_whether_its_harm_was_seen_or_read(
    harm: tuple[WatchEvent, ...],
) -> None:
    etcd = Etcd(
        put_node(A),
        put(KEYS.membership, codec.encode_membership("a", T0)),
        put(KEYS.rebalance, codec.encode_rebalance(RebalanceRequest("a", "why", T0))),
    )
    old = etcd.read()
    stepped, changes = step(KEYS, old, etcd.apply(*harm))
    again, derived = reread(KEYS, old, etcd.kvs.values(), etcd.revision, CLUSTER)
    assert changes == derived == ()
    assert stepped == again
    assert (again.config, again.epoch, again.rebalance) == (old.config, old.epoch, old.rebalance)


def test_another_etcd_cluster_is_taken_as_it_is() -> None:
    etcd = Etcd(put_node(A), put(KEYS.membership, b""))
    new, changes = reread(KEYS, etcd.read(), (), 3, CLUSTER + 1)
    assert new == State(3, CLUSTER + 1)
    assert changes == (Left(A, "health_check_failure", None),)
