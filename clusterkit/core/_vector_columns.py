"""``columns`` with numpy where weights or zones decide: a node against all partitions at a time.

Only ``incremental`` imports this, when there is enough to do. Where the scores alone decide,
``_ranked_columns`` does the same in less time.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from ._best import HIGH, Words
from ._sieve import Indexes, Sieve
from ._slots import SlotArray, Slots
from ._vector import Grid, estimates, partition_words, scores
from .columns import Columns, Members
from .costs import SLACK
from .placement import Candidate
from .rows import Rows


class VectorColumns(Columns):
    """The same as ``Columns``. Each node has a slot, and the rows are known as slots too."""

    def __init__(self, members: Members, rows: Rows) -> None:
        super().__init__(members, rows)
        self._partitions = partition_words(self._seeds)
        self._slots = Slots(members.seeds)
        self._holders = self._slots.of_rows(rows)  # by rank and partition
        # As in the base class; of scores, the top 33 bits.
        self._bars: npt.NDArray[Any] = np.empty(0, np.uint64)
        self._sieve = Sieve(self._partitions)

    def leave(self, nodes: Collection[str]) -> list[int]:
        """As the base class."""
        marks = np.zeros(len(self._partitions), np.bool_)
        for node in nodes:
            slot = self._slots.give_back(node)
            for line in self._holders:
                marks |= line == slot
        touched = np.flatnonzero(marks)
        if not len(touched):
            return []
        grid = Grid(self._members.ranking())
        slots = np.array([self._slots.of[node] for node in grid.ids])
        places, unsure = grid.places(self._partitions[touched])
        holders = slots[places].astype(np.int32)
        doubtful = np.flatnonzero(unsure)
        if len(doubtful):
            exact = self._anew(touched[doubtful].tolist())
            holders[:, doubtful] = self._slots.of_rows(exact.values())
        return self._settle(touched, holders)

    def enter(self, node: Candidate) -> list[int]:
        """As the base class."""
        if self._weighted is not self._members.weighted:
            self._weighted = self._members.weighted
            self._bars = self._bars_of(self._holders, self._partitions)
        touched = self._reached_by(node, self._slots.take(node.id, self._members.seeds[node.id]))
        if not len(touched):
            return []
        rows = [self._with(node, index) for index in touched.tolist()]
        return self._settle(touched, self._slots.of_rows(rows))

    def _reached_by(self, node: Candidate, slot: int) -> Indexes:
        word = self._slots.words[slot]
        if not self._weighted:
            return self._sieve.reached_by(word, self._bars)
        costs = estimates(scores(word, self._partitions), np.array(node.weight, np.float64))
        return np.flatnonzero(costs <= self._bars + SLACK)

    def _bars_of(self, holders: SlotArray, block: Words) -> npt.NDArray[Any]:
        of_holders = scores(self._slots.words[holders], block)
        if not self._weighted:
            least: Words = of_holders.min(axis=0)
            return least & HIGH
        nodes = self._members.nodes
        weights = np.zeros(len(self._slots.ids))
        for node, slot in self._slots.of.items():
            weights[slot] = nodes[node].weight if node in nodes else 1.0
        greatest: npt.NDArray[np.float64] = estimates(of_holders, weights[holders]).max(axis=0)
        return greatest

    def _settle(self, touched: Indexes, holders: SlotArray) -> list[int]:
        """These are the holders of these partitions from here on."""
        differ = (self._holders[:, touched] != holders).any(axis=0)
        if not differ.all():
            touched, holders = touched[differ], holders[:, differ]
        self._holders[:, touched] = holders
        if self._weighted is not None:
            self._bars[touched] = self._bars_of(holders, self._partitions[touched])
        indexes: list[int] = touched.tolist()
        rows = zip(*self._slots.ids[holders].tolist(), strict=True)
        self.rows = self.rows.replaced(dict(zip(indexes, rows, strict=True)))
        return indexes
