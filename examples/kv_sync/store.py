"""What one node holds, and when it answers for it.

A later write has a greater `Entry`, whoever sends it and in whatever order they arrive, so taking
one in twice, or an old one after a new one, changes nothing. Two rules make a majority of such
holders as good as one place:

* only a holder that has *all* of a partition counts, for a write as for a read (`serves`);
* a holder refuses a request of an older epoch than it has seen of that partition (`admit`). A node
  that copies a partition shows its epoch to everyone it copies from, and so ends what the holders
  before it could still agree on among themselves.

All of it runs on one event loop, and nothing here waits, so there are no locks.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Literal, NamedTuple

from pydantic import BaseModel

from clusterkit import ClusterKit


class Entry(NamedTuple):
    """A version of a value; `None` says that the key was deleted."""

    epoch: int  # that of the primary that wrote it: two primaries never have the same one
    number: int  # of its writes; a process that starts again has a new epoch
    value: str | None

    @property
    def version(self) -> tuple[int, int]:
        return self.epoch, self.number


NOTHING = Entry(0, 0, None)
"""What a holder has of a key that it has never heard of: older than anything."""


class Copy(BaseModel):
    """What a node has of a partition."""

    has: Literal["all", "part", "nothing"]
    entries: dict[str, Entry]


class RefusedError(Exception):
    """This node cannot answer that now; the text says why."""


class Store:
    """The entries of one node."""

    def __init__(self, ck: ClusterKit) -> None:
        self.ck = ck
        self.entries: defaultdict[str, dict[str, Entry]] = defaultdict(dict)
        self.complete: set[str] = set()  # what it has had all of since it was last cleared
        self.epochs: defaultdict[str, int] = defaultdict(int)  # the newest that each has seen

    def serves(self, partition: str) -> bool:
        """Whether this node is a holder, can prove that it is alive, and has everything."""
        holds = self.ck.is_primary(partition) or self.ck.is_replica(partition)
        return holds and self.ck.is_ready(partition)

    def admit(self, partition: str, epoch: int) -> None:
        """Notes the epoch of a request.

        Raises:
            RefusedError: It is older than one before.
        """
        if epoch < self.epochs[partition]:
            raise RefusedError(f"{self.ck.node_id} has seen a newer epoch of {partition}")
        self.epochs[partition] = epoch

    def get(self, partition: str, key: str, epoch: int) -> Entry:
        """The version of a key that is here.

        Raises:
            RefusedError: What is here may be old.
        """
        self.admit(partition, epoch)
        if not self.serves(partition):
            raise RefusedError(f"{self.ck.node_id} does not have all of {partition}")
        return self.entries[partition].get(key, NOTHING)

    def take(self, partition: str, key: str, entry: Entry, epoch: int) -> bool:
        """Takes in a version, and says whether that counts.

        A holder whose copy is still being made keeps it, but as long as it cannot be read from, a
        write that counted on it could be missed.

        Raises:
            RefusedError: It comes from a node that does not know yet who the holders are.
        """
        self.admit(partition, epoch)
        self.merge(partition, {key: entry})
        return self.serves(partition)

    def merge(self, partition: str, entries: dict[str, Entry]) -> None:
        """Keeps of each key the newer version."""
        held = self.entries[partition]
        for key, entry in entries.items():
            if entry.version > held.get(key, NOTHING).version:
                held[key] = entry

    def hand_out(self, partition: str, epoch: int) -> Copy:
        """All that is here, for a node that becomes a holder."""
        self.epochs[partition] = max(self.epochs[partition], epoch)
        entries = dict(self.entries[partition])
        known = self.ck.partition(partition)
        if self.ck.node_id in [node.id for node in known.nodes]:
            # Not by `complete`: it may be from a time before others took over, and this node again.
            has_all = self.ck.is_ready(partition)
        else:
            has_all = partition in self.complete
        if has_all:
            return Copy(has="all", entries=entries)
        # One that is behind may be a holder by what it has not heard yet: do not say "nothing".
        nothing = not entries and self.ck.node_id not in [node.id for node in known.nodes]
        return Copy(has="nothing" if nothing and known.epoch >= epoch else "part", entries=entries)

    def completed(self, partition: str, epoch: int) -> None:
        """All that there is, as of an epoch, has been taken in."""
        self.epochs[partition] = max(self.epochs[partition], epoch)
        self.complete.add(partition)

    def drop(self, partition: str) -> None:
        """Others hold it, and have their copies. The epoch stays: it may be asked again."""
        self.complete.discard(partition)
        self.entries.pop(partition, None)

    def clear(self) -> None:
        """This node was away and missed writes: what it has is old."""
        self.complete.clear()
        self.entries.clear()
