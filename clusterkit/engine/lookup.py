"""Where the partition of a key is looked up: of the newest view, what that needs, and no more.

It is in the path of each request of an application, so it has one object of its own, which a kit
reaches in one step, and which is all that is replaced when there is a new view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from ..model import Key, Partition
from .partitions import LazyPartitions

if TYPE_CHECKING:
    from .snapshot import Snapshot

Quick: TypeAlias = tuple[type[str], Sequence[Partition | None], int]


class _Never(str):
    """No key is of this type."""

    __slots__ = ()


_NOT_QUICK: Quick = _Never, (), 1


class Lookup:
    """The partitions of keys in one run of a kit. One thread replaces it, any may read it.

    Attributes:
        quick: Where keys are hashed by CRC-32: the type of those that are looked up at once, which
            is ``str``, the partitions that have been asked for before, and how many there are.
            Else a type that no key has. One tuple, so that what is in it always belongs together.
        find: The partition of any key; None where that is not to be had.
    """

    __slots__ = ("find", "quick")

    def __init__(self) -> None:
        self.find: Callable[[Key], Partition] | None = None
        self.quick = _NOT_QUICK

    def follow(self, snapshot: Snapshot) -> None:
        """From now on in this snapshot."""
        config, partitions = snapshot.state.config, snapshot.view.partitions
        self.find = snapshot.view.partition_for
        if (
            config is not None
            and config.key_hash == "crc32"
            and isinstance(partitions, LazyPartitions)
        ):
            self.quick = str, partitions.made, config.partitions
        else:
            self.quick = _NOT_QUICK

    def close(self) -> None:
        """From now on nowhere."""
        self.quick, self.find = _NOT_QUICK, None
