"""What the values in etcd mean, as plain immutable values; ``codec`` makes them from bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

from ..events import LeaveReason
from ..model import Node

EndReason: TypeAlias = LeaveReason | Literal["replaced"]
"""How a stay ended; ``replaced`` is a takeover of the slot, which is no departure."""


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """What all nodes of a cluster agree on (key ``config``).

    Attributes:
        partitions: How many partitions there are.
        replication_factor: How many holders each should have.
        key_hash: The name of the function from keys to partitions.
        algorithm_version: The version of the placement algorithm.
        seed: Mixed into every hash of this cluster, 64 bits.
        balance_percent: No node holds more than this many hundredths of its fair share, rounded
            up; None for no bound.
        balance_primaries: Whether the primaries are evened out among the holders.
    """

    partitions: int
    replication_factor: int
    key_hash: str
    algorithm_version: int
    seed: int
    balance_percent: int | None = None
    balance_primaries: bool = False


@dataclass(frozen=True, slots=True)
class Cordon:
    """An administrator's word that a node is to hold nothing (key ``cordons/{id}``)."""

    reason: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Process:
    """Where a process runs; empty and 0 are "not known". See ``engine.identity``."""

    boot_id: str = ""
    pid_namespace: str = ""
    pid: int = 0
    started: int = 0
    host: str = ""


@dataclass(frozen=True, slots=True)
class Registration:
    """One stay of a node, from its join to its end. ``nonce`` is new for every join."""

    nonce: str
    incarnation: str
    joined_at: datetime


@dataclass(frozen=True, slots=True)
class Departure:
    """How a stay ended.

    Attributes:
        registration: The stay.
        reason: Why it ended.
        left_at: When; None where nobody can know.
        left_revision: The revision in which the node's key went, 0 if nobody saw it.
        partitions: The indexes of the partitions that the node held last.
    """

    registration: Registration
    reason: EndReason
    left_at: datetime | None
    left_revision: int
    partitions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A member, as its own join wrote it (key ``nodes/{id}``)."""

    node: Node
    nonce: str
    storage: Literal["memory", "disk"]
    previous: Departure | None
    bootstrap: bool
    process: Process

    @property
    def registration(self) -> Registration:
        return Registration(self.nonce, self.node.incarnation, self.node.joined_at)


@dataclass(frozen=True, slots=True)
class History:
    """A node's past (key ``history/{id}``).

    Attributes:
        open: The present stay; without a ``nodes`` key it means an expiry not yet written down.
        departures: The stays that ended, oldest first, bounded.
        raw: The bytes that it was read from, so that writing it again keeps unknown fields.
    """

    open: Registration | None
    departures: tuple[Departure, ...]
    raw: bytes = field(default=b"", repr=False, compare=False)

    def end_of(self, nonce: str) -> Departure | None:
        """How the stay with that nonce ended, if it is still remembered."""
        return next((d for d in self.departures if d.registration.nonce == nonce), None)


@dataclass(frozen=True, slots=True)
class Alive:
    """A node's sign of life (key ``alive/{id}/{incarnation}``)."""

    nonce: str
    failing_checks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Receipt:
    """A node's word that its partition-change hooks up to ``epoch`` have succeeded."""

    nonce: str
    epoch: int


@dataclass(frozen=True, slots=True)
class RebalanceRequest:
    """A manual rebalance."""

    node_id: str
    reason: str
    requested_at: datetime
