"""One node's data: versioned keys by partition, and the fence that keeps late writes out.

Why a fence. A copy and a write can cross: the old primary, which has not yet heard that it was
replaced, sends a write to a replica just after the new holder copied that replica. Nobody would
have the write where it is looked for, yet the old primary would acknowledge it. So every request
carries the epoch of its sender's view, a partition remembers the greatest epoch that it has seen,
and refuses writes with a smaller one. Serving a copy raises it: what the copy does not contain can
no longer be acknowledged. This is how any storage uses the epoch of ``ClusterKit.guard``.
"""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from typing import TypeAlias

Version: TypeAlias = tuple[int, int]
"""The writer's epoch, then its own count: one epoch has one writer, so versions never tie."""

Item: TypeAlias = tuple[int, int, str]
"""A version and a value as they travel: epoch, count, value."""


class PartitionStore:
    """Data in memory. Every method is atomic and may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: defaultdict[str, dict[str, Item]] = defaultdict(dict)
        self._fences: defaultdict[str, int] = defaultdict(int)
        self._complete: set[str] = set()
        self._count = itertools.count(1)

    def next_version(self, epoch: int) -> Version:
        """A version for a write of this node as the owner at ``epoch``."""
        return epoch, next(self._count)

    def put(self, partition: str, key: str, version: Version, value: str) -> bool:
        """Stores a value; False if the epoch is too old, or a newer version is already there."""
        with self._lock:
            if version[0] < self._fences[partition]:
                return False
            self._fences[partition] = version[0]
            present = self._items[partition].get(key)
            if present is not None and present[:2] > version:
                return False
            self._items[partition][key] = (*version, value)
            return True

    def get(self, partition: str, key: str) -> str | None:
        """The value, None if this node has none."""
        with self._lock:
            item = self._items[partition].get(key)
            return None if item is None else item[2]

    def copy_out(self, partition: str, epoch: int) -> tuple[bool, dict[str, Item]]:
        """What this node has of a partition, for a new holder whose view has ``epoch``.

        Raises the fence to that epoch. The first value says whether it ever had all of it: a node
        that lost its place before its own copy was done has a part, or nothing.
        """
        with self._lock:
            self._fences[partition] = max(self._fences[partition], epoch)
            return partition in self._complete, dict(self._items[partition])

    def copy_in(self, partition: str, epoch: int, items: dict[str, Item]) -> None:
        """Takes a copy, after which this node has all of the partition.

        It is merged: a newer version that a write brought in the meantime stays.
        """
        with self._lock:
            self._fences[partition] = max(self._fences[partition], epoch)
            present = self._items[partition]
            for key, item in items.items():
                if key not in present or present[key][:2] < item[:2]:
                    present[key] = item
            self._complete.add(partition)

    def drop(self, partition: str, epoch: int) -> None:
        """Forgets a partition that is not this node's in a view of ``epoch``.

        Does nothing if a newer epoch has been here: then it may be this node's again.
        """
        with self._lock:
            if self._fences[partition] <= epoch:
                self._items.pop(partition, None)
                self._complete.discard(partition)

    def clear(self) -> None:
        """Forgets all data. The fences stay: they are promises."""
        with self._lock:
            self._items.clear()
            self._complete.clear()

    def keys(self) -> int:
        """How many keys it holds, over all partitions."""
        with self._lock:
            return sum(len(items) for items in self._items.values())
