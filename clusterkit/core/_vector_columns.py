"""``columns`` with numpy: a node against 65,536 partitions takes a tenth of a millisecond.

Only ``incremental`` imports this, when there is enough to do. As in ``_vector``, scores are
compared by their top 33 bits, and where those do not decide, exact integers do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ._best import HIGH, Best, Words, lines_sorted
from ._vector import Grid, estimates, leading, mix, scores, stepped
from .columns import Columns, Members
from .costs import SLACK
from .placement import Candidate, Row
from .rows import Rows

Indexes: TypeAlias = npt.NDArray[np.intp]
Slots: TypeAlias = npt.NDArray[np.int32]

_STRIPE = 1 << 16  # partitions at a time, in memory that stays at hand


class VectorColumns(Columns):
    """The same as ``Columns``. Each node has a slot, and the rows are known as slots too."""

    def __init__(self, members: Members, rows: Rows) -> None:
        super().__init__(members, rows)
        ids = list(members.nodes)
        self._partitions = stepped(self._seeds.each)
        self._slots = {node: slot for slot, node in enumerate(ids)}
        self._free: list[int] = []
        self._ids = np.array(ids, object)
        self._words = stepped([members.seeds[node] for node in ids])
        self._live = np.ones(len(ids), np.bool_)
        self._holders = self._slots_of(rows)  # by rank and partition
        self._marks = np.empty(len(self._partitions), np.bool_)
        self._work = np.empty((2, min(_STRIPE, len(self._partitions))), np.uint64)
        # As in the base class; of scores, the top 33 bits.
        self._bars: Words | npt.NDArray[np.float64] = np.empty(0, np.uint64)

    def leave(self, nodes: Collection[str]) -> list[int]:
        """As the base class."""
        marks = np.zeros_like(self._marks)
        for node in nodes:
            slot = self._slots.pop(node)
            self._live[slot] = False
            self._free.append(slot)
            for line in self._holders:
                marks |= line == slot
        touched = np.flatnonzero(marks)
        if not len(touched):
            return []
        block = self._partitions[touched]
        if self._plain:
            slots = np.flatnonzero(self._live)
            places, unsure = leading(block, self._words[slots], len(self._holders))
        else:
            grid = Grid(self._members.ranking())
            slots = np.array([self._slots[node] for node in grid.ids])
            places, unsure = grid.places(block)
        holders = slots[places].astype(np.int32)
        doubtful = np.flatnonzero(unsure)
        if len(doubtful):
            exact = self._anew(touched[doubtful].tolist())
            holders[:, doubtful] = self._slots_of(exact.values())
        return self._settle(touched, holders)

    def enter(self, node: Candidate) -> list[int]:
        """As the base class."""
        if self._weighted is not self._members.weighted:
            self._weighted = self._members.weighted
            self._bars = self._bars_of(self._holders, self._partitions)
        slot = self._take_slot(node.id)
        touched = self._reached_by(node, slot)
        if not len(touched):
            return []
        old = self._holders[:, touched]
        if self._plain:
            both = np.concatenate((old, np.full((1, len(touched)), slot, np.int32)))
            room = np.empty((3, lines_sorted(len(old)) * len(touched)), np.uint64)
            best = Best(len(both), len(touched), len(old), room[:2].reshape(-1), room[2])
            numbers = np.arange(len(both), dtype=np.uint64)[:, np.newaxis]
            best.take(self._top_bits(both, self._partitions[touched]), numbers)
            order = np.empty(old.shape, np.intp)
            unsure = best.numbers(order)
            holders = both[order, np.arange(len(touched))]
            doubtful = np.flatnonzero(unsure)
        else:
            holders, doubtful = old, np.arange(len(touched))
        if len(doubtful):
            exact = [self._with(node, index) for index in touched[doubtful].tolist()]
            holders[:, doubtful] = self._slots_of(exact)
        return self._settle(touched, holders)

    @property
    def _plain(self) -> bool:
        """Whether the scores alone decide."""
        return not self._members.weighted and not self._members.zones

    def _slots_of(self, rows: Iterable[Row]) -> Slots:
        slots = self._slots
        return np.array(
            [[slots[node] for node in line] for line in zip(*rows, strict=True)], np.int32
        )

    def _take_slot(self, node_id: str) -> int:
        if not self._free:
            size = len(self._ids)
            self._free.extend(range(2 * size, size - 1, -1))
            self._ids = np.concatenate((self._ids, np.empty(size + 1, object)))
            self._words = np.concatenate((self._words, np.empty(size + 1, np.uint64)))
            self._live = np.concatenate((self._live, np.zeros(size + 1, np.bool_)))
        slot = self._slots[node_id] = self._free.pop()
        self._ids[slot] = node_id
        self._words[slot] = stepped([self._members.seeds[node_id]])[0]
        self._live[slot] = True
        return slot

    def _top_bits(self, slots: Slots, block: Words) -> Words:
        x = self._words[slots]
        x ^= block
        return mix(x, np.empty_like(x))

    def _reached_by(self, node: Candidate, slot: int) -> Indexes:
        word, total = self._words[slot], len(self._partitions)
        if self._weighted:
            costs = estimates(scores(word, self._partitions), np.array(node.weight, np.float64))
            return np.flatnonzero(costs <= self._bars + SLACK)
        for start in range(0, total, _STRIPE):
            end = min(start + _STRIPE, total)
            x, spare = self._work[:, : end - start]
            np.bitwise_xor(self._partitions[start:end], word, out=x)
            mix(x, spare)
            np.greater_equal(x, self._bars[start:end], out=self._marks[start:end])
        return np.flatnonzero(self._marks)

    def _bars_of(self, holders: Slots, block: Words) -> Words | npt.NDArray[np.float64]:
        if not self._weighted:
            least: Words = self._top_bits(holders, block).min(axis=0)
            return least & HIGH
        nodes = self._members.nodes
        weights = np.zeros(len(self._ids))
        for node, slot in self._slots.items():
            weights[slot] = nodes[node].weight if node in nodes else 1.0
        costs = estimates(scores(self._words[holders], block), weights[holders])
        greatest: npt.NDArray[np.float64] = costs.max(axis=0)
        return greatest

    def _settle(self, touched: Indexes, holders: Slots) -> list[int]:
        """These are the holders of these partitions from here on."""
        differ = (self._holders[:, touched] != holders).any(axis=0)
        if not differ.all():
            touched, holders = touched[differ], holders[:, differ]
        self._holders[:, touched] = holders
        if self._weighted is not None:
            self._bars[touched] = self._bars_of(holders, self._partitions[touched])
        indexes: list[int] = touched.tolist()
        rows = zip(*self._ids[holders].tolist(), strict=True)
        self.rows = self.rows.replaced(dict(zip(indexes, rows, strict=True)))
        return indexes
