"""What an assignment is made from beside the nodes, and the seeds of the partitions."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from .hashing import SeedBlock, partition_id, seeds64

_BLOCK = 256  # partitions scored at a time: enough lanes to pay, few enough to stay in the cache


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers that all nodes agree on; see ``placement.assign``.

    Raises:
        ValueError: A number out of its range.
    """

    partitions: int
    replication_factor: int
    cluster_seed: int

    def __post_init__(self) -> None:
        if self.partitions < 1 or self.replication_factor < 1:
            raise ValueError(
                f"partitions is {self.partitions}, replication_factor is "
                f"{self.replication_factor}; both must be at least 1"
            )

    @property
    def seeds(self) -> PartitionSeeds:
        """The seeds of the partitions."""
        return _partition_seeds(self.partitions, self.cluster_seed)


class PartitionSeeds:
    """The seeds of a cluster's partitions, and forms of them that scoring works on.

    They never change in a cluster's life, and cost as much as scoring ten nodes.

    Attributes:
        each: The seeds as unsigned 64-bit numbers, in the order of the partitions.
    """

    def __init__(self, seeds: Iterable[int]) -> None:
        self.each = array("Q", seeds)

    @cached_property
    def blocks(self) -> tuple[SeedBlock, ...]:
        """All of them in blocks."""
        return tuple(
            SeedBlock(self.each[start : start + _BLOCK])
            for start in range(0, len(self.each), _BLOCK)
        )

    def some(self, indexes: Sequence[int]) -> Iterator[SeedBlock]:
        """The seeds of these partitions, in blocks."""
        for start in range(0, len(indexes), _BLOCK):
            yield SeedBlock(self.each[i] for i in indexes[start : start + _BLOCK])


@lru_cache(maxsize=4)
def _partition_seeds(partitions: int, cluster_seed: int) -> PartitionSeeds:
    return PartitionSeeds(seeds64(map(partition_id, range(partitions)), cluster_seed, "partition"))
