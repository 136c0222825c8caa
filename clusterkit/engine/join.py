"""Joining: from an etcd that knows nothing of this life of the node to a registration.

One transaction registers: the node's key and its sign of life on a new lease, its stay opened in
its history, the end of the stay before copied into the node's key, ``membership`` put (which makes
the epoch grow), and the cluster's config made if there is none. It compares all that it was decided
on, so of two joiners one reads again. When its answer is lost, the nonce tells on the next reading
whether it was applied.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ..core import codec, membership
from ..core.keys import Keys, range_end
from ..core.membership import MAX_NODES, State
from ..core.ownership import rows_of
from ..core.plan import held_by
from ..core.records import (
    Alive,
    ClusterConfig,
    Departure,
    NodeRecord,
    Process,
    Registration,
)
from ..errors import (
    ClusterKitError,
    ConfigMismatchError,
    KitStateError,
    NodeIdConflictError,
    StoreError,
)
from ..model import KitState, Node
from ..ports import Clock, Compare, Delete, Op, Put, Store, Txn
from .identity import is_abandoned, is_running_here
from .session import Session

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_SURVIVORS_SECONDS = 2.0


class DisplacedError(ClusterKitError):
    """The stay was ended by somebody else's will: this process must not come back by itself."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a node says of itself, and on what terms it joins."""

    node_id: str
    address: str
    services: Mapping[str, str]
    zone: str | None
    weight: int
    labels: Mapping[str, str]
    incarnation: str
    storage: Literal["memory", "disk"]
    on_conflict: Literal["takeover", "wait", "fail"]
    ttl_seconds: int
    grace_seconds: int
    fence_margin: float
    process: Process
    config: ClusterConfig


class Joiner:
    """Joins and leaves on behalf of one node. Every method blocks."""

    def __init__(
        self, store: Store, keys: Keys, clock: Clock, profile: Profile, call_timeout: float
    ) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        self._profile = profile
        self._timeout = call_timeout
        self._slot: int | None = None  # the slot's lease, while it may be alive

    def join(self, nonce: str, *, after: str | None, cancelled: threading.Event) -> Session:
        """Registers the node under ``nonce``; or carries its stay on, if it still has its slot.

        Args:
            nonce: The name of the new stay.
            after: The nonce of this process's stay before, None for its first.
            cancelled: Set to give up.

        Raises:
            ConfigMismatchError: The cluster was made with a setting that cannot be joined with.
            NodeIdConflictError: Another process has the node id, and may not be displaced.
            DisplacedError: The stay ``after`` was ended by an administrator or a successor.
            StoreError: etcd cannot be asked.
            KitStateError: ``cancelled`` was set.
        """
        waited_for_survivors = 0.0
        failed_before = False
        while not cancelled.is_set():
            state = self._read()
            self._check_readable(state)
            self._check_config(state)
            self._check_displaced(state, after)
            here = state.members.get(self._profile.node_id)
            past = state.history.get(self._profile.node_id)
            if here is not None and after == here.nonce and (session := self._revive(state, here)):
                return session
            if here is not None and not self._may_replace(here, state):
                cancelled.wait(_POLL_SECONDS)
                continue
            unwritten = here is None and past is not None and past.open is not None
            if unwritten and state.members and waited_for_survivors < _SURVIVORS_SECONDS:
                # The lease expired and nobody has written it down yet. Those who saw it know when.
                waited_for_survivors += _POLL_SECONDS
                cancelled.wait(_POLL_SECONDS)
                continue
            made = self._register(state, nonce)
            if isinstance(made, Session):
                return made
            if made is not None:
                # Once may be chance: the lease ended before it was used.
                if failed_before:
                    raise made
                failed_before = True
                cancelled.wait(_POLL_SECONDS)
        raise KitStateError(
            f"joining as {self._profile.node_id!r} was given up: the kit is stopping",
            state=KitState.STOPPED,
        )

    def leave(
        self, session: Session, partitions: tuple[int, ...], *, timeout: float | None = None
    ) -> bool:
        """Ends the stay gracefully; False if it had ended already. Revokes the lease in any case.

        Each call of etcd gets ``timeout`` seconds, as many as those of the join unless given.

        Raises:
            StoreError: etcd cannot be asked; the lease will expire by itself.
        """
        timeout = self._timeout if timeout is None else timeout
        left = False
        while True:
            state = self._read(timeout)
            here = state.members.get(self._profile.node_id)
            if here is None or here.nonce != session.nonce:
                break
            ended = Departure(
                here.registration, "graceful_shutdown", self._clock.now(), 0, partitions
            )
            result = self._store.txn(
                Txn(
                    compares=(
                        self._unchanged_node(state),
                        self._unchanged_history(state),
                    ),
                    success=(
                        self._put_history(state, ended=ended),
                        Delete(self._keys.node(self._profile.node_id)),
                    ),
                ),
                timeout=timeout,
            )
            if result.succeeded:
                left = True
                break
        self._let_go(session, timeout)
        return left

    def _let_go(self, session: Session, timeout: float | None = None) -> None:
        timeout = self._timeout if timeout is None else timeout
        for lease_id in {session.lease_id, session.slot_lease_id}:
            self._store.revoke(lease_id, timeout=timeout)

    def _revive(self, state: State, here: NodeRecord) -> Session | None:
        """A new sign of life for a stay whose slot is still held; None if it cannot be."""
        p, slot = self._profile, self._slot
        stored = state.stored.get(p.node_id)
        if not p.grace_seconds or slot is None or stored is None or stored.lease != slot:
            return None
        granted_at = self._clock.monotonic()
        lease = self._store.grant(p.ttl_seconds, timeout=self._timeout)
        alive = Put(
            self._keys.alive(p.node_id, p.incarnation),
            codec.encode_alive(Alive(here.nonce)),
            lease.id,
        )
        txn = Txn((self._unchanged_node(state),), (alive,))
        result = self._store.txn(txn, timeout=self._timeout)
        if result.succeeded:
            margin, revision = p.fence_margin, result.revision
            return Session(
                here.nonce, lease.id, lease.ttl_seconds, margin, granted_at, slot, revision
            )
        self._store.revoke(lease.id, timeout=self._timeout)
        return None

    def _read(self, timeout: float | None = None) -> State:
        timeout = self._timeout if timeout is None else timeout
        result = self._store.range(self._keys.root, timeout=timeout)
        return membership.read(self._keys, result.kvs, result.revision, result.cluster_id)

    def _check_readable(self, state: State) -> None:
        """A config that cannot be understood can neither be joined with nor be replaced."""
        if (damage := state.ignored.get(self._keys.config)) is not None:
            raise ClusterKitError(
                f"the cluster's config in etcd, {self._keys.config.decode()!r}, cannot be "
                f"understood: {damage}. It was damaged, or made by a newer release; upgrade this "
                "node, or restore the key"
            )

    def _check_config(self, state: State) -> None:
        ours, stored = self._profile.config, state.config
        if stored is None:
            return
        for option, mine, theirs in (
            ("partitions", ours.partitions, stored.partitions),
            ("key_hash", ours.key_hash, stored.key_hash),
            ("algorithm_version", ours.algorithm_version, stored.algorithm_version),
        ):
            if mine != theirs:
                raise ConfigMismatchError(
                    f"option {option!r} is {mine!r} here, but the cluster at "
                    f"{self._keys.root.decode()} was made with {theirs!r}, and that cannot change "
                    f"in a cluster's life: start this node with {option}={theirs!r}, or use "
                    "another cluster name",
                    option=option,
                    ours=mine,
                    stored=theirs,
                )
        if ours.replication_factor != stored.replication_factor:
            logger.warning(
                "this node asks for a replication factor of %d; the cluster's own, %d, holds",
                ours.replication_factor,
                stored.replication_factor,
                extra={"ck_option": "replication_factor"},
            )
        for option, asked, holds in (
            ("balance", ours.balance_percent, stored.balance_percent),
            ("balance_primaries", ours.balance_primaries, stored.balance_primaries),
        ):
            if asked and asked != holds:  # not to ask is to take what the cluster has
                logger.warning(
                    "this node asks for another %s than the cluster has, and the cluster's own "
                    "holds; see 'clusterkit settings'",
                    option,
                    extra={"ck_option": option},
                )

    def _check_displaced(self, state: State, after: str | None) -> None:
        if after is None:
            return
        past = state.history.get(self._profile.node_id)
        end = past.end_of(after) if past is not None else None
        if end is not None and end.reason in ("removed_by_admin", "replaced"):
            why = (
                "an administrator removed it"
                if end.reason == "removed_by_admin"
                else ("another process took its node id over")
            )
            raise DisplacedError(f"node {self._profile.node_id!r} stays out of the cluster: {why}")
        # Who joined behind that stay has written its end down. A history that has never heard of it
        # is older than the stay: etcd was restored from a backup, and the member is of the past.
        heard = past is None or end is not None or len(past.departures) >= codec.MAX_DEPARTURES
        here = state.members.get(self._profile.node_id)
        if heard and here is not None and here.node.incarnation != self._profile.incarnation:
            # Two processes that took the slot from each other would never end.
            raise DisplacedError(
                f"node {self._profile.node_id!r} stays out of the cluster: while its lease was "
                f"lost, another process at {here.node.address} joined under its id"
            )

    def _may_replace(self, here: NodeRecord, state: State) -> bool:
        """Whether the holder of the slot may be replaced now; False is "wait"."""
        node_id = self._profile.node_id
        incarnation = here.node.incarnation
        if incarnation == self._profile.incarnation or is_abandoned(incarnation):
            return True
        if is_running_here(here.process):
            raise NodeIdConflictError(
                f"node id {node_id!r} is in use by process {here.process.pid} of this host, which "
                "is still running. Give each process an id of its own (node_id=, or "
                "CLUSTERKIT_NODE_ID), for instance the host name with a worker's number; with "
                "Gunicorn or Uvicorn workers, join from one process only.",
                node_id=node_id,
            )
        if not state.is_alive(node_id):
            return True  # the process is gone, and only the grace holds its place
        match self._profile.on_conflict:
            case "fail":
                raise NodeIdConflictError(
                    f"node id {node_id!r} is in use by incarnation {here.node.incarnation} at "
                    f"{here.node.address} (joined {here.node.joined_at.isoformat()}). Stop it, "
                    "wait for its lease to end, or join with on_conflict='takeover' or 'wait'.",
                    node_id=node_id,
                )
            case "wait":
                return False
            case "takeover":
                return True

    def _register(self, state: State, nonce: str) -> Session | StoreError | None:
        """The session; or why the transaction failed, None if only because the state changed."""
        p = self._profile
        here = state.members.get(p.node_id)
        granted_at = self._clock.monotonic()
        lease = self._store.grant(p.ttl_seconds, timeout=self._timeout)
        slot = lease
        if p.grace_seconds:
            slot = self._store.grant(p.ttl_seconds + p.grace_seconds, timeout=self._timeout)
        session = Session(nonce, lease.id, lease.ttl_seconds, p.fence_margin, granted_at, slot.id)
        past = state.history.get(p.node_id)
        ended: Departure | None = None
        if here is not None:
            owned, replica = held_by(p.node_id, rows_of(state))
            partitions = tuple(sorted((*owned, *replica)))
            ended = Departure(here.registration, "replaced", None, 0, partitions)
        elif past is not None and past.open is not None:
            ended = Departure(past.open, "health_check_failure", None, 0)
        if past is not None and past.departures and ended is None:
            previous: Departure | None = past.departures[-1]
        else:
            previous = ended
        if len(state.members) >= MAX_NODES:
            raise ClusterKitError(
                f"the cluster is full: it has {MAX_NODES} nodes, the most there can be"
            )
        # Where there are keys that cannot be understood, somebody may have been there.
        places = self._keys.nodes, self._keys.histories
        strange = any(key.startswith(places) for key in state.ignored)
        bootstrap = not (state.members or state.history or strange)
        now = self._clock.now()
        node = Node(
            p.node_id, p.address, MappingProxyType(dict(p.services)), p.zone, p.weight,
            MappingProxyType(dict(p.labels)), p.incarnation, "active", now,
        )  # fmt: skip
        record = NodeRecord(node, nonce, p.storage, previous, bootstrap, p.process)
        compares = [self._unchanged_node(state), self._unchanged_history(state)]
        puts: list[Op] = [
            Put(self._keys.node(p.node_id), codec.encode_node(record), slot.id),
            Put(
                self._keys.alive(p.node_id, p.incarnation),
                codec.encode_alive(Alive(nonce)),
                lease.id,
            ),
            self._put_history(state, ended=ended, opened=record.registration),
            Put(self._keys.membership, codec.encode_membership(p.node_id, now)),
        ]
        if state.config is None:
            compares.append(Compare(self._keys.config, "version", "==", 0))
            puts.append(Put(self._keys.config, codec.encode_config(p.config, now)))
        if bootstrap:
            compares += [
                Compare(prefix, "version", "==", 0, range_end(prefix))
                for prefix in (self._keys.nodes, self._keys.histories)
            ]
        txn = Txn(tuple(compares), tuple(puts))
        failure: StoreError | None = None
        try:
            result = self._store.txn(txn, timeout=self._timeout)
            joined, session.revision = result.succeeded, result.revision
        except StoreError as e:
            failure = e
            # Perhaps applied. If so the nonce is in etcd, on this lease.
            now_there = self._read()
            here = now_there.members.get(p.node_id)
            joined = here is not None and here.nonce == nonce
            if joined:
                session.revision = now_there.stored[p.node_id].mod_revision
        if joined:
            self._slot = slot.id
            return session
        self._let_go(session)
        return failure

    def _unchanged_node(self, state: State) -> Compare:
        stored = state.stored.get(self._profile.node_id)
        revision = stored.mod_revision if stored is not None else 0
        return Compare(self._keys.node(self._profile.node_id), "mod", "==", revision)

    def _unchanged_history(self, state: State) -> Compare:
        revision = state.history_revisions.get(self._profile.node_id, 0)
        return Compare(self._keys.history(self._profile.node_id), "mod", "==", revision)

    def _put_history(
        self, state: State, *, ended: Departure | None, opened: Registration | None = None
    ) -> Put:
        past = state.history.get(self._profile.node_id)
        raw = b"" if past is None else past.raw
        return Put(
            self._keys.history(self._profile.node_id),
            codec.history_with(raw, ended=ended, opened=opened),
        )
