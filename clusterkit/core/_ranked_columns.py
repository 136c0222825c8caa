"""``columns`` with numpy where scores alone decide: no weights, no zones.

Of each partition the keys of its holders are kept, and of the one that ranks behind them, its
*spare*: so a node that comes is put among them without scoring any of them, and where one goes the
spare moves up. A spare is known from then on that a newcomer pushed it out of the row, or that it
was looked for, and until it moves up. Where it is not known when it is needed, it is the greatest
of all nodes that are not in the row.

A key is the top 33 bits of a score, with the node's slot below. As in ``_vector``, where two keys
that matter are alike in those bits, the partition is ranked by exact integers.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ._best import HIGH, LOW, Marks, Words
from ._sieve import Indexes, Sieve
from ._slots import SlotArray, Slots
from ._vector import CACHED, lent, mix, partition_words
from .columns import Columns, Members
from .placement import Candidate
from .rows import Rows

_NONE = np.empty(0, np.intp)


class RankedColumns(Columns):
    """The same as ``Columns``, for members without zones and of one weight."""

    def __init__(self, members: Members, rows: Rows) -> None:
        super().__init__(members, rows)
        self._slots = Slots(members.seeds)
        self._partitions = partition_words(self._seeds)
        total, self._count = len(self._partitions), members.count
        # A partition's keys and slots are neighbours, in one line of the cache. For a spare that
        # is not known they are 0 and -1.
        self._keys = np.zeros((total, self._count + 1), np.uint64)
        self._held = np.full((total, self._count + 1), -1, np.int32)
        for rank, line in enumerate(self._slots.of_rows(rows)):
            self._held[:, rank] = line
            self._keys[:, rank] = self._keys_of(line, self._partitions)
        # What a newcomer must reach to be among them, in the top 33 bits.
        self._bars = self._keys[:, -2] & HIGH
        self._sieve = Sieve(self._partitions)

    def leave(self, nodes: Collection[str]) -> list[int]:
        """As the base class."""
        slots = [self._slots.give_back(node) for node in nodes]
        changes = [self._without(slot) for slot in slots]
        return changes[0] if len(changes) == 1 else sorted(set().union(*changes))

    def _without(self, slot: int) -> list[int]:
        touched, rank = np.divmod(np.flatnonzero(self._held == slot), self._count + 1)
        # Whoever ranks behind the leaver moves up.
        behind = rank[:, np.newaxis] <= np.arange(self._count)
        old, keys = self._keys[touched], np.zeros((len(touched), self._count + 1), np.uint64)
        keys[:, :-1] = np.where(behind, old[:, 1:], old[:, :-1])
        missing = np.flatnonzero(keys[:, -2] == 0)
        if len(missing):
            keys[missing] = self._completed(keys[missing], touched[missing])
        return self._settle(touched, keys, rank < self._count)

    def enter(self, node: Candidate) -> list[int]:
        """As the base class."""
        slot = self._slots.take(node.id, self._members.seeds[node.id])
        touched = self._sieve.reached_by(self._slots.words[slot], self._bars)
        old = self._keys[touched]
        key = self._sieve.column[touched][:, np.newaxis] & HIGH | np.uint64(slot)
        # One line more than is kept: whoever was pushed out must not be like the last one.
        keys = np.empty((len(touched), self._count + 2), np.uint64)
        np.maximum(old[:, :1], key, out=keys[:, :1])
        np.minimum(old, key, out=keys[:, 1:])
        np.maximum(old[:, 1:], keys[:, 1:-1], out=keys[:, 1:-1])
        unsure = _unsure(keys)
        keys = keys[:, :-1]
        if len(unsure):
            keys[unsure] = self._exact(touched[unsure])
        return self._settle(touched, keys, keys[:, -2] != old[:, -2])

    def _completed(self, keys: Words, touched: Indexes) -> Words:
        """Keys whose last holder is missing, with that one and the spare."""
        live = np.flatnonzero(self._slots.live)
        if len(live) < self._count + 2:
            return self._exact(touched)  # so few that nobody is behind the spare
        # Place 0 is of nobody: of a holder that leaves at the same time.
        slots, places = np.append(0, live), np.zeros(len(self._slots.live), np.intp)
        places[live] = np.arange(1, len(slots))
        held = places[(keys[:, :-2] & LOW).astype(np.intp)]
        words, step = self._slots.words[slots], max(1, CACHED // len(slots))
        found = np.zeros((len(keys), self._count + 2), np.uint64)
        found[:, :-3] = keys[:, :-2]
        with lent(step * len(slots)) as (work, spare, _, _):
            for start in range(0, len(keys), step):
                part = slice(start, start + step)
                block = self._partitions[touched[part], np.newaxis]
                shape = len(block), len(words)
                x, y = (a[: len(block) * len(words)].reshape(shape) for a in (work, spare))
                np.bitwise_xor(block, words, out=x)
                mix(x, y)
                lines = np.arange(len(x))
                x[:, 0] = 0
                x[lines[:, np.newaxis], held[part]] = 0
                for rank in (-3, -2, -1):
                    best = x.argmax(axis=1)
                    found[part, rank] = x[lines, best] & HIGH | slots[best].astype(np.uint64)
                    x[lines, best] = 0
        unsure = _unsure(found)
        if len(unsure):
            found[unsure, :-1] = self._exact(touched[unsure])
        return found[:, :-1]

    def _exact(self, indexes: Indexes) -> Words:
        """The keys of these partitions, by exact integers; their spares are not known."""
        keys = np.zeros((len(indexes), self._count + 1), np.uint64)
        rows = self._anew(indexes.tolist()).values()
        for rank, line in enumerate(self._slots.of_rows(rows)):
            keys[:, rank] = self._keys_of(line, self._partitions[indexes])
        return keys

    def _keys_of(self, slots: SlotArray, block: Words) -> Words:
        x = self._slots.words[slots] ^ block
        mix(x, np.empty_like(x))
        x &= HIGH
        x |= slots.astype(np.uint64)
        return x

    def _settle(self, touched: Indexes, keys: Words, renamed: Marks) -> list[int]:
        """These are the keys of these partitions from here on; some have other holders now."""
        known = keys[:, -1] != 0
        held = (keys & LOW).astype(np.int32)
        held[~known, -1] = -1
        self._keys[touched], self._held[touched] = keys, held
        self._bars[touched] = np.where(known, keys[:, -1], keys[:, -2]) & HIGH
        indexes: list[int] = touched[renamed].tolist()
        rows = zip(*self._slots.ids[held[renamed, :-1].T].tolist(), strict=True)
        self.rows = self.rows.replaced(dict(zip(indexes, rows, strict=True)))
        return indexes


def _unsure(keys: Words) -> Indexes:
    """The lines in which two neighbours are alike but for their slots."""
    alike = keys[:, 1:] ^ keys[:, :-1] <= LOW
    return np.flatnonzero(alike.any(axis=1)) if alike.any() else _NONE
