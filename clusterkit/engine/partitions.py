"""The partitions of a view as applications see them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, overload

from ..core.hashing import partition_id
from ..model import Node, Partition

if TYPE_CHECKING:
    from ..core.placement import Row


class LazyPartitions(Sequence[Partition]):
    """The partitions of a view, each made when it is first asked for.

    Attributes:
        made: Those that have been asked for, by index; None for the others.
    """

    __slots__ = ("_epoch", "_nodes", "_rows", "made")

    def __init__(self, rows: Sequence[Row], nodes: Mapping[str, Node], epoch: int) -> None:
        self._rows = rows
        self._nodes = nodes
        self._epoch = epoch
        # Not a dict, in which to look something up takes twice as long.
        self.made: list[Partition | None] = [None] * len(rows)

    def at(self, index: int) -> Partition:
        """The partition with an index that there is."""
        made = self.made[index]
        if made is None:
            holders = [self._nodes[node_id] for node_id in self._rows[index]]
            primary = holders[0] if holders else None
            # Two threads may both make it, and the two are equal.
            self.made[index] = made = Partition(
                partition_id(index), index, primary, tuple(holders[1:]), self._epoch
            )
        return made

    @overload
    def __getitem__(self, index: int) -> Partition: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Partition, ...]: ...
    def __getitem__(self, index: int | slice) -> Partition | tuple[Partition, ...]:
        if isinstance(index, slice):
            return tuple(map(self.at, range(*index.indices(len(self)))))
        return self.at(index if index >= 0 else range(len(self))[index])

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Partition]:
        return map(self.at, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LazyPartitions):
            return NotImplemented
        return (self._epoch, self._rows, self._nodes) == (other._epoch, other._rows, other._nodes)

    def __hash__(self) -> int:
        return hash((self._epoch, len(self._rows)))

    def __repr__(self) -> str:
        return f"<{len(self)} partitions at epoch {self._epoch}>"
