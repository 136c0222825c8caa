"""Joining and leaving, on a store whose calls can be interleaved with others and go wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from clusterkit.core import codec
from clusterkit.core.records import ClusterConfig, Departure
from clusterkit.engine.departures import CloseHistory, Departures
from clusterkit.engine.errands import history_txn
from clusterkit.engine.identity import abandon, this_process
from clusterkit.engine.join import DisplacedError, Joiner, Profile
from clusterkit.engine.session import Session
from clusterkit.errors import (
    ClusterKitError,
    ConfigMismatchError,
    KitStateError,
    NodeIdConflictError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from clusterkit.ports import Put, Txn
from clusterkit.testing.clock import VirtualClock
from clusterkit.testing.memory import MemoryServer, MemoryStore
from tests.support.bench import (
    KEYS,
    FaultyStore,
    eventually,
    first,
    profile,
    raising,
    remove_by_admin,
    state_of,
)


class World:
    """A server, a clock, and a store that can be made to fail."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.server = MemoryServer(self.clock)
        self.store = FaultyStore(MemoryStore(self.server))
        self.plain = MemoryStore(self.server)

    def joiner(self, who: Profile) -> Joiner:
        return Joiner(self.store, KEYS, self.clock, who, 1.0)

    def join(
        self,
        who: Profile,
        nonce: str,
        after: str | None = None,
        cancelled: threading.Event | None = None,
    ) -> Session:
        return self.joiner(who).join(nonce, after=after, cancelled=cancelled or threading.Event())


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.server.close()


def test_the_first_join_makes_the_cluster(world: World) -> None:
    session = world.join(profile("a"), "n1")
    state = state_of(world.plain)
    member = state.members["a"]
    assert (member.nonce, member.bootstrap, member.previous) == ("n1", True, None)
    assert member.node.joined_at == world.clock.now()
    assert state.alive["a", "inc-a"].nonce == "n1"
    past = state.history["a"]
    assert past.open == member.registration
    assert past.departures == ()
    assert state.config == profile("a").config
    assert state.stored["a"].lease == session.lease_id
    assert state.membership_revision == state.stored["a"].mod_revision == state.revision
    assert session.deadline == world.clock.monotonic() + 10 - 1.0


def test_only_the_first_node_of_a_cluster_without_history_is_its_bootstrap(world: World) -> None:
    session = world.join(profile("a"), "n1")
    world.join(profile("b"), "n2")
    assert not state_of(world.plain).members["b"].bootstrap
    world.joiner(profile("a")).leave(session, ())
    world.clock.advance(60)
    assert not state_of(world.plain).members
    world.join(profile("c"), "n3")
    assert not state_of(world.plain).members["c"].bootstrap


def test_of_two_that_join_an_empty_cluster_one_makes_it(world: World) -> None:
    theirs = profile("b", config=replace(profile("b").config, seed=99))
    world.store.next(
        "txn",
        first(lambda: Joiner(world.plain, KEYS, world.clock, theirs, 1.0).join(
            "n2", after=None, cancelled=threading.Event()
        )),
    )  # fmt: skip
    world.join(profile("a"), "n1")
    state = state_of(world.plain)
    assert (state.members["a"].bootstrap, state.members["b"].bootstrap) == (False, True)
    assert state.config == theirs.config
    # The lease of the attempt that failed is not left behind.
    granted = sum(name == "grant" for name, _ in world.store.calls)
    revoked = [about for name, about in world.store.calls if name == "revoke"]
    assert (granted, len(revoked)) == (2, 1)


@pytest.mark.parametrize(
    "option,ours",
    [("partitions", 16), ("key_hash", "crc32"), ("algorithm_version", 2)],
)
def test_what_never_changes_must_agree(world: World, option: str, ours: int | str) -> None:
    world.join(profile("a"), "n1")
    base: ClusterConfig = profile("b").config
    config = {
        "partitions": base.partitions,
        "replication_factor": 2,
        "key_hash": base.key_hash,
        "algorithm_version": base.algorithm_version,
        "seed": 5,  # each node draws one; the cluster's own holds
    } | {option: ours}
    with pytest.raises(ConfigMismatchError) as e:
        world.join(profile("b", config=ClusterConfig(**config)), "n2")  # type: ignore[arg-type]  # of mixed types on purpose
    assert (e.value.option, e.value.ours) == (option, ours)
    assert e.value.stored == getattr(base, option)
    assert str(e.value.stored) in str(e.value)
    assert str(ours) in str(e.value)
    assert "b" not in state_of(world.plain).members


def test_another_replication_factor_is_warned_of_and_the_clusters_holds(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.join(profile("a"), "n1")
    world.join(profile("b", config=replace(profile("b").config, replication_factor=3)), "n2")
    (record,) = [r for r in caplog.records if "replication factor" in r.message]
    assert record.levelname == "WARNING"
    config = state_of(world.plain).config
    assert config is not None
    assert config.replication_factor == 2


def test_a_damaged_config_is_told_of(world: World) -> None:
    world.plain.txn(Txn((), (Put(KEYS.config, b"\xff"),)), timeout=1)
    with pytest.raises(ClusterKitError, match="cannot be understood"):
        world.join(profile("a"), "n1")


def test_a_damaged_key_of_the_node_itself_is_replaced(world: World) -> None:
    world.plain.txn(Txn((), (Put(KEYS.node("a"), b"\xff"),)), timeout=1)
    session = world.join(profile("a"), "n1")
    record = state_of(world.plain).members["a"]
    assert (record.nonce, record.bootstrap) == (session.nonce, False)


# -- conflicts -------------------------------------------------------------------------------


def test_takeover_replaces_the_holder_and_says_so(world: World) -> None:
    world.join(profile("a"), "n1")
    world.join(profile("a", incarnation="inc-2"), "n2")
    state = state_of(world.plain)
    member = state.members["a"]
    assert (member.nonce, member.node.incarnation) == ("n2", "inc-2")
    assert member.previous is not None
    assert (member.previous.reason, member.previous.registration.nonce) == ("replaced", "n1")
    assert member.previous.partitions == tuple(range(8))
    assert set(state.alive) == {("a", "inc-a"), ("a", "inc-2")}  # the old one ends its own


def test_fail_names_the_holder(world: World) -> None:
    world.join(profile("a", address="10.0.0.1:80"), "n1")
    with pytest.raises(NodeIdConflictError, match=r"10\.0\.0\.1:80") as e:
        world.join(profile("a", incarnation="inc-2", on_conflict="fail"), "n2")
    assert e.value.node_id == "a"
    assert state_of(world.plain).members["a"].nonce == "n1"


def test_wait_waits_until_the_slot_is_free(world: World) -> None:
    session = world.join(profile("a"), "n1")
    joined: list[Session] = []
    waiting = threading.Thread(
        target=lambda: joined.append(
            world.join(profile("a", incarnation="inc-2", on_conflict="wait"), "n2")
        )
    )
    reads = len(world.store.calls)
    waiting.start()
    eventually(lambda: len(world.store.calls) >= reads + 2, "it looks more than once")
    assert not joined
    Joiner(world.plain, KEYS, world.clock, profile("a"), 1.0).leave(session, ())
    waiting.join(10)
    assert [s.nonce for s in joined] == ["n2"]


def test_waiting_can_be_given_up(world: World) -> None:
    world.join(profile("a"), "n1")
    cancelled = threading.Event()
    world.store.always("range", first(cancelled.set))
    with pytest.raises(KitStateError):
        world.join(profile("a", incarnation="inc-2", on_conflict="wait"), "n2", cancelled=cancelled)


@pytest.mark.parametrize("policy", ["takeover", "wait", "fail"])
def test_a_process_that_still_runs_here_is_never_displaced(world: World, policy: str) -> None:
    world.join(profile("a", process=this_process()), "n1")
    with pytest.raises(NodeIdConflictError, match="CLUSTERKIT_NODE_ID") as e:
        world.join(profile("a", incarnation="inc-2", on_conflict=policy), "n2")
    assert str(this_process().pid) in str(e.value)


def test_a_life_of_this_process_that_is_over_holds_up_nobody(world: World) -> None:
    world.join(profile("a", incarnation="inc-over", process=this_process()), "n1")
    abandon("inc-over")
    again = profile("a", incarnation="inc-2", process=this_process(), on_conflict="fail")
    assert world.join(again, "n2").nonce == "n2"


def test_another_process_that_joins_in_between_is_seen(world: World) -> None:
    world.store.next(
        "txn",
        first(lambda: Joiner(
            world.plain, KEYS, world.clock, profile("a", incarnation="inc-2"), 1.0
        ).join("n2", after=None, cancelled=threading.Event())),
    )  # fmt: skip
    with pytest.raises(NodeIdConflictError):
        world.join(profile("a", on_conflict="fail"), "n1")
    assert state_of(world.plain).members["a"].nonce == "n2"


# -- answers that are lost -------------------------------------------------------------------


def test_a_lost_answer_to_a_join_that_was_applied_is_a_join(world: World) -> None:
    world.store.next("txn", raising(StoreTimeoutError("no answer"), applied=True))
    session = world.join(profile("a"), "n1")
    assert state_of(world.plain).stored["a"].lease == session.lease_id
    assert not [about for name, about in world.store.calls if name == "revoke"]


def test_a_lost_answer_to_a_join_that_was_not_applied_is_tried_again(world: World) -> None:
    world.store.next("txn", raising(StoreTimeoutError("no answer")))
    session = world.join(profile("a"), "n1")
    state = state_of(world.plain)
    assert state.stored["a"].lease == session.lease_id
    assert state.members["a"].bootstrap
    assert len([about for name, about in world.store.calls if name == "revoke"]) == 1


def test_a_store_that_cannot_be_asked_is_an_error(world: World) -> None:
    world.store.always("range", raising(StoreUnavailableError("nobody there")))
    with pytest.raises(StoreUnavailableError):
        world.join(profile("a"), "n1")


# -- coming back -----------------------------------------------------------------------------


def test_whom_an_administrator_removed_stays_out(world: World) -> None:
    world.join(profile("a"), "n1")
    remove_by_admin(world.plain, "a")
    with pytest.raises(DisplacedError, match="administrator"):
        world.join(profile("a"), "n2", after="n1")
    # A restart is another matter.
    world.join(profile("a", incarnation="inc-2"), "n3")
    previous = state_of(world.plain).members["a"].previous
    assert previous is not None
    assert previous.reason == "removed_by_admin"


def test_whose_id_another_process_took_stays_out(world: World) -> None:
    world.join(profile("a"), "n1")
    world.join(profile("a", incarnation="inc-2"), "n2")
    with pytest.raises(DisplacedError):
        world.join(profile("a"), "n3", after="n1")


def test_whose_id_another_process_took_after_the_expiry_stays_out(world: World) -> None:
    world.join(profile("a"), "n1")
    world.clock.advance(11)
    world.join(profile("a", incarnation="inc-2"), "n2")
    with pytest.raises(DisplacedError, match="while its lease was lost"):
        world.join(profile("a"), "n3", after="n1")


def test_who_was_there_before_a_stay_puts_nobody_out_who_comes_from_it(world: World) -> None:
    """etcd was restored from a backup, of the time of another process of the same node."""
    world.join(profile("a", incarnation="inc-of-old"), "n1")
    world.join(profile("a"), "n3", after="n2")  # n2 began, and was lost, after the backup
    member = state_of(world.plain).members["a"]
    assert (member.nonce, member.node.incarnation) == ("n3", "inc-a")


def test_the_last_one_of_a_cluster_writes_its_own_expiry_down(world: World) -> None:
    world.join(profile("a"), "n1")
    world.clock.advance(11)
    world.join(profile("a"), "n2", after="n1")
    member = state_of(world.plain).members["a"]
    assert member.previous is not None
    assert member.previous.reason == "health_check_failure"
    assert member.previous.left_at is None  # nobody was there to see it
    assert state_of(world.plain).history["a"].departures == (member.previous,)


def test_survivors_are_given_time_to_write_an_expiry_down(world: World) -> None:
    keeper = world.join(profile("b"), "n0")
    world.join(profile("a"), "n1")
    world.clock.advance(6)
    world.plain.keep_alive(keeper.lease_id, timeout=1)
    world.clock.advance(6)
    state = state_of(world.plain)
    assert set(state.members) == {"b"}
    open_stay = state.history["a"].open
    assert open_stay is not None
    seen_at = world.clock.now()
    end = Departure(open_stay, "health_check_failure", seen_at, 7, (1, 2))
    value = codec.history_with(state.history["a"].raw, ended=end)
    write = CloseHistory("a", state.history_revisions["a"], value)
    # The first reading finds nothing; before the second a survivor has written.
    world.store.next("range", lambda call: call())
    world.store.next("range", first(lambda: world.plain.txn(history_txn(KEYS, write), timeout=1)))
    world.join(profile("a"), "n2", after="n1")
    assert state_of(world.plain).members["a"].previous == end


def test_if_no_survivor_writes_the_joiner_does(world: World) -> None:
    keeper = world.join(profile("b"), "n0")
    world.join(profile("a"), "n1")
    world.clock.advance(6)
    world.plain.keep_alive(keeper.lease_id, timeout=1)
    world.clock.advance(6)

    class Impatient(threading.Event):
        waited = 0.0

        def wait(self, timeout: float | None = None) -> bool:
            self.waited += timeout or 0.0
            return False

    patience = Impatient()
    world.join(profile("a"), "n2", after="n1", cancelled=patience)
    assert patience.waited == 2.0
    previous = state_of(world.plain).members["a"].previous
    assert previous is not None
    assert (previous.reason, previous.left_at) == ("health_check_failure", None)


# -- leaving ---------------------------------------------------------------------------------


def test_a_leave_says_why_and_what_was_held(world: World) -> None:
    session = world.join(profile("a"), "n1")
    world.clock.advance(3)
    assert world.joiner(profile("a")).leave(session, (1, 5))
    state = state_of(world.plain)
    assert not state.members
    assert not state.alive
    (end,) = state.history["a"].departures
    assert state.history["a"].open is None
    assert (end.reason, end.left_at, end.partitions) == (
        "graceful_shutdown",
        world.clock.now(),
        (1, 5),
    )
    assert end.registration.nonce == "n1"


def test_a_second_leave_does_nothing(world: World) -> None:
    session = world.join(profile("a"), "n1")
    assert world.joiner(profile("a")).leave(session, ())
    revision = world.server.revision
    assert not world.joiner(profile("a")).leave(session, ())
    assert world.server.revision == revision


def test_a_leave_does_not_end_the_stay_of_a_successor(world: World) -> None:
    session = world.join(profile("a"), "n1")
    world.join(profile("a", incarnation="inc-2"), "n2")
    assert not world.joiner(profile("a")).leave(session, ())
    state = state_of(world.plain)
    assert state.members["a"].nonce == "n2"
    assert set(state.alive) == {("a", "inc-2")}  # the lease of the one that left is revoked


def test_a_leave_is_tried_again_when_something_changed_in_between(world: World) -> None:
    session = world.join(profile("a"), "n1")
    kv = next(k for k in world.plain.range(KEYS.histories, timeout=1).kvs)
    again = Txn((), (Put(kv.key, kv.value),))
    world.store.next("txn", first(lambda: world.plain.txn(again, timeout=1)))
    assert world.joiner(profile("a")).leave(session, ())
    assert len(state_of(world.plain).history["a"].departures) == 1


# -- writing departures down -----------------------------------------------------------------


def expired(world: World) -> None:
    """a, b and c joined; a's lease ended, and the others saw it."""
    leases = [world.join(profile(n), f"n-{n}").lease_id for n in ("b", "c")]
    world.join(profile("a"), "n-a")
    for _ in range(2):
        world.clock.advance(6)
        for lease in leases:
            world.plain.keep_alive(lease, timeout=1)


def test_survivors_that_only_read_write_the_same_end_once(world: World) -> None:
    expired(world)
    state = state_of(world.plain)
    assert set(state.members) == {"b", "c"}
    survivors = [Departures("b"), Departures("c")]
    now = world.clock.monotonic()
    for survivor in survivors:
        survivor.found(state, now)
        survivor.found(state, now)  # a second reading does not put it off
        assert survivor.due(state, now) == []
    times = sorted(s.wake_at() or 0.0 for s in survivors)
    assert times == [now + 2.0, now + 3.0]  # one after the other, by rank
    writes = [w for s in survivors for w in s.due(state, now + 3.0)]
    assert len(writes) == 2
    results = [world.plain.txn(history_txn(KEYS, w), timeout=1).succeeded for w in writes]
    assert results == [True, False]
    (end,) = state_of(world.plain).history["a"].departures
    assert (end.reason, end.left_at, end.registration.nonce) == (
        "health_check_failure",
        None,
        "n-a",
    )
    for survivor in survivors:
        assert survivor.due(state_of(world.plain), now + 60.0) == []
        assert survivor.wake_at() is None


def test_a_write_is_repeated_until_it_is_seen(world: World) -> None:
    expired(world)
    state = state_of(world.plain)
    survivor = Departures("b")
    now = world.clock.monotonic()
    survivor.found(state, now)
    waits: list[float] = []
    for _ in range(8):
        due = survivor.wake_at()
        assert due is not None
        assert survivor.due(state, due - 0.01) == []
        assert len(survivor.due(state, due)) == 1
        waits.append(due - now)
        now = due
    assert waits[1:5] == sorted(waits[1:5]), "each time it waits longer"
    assert max(waits) < 60.0
