"""A number for each node, for as long as it is a member: what arrays have in place of its id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ._best import Words
from ._vector import stepped
from .placement import Row

SlotArray: TypeAlias = npt.NDArray[np.int32]


class Slots:
    """The slots of some nodes, as they come and go; one that is free is given to the next.

    Attributes:
        of: The slot of each node.
        ids: The node of each slot, or one that had it.
        words: The node's stepped seed.
        live: Whether the slot is taken.
    """

    def __init__(self, seeds: Mapping[str, int]) -> None:
        self.of = {node: slot for slot, node in enumerate(seeds)}
        self.ids = np.array(list(seeds), object)
        self.words: Words = stepped(list(seeds.values()))
        self.live = np.ones(len(seeds), np.bool_)
        self._free: list[int] = []

    def take(self, node: str, seed: int) -> int:
        """The slot of a node that comes."""
        if not self._free:
            size = len(self.ids)
            self._free.extend(range(2 * size, size - 1, -1))
            self.ids = np.concatenate((self.ids, np.empty(size + 1, object)))
            self.words = np.concatenate((self.words, np.empty(size + 1, np.uint64)))
            self.live = np.concatenate((self.live, np.zeros(size + 1, np.bool_)))
        slot = self.of[node] = self._free.pop()
        self.ids[slot] = node
        self.words[slot] = stepped([seed])[0]
        self.live[slot] = True
        return slot

    def give_back(self, node: str) -> int:
        """The slot that a node had, which has gone."""
        slot = self.of.pop(node)
        self.live[slot] = False
        self._free.append(slot)
        return slot

    def of_rows(self, rows: Iterable[Row]) -> SlotArray:
        """The slots of the holders, by rank and row."""
        of = self.of
        return np.array([[of[node] for node in line] for line in zip(*rows, strict=True)], np.int32)
