"""What a node knows of its cluster: immutable values, safe to keep, share and compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from types import TracebackType
from typing import Literal, Self, TypeAlias

from .errors import OwnershipError

Key: TypeAlias = str | bytes
"""An application's key. A ``str`` is the same key as its UTF-8 bytes."""


class KitState(StrEnum):
    """The states of a kit.

    ::

        NEW     ──start()──►                              JOINING
        JOINING ──joined──►                               JOINED
        JOINING ──the start fails──►                      STOPPED
        JOINED  ──the lease is in doubt, or lost──►       FENCED
        FENCED  ──the lease proven, or joined again──►    JOINED
        JOINED, FENCED ──removed, or the id taken over──► REMOVED
        REMOVED ──rejoin()──►                             FENCED ──► JOINED
        any     ──stop()──►                               DRAINING ──left──► STOPPED
        STOPPED ──start()──►                              JOINING
    """

    NEW = "new"
    JOINING = "joining"
    JOINED = "joined"
    DRAINING = "draining"
    FENCED = "fenced"
    REMOVED = "removed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Node:
    """One member of the cluster.

    Attributes:
        id: The stable node id, such as a pod's name.
        address: ``host:port`` at which the application's peers reach it.
        services: Further addresses by name, such as ``{"http": "10.0.0.1:8080"}``.
        zone: The failure zone; None if it has none.
        weight: Its share of partitions relative to the other nodes; 100 unless set.
        labels: The application's own facts about it.
        incarnation: The random id of this life of the process; a restart has a new one.
        state: ``active`` or ``draining``.
        joined_at: When it joined, as recorded in etcd (UTC).
    """

    id: str
    address: str
    services: Mapping[str, str]
    zone: str | None
    weight: int
    labels: Mapping[str, str]
    incarnation: str
    state: str
    joined_at: datetime

    def __hash__(self) -> int:
        # The mappings cannot be hashed, and id with incarnation tells nodes apart.
        return hash((self.id, self.incarnation))

    @property
    def host(self) -> str:
        """The host of ``address``, without the brackets of an IPv6 address."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port of ``address``."""
        return int(self.address.rpartition(":")[2])


@dataclass(frozen=True, slots=True)
class Partition:
    """One shard, with its holders as of one view.

    Attributes:
        id: ``partition-0`` and so on.
        index: The number in the id.
        primary: The owner; None while the cluster has no node that may hold it.
        replicas: The further holders, in rendezvous order.
        epoch: The fencing token of the view: it only grows, and one value has one owner.
    """

    id: str
    index: int
    primary: Node | None
    replicas: tuple[Node, ...]
    epoch: int

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All holders, the primary first."""
        return self.replicas if self.primary is None else (self.primary, *self.replicas)


PartitionRef: TypeAlias = str | Partition
"""A partition's id, or a ``Partition``; never a key (see ``partition_for``)."""


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster as of one revision of etcd. Two nodes at the same revision have equal views.

    Attributes:
        revision: The etcd revision.
        nodes: The members by id, in the order of their ids.
        partitions: All partitions, in the order of their indexes.
        replication_factor: How many holders each partition should have.
        cordoned: The ids of the members that an administrator has hold nothing.
    """

    revision: int
    nodes: Mapping[str, Node]
    partitions: Sequence[Partition]
    replication_factor: int
    _find: Callable[[Key], Partition] = field(repr=False, compare=False)
    cordoned: frozenset[str] = frozenset()

    def partition_for(self, key: Key, /) -> Partition:
        """The partition that a key belongs to. The same for ever, whatever nodes come and go."""
        return self._find(key)


@dataclass(frozen=True, slots=True)
class ClusterHealth:
    """How the cluster is, seen from this node; ``reasons`` are for people."""

    status: Literal["healthy", "degraded", "critical"]
    healthy_nodes: int
    unhealthy_nodes: int
    total_nodes: int
    unhealthy_node_ids: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether this node should get traffic, and if not, why; for a pod's readiness probe.

    Attributes:
        ready: Joined, not fenced, and the initial copies have succeeded.
        reasons: What is missing, in words.
        fencing_in: How long the lease is certainly still alive; zero if fenced.
    """

    ready: bool
    reasons: tuple[str, ...]
    fencing_in: timedelta


@dataclass(frozen=True, slots=True)
class OwedMove:
    """A partition change whose hooks have not all succeeded here yet.

    Attributes:
        partition_id: The partition.
        since: When the change was learned of.
        attempts: How often its hooks were run.
        error: The newest failure, None if it has not been tried yet.
    """

    partition_id: str
    since: datetime
    attempts: int
    error: str | None


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the start, and the present length of queues.

    Attributes:
        revision: The newest revision that the view has.
        rebalances: How many rebalances have begun here.
        hooks_running: How many hooks run.
        hooks_queued: How many wait.
        hook_failures: How many runs of hooks have failed.
        watch_restarts: How often the watch broke and was opened again.
        divergences: How often the view was found to be not what etcd has, and was repaired. Always
            0, but for a defect.
        hook_queue_age: How long the oldest of those that wait has waited; zero if none does.
        hooks_stuck: How many hooks are out of time and have not ended.
        owed: How many partition changes have hooks that have not all succeeded yet.
        nodes: How many members the cluster has.
        unhealthy_nodes: How many nodes should be well and are not.
        primaries: How many partitions this node is the primary of.
        replicas: How many partitions this node is a replica of.
        fencing_in: How long the lease is certainly still alive; zero if fenced.
        active_nodes: How many members are well, and not about to leave.
        draining_nodes: How many members are well, and about to leave.
        partitions: How many partitions the cluster has.
        unowned: How many of them nobody holds.
        view_age: For how long the view has been what it is. Long where nothing happens.
        keep_alive: How long etcd took to answer the newest keep-alive; None before the first.
    """

    revision: int
    rebalances: int
    hooks_running: int
    hooks_queued: int
    hook_failures: int
    watch_restarts: int
    divergences: int = 0
    hook_queue_age: timedelta = timedelta(0)
    hooks_stuck: int = 0
    owed: int = 0
    nodes: int = 0
    unhealthy_nodes: int = 0
    primaries: int = 0
    replicas: int = 0
    fencing_in: timedelta = timedelta(0)
    active_nodes: int = 0
    draining_nodes: int = 0
    partitions: int = 0
    unowned: int = 0
    view_age: timedelta = timedelta(0)
    keep_alive: timedelta | None = None


class Guard:
    """A permission to act as the owner of one partition, given out by ``kit.guard(partition)``.

    It ends with ownership: when the view names another primary, or when the lease can no longer be
    proven. The library cannot stop code that goes on regardless, so hand ``epoch`` to your storage
    and let that refuse an epoch smaller than one it has seen: only then is a process that was
    paused between the check and the write harmless.

    Attributes:
        partition: The partition as of the moment the guard was made.
        epoch: The fencing token.
    """

    __slots__ = ("_check", "_remaining", "epoch", "partition")

    def __init__(
        self,
        partition: Partition,
        epoch: int,
        check: Callable[[], int],
        remaining: Callable[[], timedelta],
    ) -> None:
        self.partition = partition
        self.epoch = epoch
        self._check = check
        self._remaining = remaining

    @property
    def valid(self) -> bool:
        """Whether ``check()`` would succeed."""
        try:
            self._check()
        except OwnershipError:
            return False
        return True

    @property
    def remaining(self) -> timedelta:
        """How long the lease is certainly still alive; zero if it is in doubt."""
        return self._remaining()

    def check(self) -> int:
        """The epoch, if this node has been the owner without a break since the guard was made.

        Raises:
            NotOwnerError: Another node is the primary, or was in the meantime.
            FencedError: The lease cannot be proven to be alive.
        """
        return self._check()

    def __enter__(self) -> Self:
        self._check()
        return self

    def __exit__(
        self,
        t: type[BaseException] | None,
        e: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        return None
