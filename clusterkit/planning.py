"""What would happen if: the values that ``kit.plan()`` and ``clusterkit plan`` answer with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .events import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedNode:
    """A node that is not there yet, or another weight or zone for one that is.

    Attributes:
        weight: Its share relative to the other nodes, 0 to 1,000,000.
        zone: Its failure zone; None if it has none.
    """

    weight: int = 100
    zone: str | None = None


@dataclass(frozen=True, slots=True)
class PlannedMove:
    """A node would come to hold a partition that it does not hold now, and must fetch it.

    Attributes:
        partition_id: The partition.
        node_id: Who would fetch it.
        role: What it would be for the partition.
        copy_from: The ids of its present holders that would still be there, the primary first;
            empty if the data would be lost.
    """

    partition_id: str
    node_id: str
    role: Role
    copy_from: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """What one node holds: how many partitions as their primary, and how many as a replica."""

    primaries: int
    replicas: int

    @property
    def copies(self) -> int:
        """All that it holds."""
        return self.primaries + self.replicas


@dataclass(frozen=True, slots=True)
class Plan:
    """What a change would do to a cluster. Nothing has been done.

    Attributes:
        moves: What would be copied, in the order of the partitions.
        promotions: The partitions whose primary would be another of their present holders, so that
            nothing is copied for that, each with the new primary's id.
        lost: The partitions of which no holder would be left to copy from.
        before: The load of each node now, in the order of the ids.
        after: The same, afterwards.
        relaxed: The partitions that would be placed outside the bound of ``balance``, because
            zones and bound do not go together.
    """

    moves: tuple[PlannedMove, ...]
    promotions: Mapping[str, str]
    lost: tuple[str, ...]
    before: Mapping[str, NodeLoad]
    after: Mapping[str, NodeLoad]
    relaxed: tuple[str, ...]
