"""What lookups read: one immutable snapshot, replaced as a whole by one assignment.

It holds the view and the session together, so that a reader can never pair the view of one stay
with the lease of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import overload

from ..core.hashing import key_indexer, partition_id
from ..core.membership import State
from ..core.placement import Row
from ..errors import UnknownPartitionError
from ..model import ClusterHealth, ClusterView, Key, KitState, Node, Partition
from .session import Session


class LazyPartitions(Sequence[Partition]):
    """The partitions of a view, each made when it is first asked for."""

    __slots__ = ("_epoch", "_made", "_nodes", "_rows")

    def __init__(self, rows: Sequence[Row], nodes: Mapping[str, Node], epoch: int) -> None:
        self._rows = rows
        self._nodes = nodes
        self._epoch = epoch
        self._made: list[Partition | None] = [None] * len(rows)

    @overload
    def __getitem__(self, index: int) -> Partition: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Partition, ...]: ...
    def __getitem__(self, index: int | slice) -> Partition | tuple[Partition, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        made = self._made[index]
        if made is None:
            # Two threads may both make it: the two are equal, and either may stay.
            made = self._made[index] = self._make(index % len(self._rows))
        return made

    def _make(self, index: int) -> Partition:
        holders = [self._nodes[node_id] for node_id in self._rows[index]]
        primary = holders[0] if holders else None
        return Partition(partition_id(index), index, primary, tuple(holders[1:]), self._epoch)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Partition]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LazyPartitions):
            return NotImplemented
        return (self._epoch, self._rows, self._nodes) == (other._epoch, other._rows, other._nodes)

    def __hash__(self) -> int:
        return hash((self._epoch, len(self._rows)))

    def __repr__(self) -> str:
        return f"<{len(self)} partitions at epoch {self._epoch}>"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a lookup needs.

    Attributes:
        kit_state: The kit's state.
        view: The cluster as applications see it.
        rows: The holders of each partition.
        epoch: The fencing token of the view.
        session: This node's session if the view has its registration in it, else None.
        owned_since: Per partition that this node is the primary of, the epoch of the first view
            since which it has been so without a break.
        initial_copies_done: Whether all that this node was to receive when it joined has arrived.
        health: The cluster's health.
        state: What etcd holds.
    """

    kit_state: KitState
    view: ClusterView
    rows: Sequence[Row]
    epoch: int
    session: Session | None
    owned_since: Mapping[int, int]
    initial_copies_done: bool
    health: ClusterHealth
    state: State


def view_of(state: State, rows: Sequence[Row]) -> ClusterView:
    """The state and its assignment as applications see them."""
    config = state.config
    index_of: Callable[[Key], int] = _no_partitions
    if config is not None:
        index_of = _indexer(config.key_hash, config.partitions, config.seed)
    nodes = {node_id: state.members[node_id].node for node_id in sorted(state.members)}
    return ClusterView(
        revision=state.revision,
        nodes=nodes,
        partitions=LazyPartitions(rows, nodes, state.epoch),
        replication_factor=config.replication_factor if config else 0,
        _index_of=index_of,
    )


_indexer = lru_cache(maxsize=8)(key_indexer)  # one for each cluster of this process


def _no_partitions(key: Key) -> int:
    raise UnknownPartitionError(
        f"key {key!r} belongs to no partition yet: the cluster has no config in etcd, "
        "since no node has ever joined it"
    )
