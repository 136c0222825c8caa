"""What a node derives from etcd, over histories that nobody chose.

``Cluster`` writes the transactions that the real writers write (a test below holds it to that) and
keeps account, in its own words, of what happened. The fencing rule that is checked here is section
13.1 of the project's design.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    Updated,
    read,
    reread,
    step,
)
from clusterkit.core.records import (
    Alive,
    ClusterConfig,
    Departure,
    History,
    NodeRecord,
    Process,
    RebalanceRequest,
    Receipt,
)
from clusterkit.engine.join import Joiner, Profile
from clusterkit.model import Node
from clusterkit.ports import Delete, KeyValue, Put, WatchBatch, WatchEvent
from clusterkit.testing.clock import VirtualClock
from clusterkit.testing.memory import MemoryServer, MemoryStore

KEYS = Keys.of("/clusterkit", "test")
CONFIG = ClusterConfig(8, 2, "crc32", 1, 7)
START = datetime(2024, 1, 1, tzinfo=UTC)

Verb: TypeAlias = Literal[
    "join",  # takes a slot that nobody has; what was left open of the past is completed
    "takeover",  # another process takes the slot while it is held
    "again",  # the same process registers anew while its old slot still stands
    "leave",
    "remove",  # by an administrator
    "expire",  # the lease: all its keys go in one revision
    "close",  # a survivor writes down the end of a stay that expired
    "revoke",  # what is left on the leases of stays that are over goes
    "weight",
    "zone",
    "state",
    "labels",
    "config",  # an administrator changes the replication factor
    "rebalance",
    "receipt",
    "checks",
    "elsewhere",  # a write outside of the prefix
]
Step: TypeAlias = tuple[Verb, str]
MEMBERSHIP: Collection[Verb] = ("join", "takeover", "again", "weight", "zone", "state", "config")


class Cluster:
    """An etcd, those who write to it, and the truth about what they did."""

    def __init__(self, forgets: Verb | None = None) -> None:
        self.revision = 1
        self.kvs: Mapping[bytes, KeyValue] = {}
        self.members: Mapping[str, NodeRecord] = {}
        self.config: ClusterConfig | None = None
        self.serial = 0
        self.forgets = forgets
        """The verb whose put of ``membership`` is left out, to see that this is caught."""

    def do(self, verb: Verb, node_id: str) -> tuple[WatchBatch, tuple[Change, ...]]:
        """One revision, and what a watcher should make of it. What cannot be becomes a join."""
        self.serial += 1
        here = self.members.get(node_id)
        match verb:
            case "rebalance":
                request = RebalanceRequest(node_id, "why", self.now)
                put = Put(KEYS.rebalance, codec.encode_rebalance(request))
                return self.apply(put), (RebalanceRequested(request),)
            case "elsewhere":
                return self.apply(), ()
            case "config" if self.config is not None:
                factor = self.config.replication_factor % 3 + 1
                self.config = replace(self.config, replication_factor=factor)
                put = Put(KEYS.config, codec.encode_config(self.config, self.now))
                return self.apply(put, *self.membership(verb)), (ConfigChanged(self.config),)
            case "revoke":
                held = {self.lease_of(m) for m in self.members.values()}
                mine = (KEYS.alive(node_id, ""), KEYS.applied(node_id))
                stale = [
                    k for k, v in self.kvs.items() if k.startswith(mine) and v.lease not in held
                ]
                return self.apply(*map(Delete, stale)), ()
            case "close" if here is None and (past := self.past(node_id)) is not None:
                if past.open is None:
                    return self.apply(), ()
                ended = Departure(past.open, "health_check_failure", self.now, self.revision, (1,))
                value = codec.history_with(past.raw, ended=ended)
                return self.apply(Put(KEYS.history(node_id), value)), ()
        if here is None:
            return self.join("join", node_id)
        match verb:
            case "join" | "takeover" | "again":
                return self.join("again" if verb == "again" else "takeover", node_id)
            case "leave" | "remove":
                reason: Literal["graceful_shutdown", "removed_by_admin"]
                reason = "graceful_shutdown" if verb == "leave" else "removed_by_admin"
                ended = Departure(here.registration, reason, self.now, 0, (1, 2))
                value = codec.history_with(self.raw(node_id), ended=ended)
                self.members = {k: v for k, v in self.members.items() if k != node_id}
                batch = self.apply(Put(KEYS.history(node_id), value), Delete(KEYS.node(node_id)))
                return batch, (Left(here, reason, ended.left_at),)
            case "expire":
                lease = self.lease_of(here)
                self.members = {k: v for k, v in self.members.items() if k != node_id}
                batch = self.apply(*(Delete(k) for k, v in self.kvs.items() if v.lease == lease))
                return batch, (Left(here, "health_check_failure", None),)
            case "weight":
                return self.update(verb, here, replace(here.node, weight=here.node.weight % 3 + 1))
            case "zone":
                zone = "z" if here.node.zone is None else None
                return self.update(verb, here, replace(here.node, zone=zone))
            case "state":
                state = "draining" if here.node.state == "active" else "active"
                return self.update(verb, here, replace(here.node, state=state))
            case "receipt":
                receipt = codec.encode_receipt(Receipt(here.nonce, self.revision))
                return self.apply(Put(KEYS.applied(node_id), receipt, self.lease_of(here))), ()
            case "checks":
                alive = codec.encode_alive(Alive(here.nonce, (f"check-{self.serial}",)))
                key = KEYS.alive(node_id, here.node.incarnation)
                return self.apply(Put(key, alive, self.lease_of(here))), ()
            case _:
                labels = MappingProxyType({"n": str(self.serial)})
                return self.update("labels", here, replace(here.node, labels=labels))

    def join(
        self, verb: Literal["join", "takeover", "again"], node_id: str
    ) -> tuple[WatchBatch, tuple[Change, ...]]:
        here, past = self.members.get(node_id), self.past(node_id)
        ended: Departure | None = None
        if here is not None:
            ended = Departure(here.registration, "replaced", None, 0, (1, 2))
        elif past is not None and past.open is not None:
            ended = Departure(past.open, "health_check_failure", None, 0)
        previous = ended
        if ended is None and past is not None and past.departures:
            previous = past.departures[-1]
        incarnation = f"inc-{self.serial}"
        if verb == "again" and here is not None:
            incarnation = here.node.incarnation
        nothing = MappingProxyType[str, str]({})
        node = Node(node_id, "h:1", nothing, None, 2, nothing, incarnation, "active", self.now)
        bootstrap = not any(k.startswith((KEYS.nodes, KEYS.histories)) for k in self.kvs)
        record = NodeRecord(node, f"nonce-{self.serial}", "memory", previous, bootstrap, Process())
        self.members = {**self.members, node_id: record}
        history = codec.history_with(self.raw(node_id), ended=ended, opened=record.registration)
        lease = self.serial
        puts = [
            Put(KEYS.node(node_id), codec.encode_node(record), lease),
            Put(KEYS.alive(node_id, incarnation), codec.encode_alive(Alive(record.nonce)), lease),
            Put(KEYS.history(node_id), history),
            *self.membership(verb),
        ]
        if self.config is None:
            self.config = CONFIG
            puts.append(Put(KEYS.config, codec.encode_config(CONFIG, self.now)))
        change: Change = Joined(record)
        if previous is not None:
            change = Rejoined(record, replaced=verb != "join")
        return self.apply(*puts), (change,)

    def update(
        self, verb: Verb, here: NodeRecord, node: Node
    ) -> tuple[WatchBatch, tuple[Change, ...]]:
        record = replace(here, node=node)
        self.members = {**self.members, node.id: record}
        put = Put(KEYS.node(node.id), codec.encode_node(record), self.lease_of(here))
        return self.apply(put, *self.membership(verb)), (Updated(record, verb != "labels"),)

    def membership(self, verb: Verb) -> list[Put]:
        if verb == self.forgets or verb not in MEMBERSHIP:
            return []
        return [Put(KEYS.membership, codec.encode_membership("x", self.now))]

    def apply(self, *ops: Put | Delete) -> WatchBatch:
        """A transaction. Without operations it is somebody else's, outside of the prefix."""
        self.revision += 1
        kvs = dict(self.kvs)
        events: list[WatchEvent] = []
        for op in ops:
            if isinstance(op, Put):
                kv = KeyValue(op.key, op.value, 0, self.revision, 1, op.lease)
                kvs[op.key] = kv
                events.append(WatchEvent("put", kv))
            else:
                del kvs[op.key]
                events.append(WatchEvent("delete", KeyValue(op.key, b"", 0, self.revision, 0)))
        self.kvs = kvs
        return WatchBatch(self.revision, tuple(events), 1)

    def read(self) -> State:
        return read(KEYS, self.kvs.values(), self.revision, 1)

    @property
    def now(self) -> datetime:
        return START + timedelta(seconds=self.serial)

    def lease_of(self, member: NodeRecord) -> int:
        return self.kvs[KEYS.node(member.node.id)].lease

    def raw(self, node_id: str) -> bytes:
        kv = self.kvs.get(KEYS.history(node_id))
        return b"" if kv is None else kv.value

    def past(self, node_id: str) -> History | None:
        raw = self.raw(node_id)
        return codec.decode_history(raw) if raw else None


steps = st.lists(
    st.tuples(st.sampled_from(get_args(Verb)), st.sampled_from(["a", "b", "c"])),
    min_size=1,
    max_size=14,
)


# -- stepping ------------------------------------------------------------------------------------


@given(steps)
def test_stepping_gives_what_a_reading_gives_and_tells_what_happened(history: list[Step]) -> None:
    cluster = Cluster()
    state = cluster.read()
    for verb, node_id in history:
        batch, expected = cluster.do(verb, node_id)
        state, changes = step(KEYS, state, batch)
        assert state == cluster.read()
        assert state.members == cluster.members
        assert changes == expected
        assert step(KEYS, state, batch) == (state, ())


# -- reading again -------------------------------------------------------------------------------


def missed(
    old: Mapping[str, NodeRecord], new: Mapping[str, NodeRecord], happened: Iterable[Change]
) -> tuple[list[Change], list[Change]]:
    """The leaves and arrivals that a reading should tell of all that happened in between."""
    losses: dict[str, Left] = {}
    for change in happened:
        if isinstance(change, Left) and change.record.node.id in old:
            # What the reader knew of the node is the record that it had.
            mine = replace(change, record=old[change.record.node.id])
            losses.setdefault(change.record.node.id, mine)
    leaves: list[Change] = [losses[node_id] for node_id in sorted(losses)]
    arrivals: list[Change] = []
    for node_id, record in sorted(new.items()):
        before = old.get(node_id)
        if before is not None and before.nonce == record.nonce:
            if before != record:
                same = before.node.weight, before.node.zone, before.node.state
                now = record.node.weight, record.node.zone, record.node.state
                arrivals.append(Updated(record, same != now))
        elif record.previous is None:
            arrivals.append(Joined(record))
        else:
            held = before is not None and node_id not in losses
            arrivals.append(Rejoined(record, replaced=held))
    return leaves, arrivals


def when_known(change: Change) -> Change:
    """The same, without the time of an expiry: whoever writes one down later knows more or less."""
    if isinstance(change, Left) and change.reason == "health_check_failure":
        return replace(change, at=None)
    return change


@given(steps, st.integers(0, 14))
def test_reading_again_tells_what_was_missed(history: list[Step], start: int) -> None:
    cluster = Cluster()
    for verb, node_id in history[:start]:
        cluster.do(verb, node_id)
    old, config = cluster.read(), cluster.config
    happened: list[Change] = []
    # A history remembers so many stays: of more, nobody can know how the first one ended.
    for verb, node_id in history[start : start + codec.MAX_DEPARTURES]:
        happened += cluster.do(verb, node_id)[1]
        new, changes = reread(KEYS, old, cluster.kvs.values(), cluster.revision, 1)
        assert new == cluster.read()
        leaves, arrivals = missed(old.members, cluster.members, happened)
        expected = [*leaves, *arrivals]
        if config is not None and config != cluster.config and cluster.config is not None:
            expected.insert(0, ConfigChanged(cluster.config))
        expected += [c for c in happened if isinstance(c, RebalanceRequested)][-1:]
        assert list(map(when_known, changes)) == expected
        # Applied to the members before they give the members now.
        present = set(old.members)
        for change in changes:
            match change:
                case Left(record):
                    present.remove(record.node.id)
                case Joined(record):
                    assert record.node.id not in present
                    present.add(record.node.id)
                case Rejoined(record, replaced):
                    assert replaced == (record.node.id in present)
                    present.add(record.node.id)
                case _:
                    pass
        assert present == set(cluster.members)


# -- the epoch -----------------------------------------------------------------------------------


def inputs(state: State) -> tuple[object, ...]:
    """Everything that decides who owns what."""
    nodes = sorted(
        (m.node.id, m.node.incarnation, m.node.weight, m.node.zone or "", m.node.state)
        for m in state.members.values()
    )
    return tuple(nodes), state.config


class ClashError(Exception):
    """One epoch had two assignments, or it went back."""


class Witness:
    """One way through history, as seen by a watcher and by a reader at every revision."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.state = cluster.read()
        self.seen: Mapping[int, tuple[object, ...]] = {self.state.epoch: inputs(self.state)}

    def then(self, verb: Verb, node_id: str) -> Witness:
        new = copy(self)
        new.cluster = copy(self.cluster)
        batch, _ = new.cluster.do(verb, node_id)
        new.state, _ = step(KEYS, self.state, batch)
        # So whoever begins with a reading and watches on has, from there, what a watcher has.
        if (reading := new.cluster.read()) != new.state:
            raise AssertionError(f"a watcher has {new.state}, a reader has {reading}")
        epoch, now = new.state.epoch, inputs(new.state)
        if self.seen.get(epoch, now) != now or epoch < self.state.epoch:
            raise ClashError(
                f"epoch {epoch} after {self.state.epoch}: {self.seen.get(epoch)}, {now}"
            )
        new.seen = {**self.seen, epoch: now}
        return new


def possible(cluster: Cluster, nodes: str, verbs: Collection[Verb]) -> Iterator[Step]:
    """All that can happen next; of the nodes that never came only the first, as all are alike."""
    for node_id in nodes:
        if node_id in cluster.members:
            yield from ((verb, node_id) for verb in verbs if verb not in ("join", "config"))
        else:
            yield "join", node_id
            if not cluster.raw(node_id):
                break
    if "config" in verbs and cluster.config is not None:
        yield "config", "a"


def all_histories(
    length: int, nodes: str, verbs: Collection[Verb], forgets: Verb | None = None
) -> int:
    """Goes through every history of that many steps, and counts them."""

    def go(witness: Witness, left: int) -> int:
        if not left:
            return 1
        found = possible(witness.cluster, nodes, verbs)
        return sum(go(witness.then(verb, node_id), left - 1) for verb, node_id in found)

    return go(Witness(Cluster(forgets)), length)


def random_histories(count: int, length: int, forgets: Verb | None = None) -> None:
    for seed in range(count):
        random = Random(seed)
        witness = Witness(Cluster(forgets))
        for _ in range(length):
            witness = witness.then(random.choice(get_args(Verb)), random.choice("abc"))


CHANGING: Collection[Verb] = (*MEMBERSHIP, "leave", "expire")


def test_an_epoch_has_one_assignment_in_every_history_of_two_nodes() -> None:
    assert all_histories(5, "ab", CHANGING) > 7_000


def test_an_epoch_has_one_assignment_in_every_history_of_three_nodes() -> None:
    verbs: Collection[Verb] = ("takeover", "leave", "remove", "expire", "weight", "zone", "state")
    assert all_histories(5, "abc", verbs) > 4_500


def test_an_epoch_has_one_assignment_in_thousands_of_random_histories() -> None:
    random_histories(2_000, 12)


# Not "again": the same process is the same owner, so that its put is more than the epoch needs.
@pytest.mark.parametrize("forgets", ["join", "takeover", "weight", "zone", "state", "config"])
def test_a_put_of_membership_that_is_left_out_is_caught(forgets: Verb) -> None:
    with pytest.raises(ClashError):
        all_histories(5, "ab", CHANGING, forgets)
    with pytest.raises(ClashError):
        random_histories(200, 12, forgets)


# -- the model itself ----------------------------------------------------------------------------


def test_the_model_writes_what_the_real_writers_write() -> None:
    clock = VirtualClock()
    with MemoryServer(clock) as server, MemoryStore(server) as store:
        watch = iter(store.watch(KEYS.root, 1))
        cluster = Cluster()
        theirs, ours = State(0, 1), cluster.read()

        def joiner(node_id: str, incarnation: str) -> Joiner:
            nothing: Mapping[str, str] = {}
            profile = Profile(
                node_id, "h:1", nothing, None, 2, nothing, incarnation, "memory", "takeover",
                10, 0, 1.0, Process(), CONFIG,
            )  # fmt: skip
            return Joiner(store, KEYS, clock, profile, 5.0)

        def same(*verbs: Verb) -> None:
            nonlocal theirs, ours
            for verb in verbs:
                real, (mine, _) = next(watch), cluster.do(verb, "a")
                assert written(real) == written(mine)
                theirs, told = step(KEYS, theirs, real)
                ours, expected = step(KEYS, ours, mine)
                assert list(map(outline, told)) == list(map(outline, expected))

        go_on = threading.Event()
        first, second = joiner("a", "one"), joiner("a", "two")
        session = first.join("n1", after=None, cancelled=go_on)
        same("join")
        first.leave(session, (1, 2))
        same("leave", "revoke")
        session = first.join("n2", after=None, cancelled=go_on)
        same("join")
        second.join("n3", after=None, cancelled=go_on)
        same("takeover")
        store.revoke(session.lease_id, timeout=5)
        same("revoke")
        second.join("n4", after=None, cancelled=go_on)
        same("again")
        clock.advance(11)
        same("expire")
        first.join("n5", after=None, cancelled=go_on)
        same("join")


def written(batch: WatchBatch) -> list[tuple[str, str, bool, object]]:
    """Which keys of which kind are put, on a lease or not, and which are deleted."""
    found: list[tuple[str, str, bool, object]] = []
    for event in batch.events:
        parsed = KEYS.parse(event.kv.key)
        assert parsed is not None
        past: object = None
        if parsed.kind == "history":
            history = codec.decode_history(event.kv.value)
            past = [d.reason for d in history.departures], history.open is not None
        found.append((event.kind, parsed.kind, event.kv.lease != 0, past))
    return sorted(found, key=str)


def outline(change: Change) -> tuple[object, ...]:
    match change:
        case Left(_, reason, at):
            return "left", reason, at is not None
        case Joined(record):
            return "joined", record.bootstrap
        case Rejoined(record, replaced):
            assert record.previous is not None
            return "rejoined", replaced, record.previous.reason, record.previous.left_at is not None
        case _:
            return (type(change).__name__,)
