"""From etcd's keys to the state of the cluster, one whole revision after another.

``read`` makes a state from all keys at one revision; ``step`` applies the changes of one revision;
``reread`` replaces a state by a newer reading and derives what was missed in between from the
difference. All return the new state and the changes, in the order in which they happened.

A node's stay (a *registration*, told by its nonce) is what joins and leaves:

* its key appears: a join, or a rejoin if its record says that it was here before;
* its key goes, and in the same revision its history says why: that is the reason;
* its key goes and nothing says why: the lease expired;
* its key gets another nonce while it stands: another process took the slot over. That is a rejoin
  and no leave, since the slot was never lost.

Source: section 2 and section 13.5 of the project's design, as ARCHITECTURE.md tells it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeAlias

from ..events import LeaveReason
from ..ports import KeyValue, WatchBatch
from . import codec
from .keys import Keys, Parsed
from .records import (
    Alive,
    ClusterConfig,
    Cordon,
    History,
    NodeRecord,
    RebalanceRequest,
    Receipt,
)


@dataclass(frozen=True, slots=True)
class Stored:
    """A record with what etcd says of its key."""

    mod_revision: int
    lease: int


@dataclass(frozen=True, slots=True)
class State:
    """The cluster as of one revision.

    Attributes:
        revision: The revision.
        cluster_id: etcd's own id of its cluster.
        config: What all nodes agree on; None before the first node.
        membership_revision: When an input of the assignment was last put.
        members: The nodes that hold their slot.
        stored: Revision and lease of each node's key, also of one that could not be understood.
        alive: The signs of life, by node id and incarnation.
        history: Each node's past.
        history_revisions: The mod_revision of each history.
        receipts: What each node says that it has applied.
        cordons: The nodes, members or not, that are to hold nothing.
        rebalance: The newest manual rebalance.
        ignored: The keys that could not be understood, with the reason.
    """

    revision: int
    cluster_id: int
    config: ClusterConfig | None = None
    membership_revision: int = 0
    members: Mapping[str, NodeRecord] = field(default_factory=dict)
    stored: Mapping[str, Stored] = field(default_factory=dict)
    alive: Mapping[tuple[str, str], Alive] = field(default_factory=dict)
    history: Mapping[str, History] = field(default_factory=dict)
    history_revisions: Mapping[str, int] = field(default_factory=dict)
    receipts: Mapping[str, Receipt] = field(default_factory=dict)
    cordons: Mapping[str, Cordon] = field(default_factory=dict)
    rebalance: RebalanceRequest | None = None
    rebalance_revision: int = 0
    ignored: Mapping[bytes, str] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """The fencing token: equal inputs of the assignment have it, and no others.

        Every change but a deletion puts ``membership``; a deletion makes the node count smaller.
        """
        return epoch_of(self.membership_revision, len(self.members))

    def is_alive(self, node_id: str) -> bool:
        """Whether the member's present incarnation shows a sign of life."""
        member = self.members.get(node_id)
        return member is not None and (node_id, member.node.incarnation) in self.alive


MAX_NODES = 65_535


def epoch_of(membership_revision: int, nodes: int) -> int:
    """The epoch: the revision of ``membership`` first, then the more the fewer nodes there are."""
    return (membership_revision << 16) + MAX_NODES - nodes


@dataclass(frozen=True, slots=True)
class Joined:
    """A node that no history knows has joined."""

    record: NodeRecord


@dataclass(frozen=True, slots=True)
class Rejoined:
    """A node is back. ``replaced``: the slot was taken over while it was still held."""

    record: NodeRecord
    replaced: bool


@dataclass(frozen=True, slots=True)
class Left:
    """A stay has ended. ``at`` is the recorded time, None if nobody wrote one."""

    record: NodeRecord
    reason: LeaveReason
    at: datetime | None


@dataclass(frozen=True, slots=True)
class Updated:
    """A member changed what it says of itself. ``placement``: an input of the assignment did."""

    record: NodeRecord
    placement: bool


@dataclass(frozen=True, slots=True)
class ConfigChanged:
    """What all nodes agree on was changed, or mended, by an administrator."""

    config: ClusterConfig


@dataclass(frozen=True, slots=True)
class CordonChanged:
    """An administrator took a node out of the assignment, or back in."""

    node_id: str
    cordoned: bool


@dataclass(frozen=True, slots=True)
class RebalanceRequested:
    """Somebody asked for a rebalance by hand."""

    request: RebalanceRequest


Change: TypeAlias = (
    Joined | Rejoined | Left | Updated | ConfigChanged | CordonChanged | RebalanceRequested
)


def read(keys: Keys, kvs: Iterable[KeyValue], revision: int, cluster_id: int) -> State:
    """The state that all keys under the root make at one revision."""
    draft = _Draft(State(revision, cluster_id))
    for kv in kvs:
        draft.put(keys.parse(kv.key), kv)
    return draft.done(revision)


def step(keys: Keys, state: State, batch: WatchBatch) -> tuple[State, tuple[Change, ...]]:
    """Applies one whole revision. A revision at or below the state's own changes nothing."""
    if batch.revision <= state.revision:
        return state, ()
    draft = _Draft(state)
    for event in batch.events:
        parsed = keys.parse(event.kv.key)
        if event.kind == "put":
            draft.put(parsed, event.kv)
        else:
            draft.delete(parsed, event.kv.key)
    new = draft.done(batch.revision)
    return new, _changes(state, new, draft.touched)


def reread(
    keys: Keys, state: State, kvs: Iterable[KeyValue], revision: int, cluster_id: int
) -> tuple[State, tuple[Change, ...]]:
    """Replaces the state by a newer reading, and derives what was missed from the difference."""
    new = read(keys, kvs, revision, cluster_id)
    if cluster_id == state.cluster_id:
        new = agreed(state, new)
    touched = dict.fromkeys([*state.members, *new.members])
    return new, _changes(state, new, touched)


def agreed(old: State, new: State) -> State:
    """What was agreed stays in force though its key was damaged or deleted, as in ``step``."""
    return replace(
        new,
        config=new.config or old.config,
        membership_revision=new.membership_revision or old.membership_revision,
        rebalance=new.rebalance or old.rebalance,
        rebalance_revision=new.rebalance_revision or old.rebalance_revision,
    )


def _changes(old: State, new: State, touched: Iterable[str]) -> tuple[Change, ...]:
    changes: list[Change] = []
    # The first config is part of the first join, which tells of itself.
    made = old.config is None and not old.members
    if new.config is not None and new.config != old.config and not made:
        changes.append(ConfigChanged(new.config))
    if new.cordons != old.cordons:
        changes += [
            CordonChanged(node_id, node_id in new.cordons)
            for node_id in sorted(new.cordons.keys() ^ old.cordons.keys())
        ]
    arrivals: list[Change] = []
    for node_id in sorted(touched):
        before, after = old.members.get(node_id), new.members.get(node_id)
        if before is not None and after is not None and after.nonce == before.nonce:
            if after != before:
                arrivals.append(Updated(after, _inputs(before) != _inputs(after)))
            continue
        lost: Left | None = None
        if before is not None:
            lost = _loss(before, after, new.history.get(node_id))
            if lost is not None:
                changes.append(lost)
        if after is None:
            continue
        if after.previous is None:
            arrivals.append(Joined(after))
        else:
            arrivals.append(Rejoined(after, replaced=before is not None and lost is None))
    changes += arrivals
    if new.rebalance is not None and new.rebalance_revision != old.rebalance_revision:
        changes.append(RebalanceRequested(new.rebalance))
    return tuple(changes)


def _loss(before: NodeRecord, after: NodeRecord | None, past: History | None) -> Left | None:
    """How the slot of ``before`` was lost, as far as etcd says; None if it was only taken over.

    A successor holds the same slot, so its end is the end that counts: between two readings a node
    may have been taken over, more than once, before it left.
    """
    ends = () if past is None else past.departures
    previous = None if after is None else after.previous
    if previous is not None and (past is None or past.end_of(previous.registration.nonce) is None):
        ends = (*ends, previous)  # the join's own copy: true even if the history has been pruned
    own = (i for i, d in enumerate(ends) if d.registration.nonce == before.nonce)
    first = next(own, None)
    if first is not None:
        for end in ends[first:]:
            if end.reason != "replaced":
                return Left(before, end.reason, end.left_at)
        if after is not None:
            return None
    return Left(before, "health_check_failure", None)  # nobody has written down why


def _inputs(record: NodeRecord) -> tuple[object, ...]:
    node = record.node
    return node.incarnation, node.weight, node.zone, node.state


class _Draft:
    """A state in the making: what it does not change it shares with the one before.

    Most revisions are a receipt or a sign of life, and a large cluster has many of them.
    """

    def __init__(self, base: State) -> None:
        self.base = base
        self.config = base.config
        self.membership_revision = base.membership_revision
        self.rebalance, self.rebalance_revision = base.rebalance, base.rebalance_revision
        self.members = base.members
        self.stored = base.stored
        self.alive = base.alive
        self.history = base.history
        self.history_revisions = base.history_revisions
        self.receipts = base.receipts
        self.cordons = base.cordons
        self.ignored = base.ignored
        self.touched: dict[str, None] = {}

    def put(self, key: Parsed | None, kv: KeyValue) -> None:
        self.delete(key, kv.key)  # what cannot be decoded must not leave the old value in force
        if key is None:
            self._own("ignored")[kv.key] = "not a key of ClusterKit"
            return
        try:
            self._decode(key, kv)
        except codec.CodecError as e:
            self._own("ignored")[kv.key] = str(e)

    def _decode(self, key: Parsed, kv: KeyValue) -> None:
        match key.kind:
            case "nodes":
                self._own("stored")[key.node_id] = Stored(kv.mod_revision, kv.lease)
                self._own("members")[key.node_id] = codec.decode_node(key.node_id, kv.value)
            case "alive":
                self._own("alive")[key.node_id, key.incarnation] = codec.decode_alive(kv.value)
            case "history":
                self._own("history_revisions")[key.node_id] = kv.mod_revision
                self._own("history")[key.node_id] = codec.decode_history(kv.value)
            case "applied":
                self._own("receipts")[key.node_id] = codec.decode_receipt(kv.value)
            case "cordons":
                self._own("cordons")[key.node_id] = codec.decode_cordon(kv.value)
            case "config":
                self.config = codec.decode_config(kv.value)
            case "rebalance":
                self.rebalance = codec.decode_rebalance(kv.value)
                self.rebalance_revision = kv.mod_revision
            case "membership":
                self.membership_revision = kv.mod_revision

    def delete(self, key: Parsed | None, raw: bytes) -> None:
        self._remove("ignored", raw)
        if key is None:
            return
        match key.kind:
            case "nodes":
                self.touched[key.node_id] = None
                self._remove("members", key.node_id)
                self._remove("stored", key.node_id)
            case "alive":
                self._remove("alive", (key.node_id, key.incarnation))
            case "history":
                self._remove("history", key.node_id)
                self._remove("history_revisions", key.node_id)
            case "applied":
                self._remove("receipts", key.node_id)
            case "cordons":
                self._remove("cordons", key.node_id)
            case "config" | "membership" | "rebalance":
                pass  # never deleted by us; if somebody does, what was agreed stays in force

    def done(self, revision: int) -> State:
        return State(
            revision=revision,
            cluster_id=self.base.cluster_id,
            config=self.config,
            membership_revision=self.membership_revision,
            members=self.members,
            stored=self.stored,
            alive=self.alive,
            history=self.history,
            history_revisions=self.history_revisions,
            receipts=self.receipts,
            cordons=self.cordons,
            rebalance=self.rebalance,
            rebalance_revision=self.rebalance_revision,
            ignored=self.ignored,
        )

    def _own(self, name: str) -> dict[Any, Any]:
        """One of the mappings, to be changed: a copy of the base's from its first change on."""
        found: dict[Any, Any] = getattr(self, name)
        if found is getattr(self.base, name):
            found = dict(found)
            setattr(self, name, found)
        return found

    def _remove(self, name: str, key: object) -> None:
        if key in getattr(self, name):
            del self._own(name)[key]
