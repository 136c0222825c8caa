"""Placement with numpy: the same rows as ``placement``, of many partitions at a time.

Only ``placement`` and ``incremental`` import this, and only when there is enough to do. Without
weights all of it is integer arithmetic modulo 2**64, which numpy does as C does.

How: the scores of a block of partitions and a group of nodes are made by a few operations on whole
arrays that fit the processor's cache, and only each group's greatest is kept. A partition's holders
are in the ``count`` groups with the greatest of these, so those groups alone are scored again and
looked at one by one. Groups of about sqrt(nodes / count) make both parts small.

The order is taken from the top 33 bits of the scores, which the last step of ``fmix64`` leaves as
they are, so that it can be left out; below them stands which node it is. Where two that matter are
alike in those bits (two nodes among a thousand: once in ten thousand passes over as many
partitions), or two costs are too near for floating point, the partition is *unsure*: the caller
ranks it by exact integers. So every answer is exact, whatever the arithmetic of the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from math import isqrt
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ._best import Best, Marks, Places, Words, lines_sorted
from .costs import SLACK
from .hashing import MIX_1, MIX_2

if TYPE_CHECKING:
    from .placement import Ranking, Row
    from .shape import PartitionSeeds

# Arrays and no scalars: numpy would make one of each scalar in each call.
_FIRST, _SECOND, _SHIFT = (np.array(n, np.uint64) for n in (MIX_1, MIX_2, 33))
_WIDTH = 4096  # partitions at a time: a row of them fits the level-1 cache, and is worth the calls
CACHED = 3 << 14  # numbers of 8 bytes: with a second array of this size, half a level-2 cache
_ROOM = 1 << 17  # numbers that wait to be compared
_NARROW = 1024  # below that many partitions a call of numpy costs more than what it does

_kept: list[Words] = []


def all_rows(ranking: Ranking, seeds: PartitionSeeds) -> list[Row]:
    """``Ranking.all_rows``: the holders of all partitions."""
    grid = Grid(ranking)
    if not grid.ids:
        return [()] * len(seeds.each)
    places, unsure = grid.places(partition_words(seeds))
    rows = list(grid.rows(places))
    doubtful = np.flatnonzero(unsure).tolist()
    for index, row in zip(doubtful, ranking.rows(seeds.some(doubtful)), strict=True):
        rows[index] = row
    return rows


def stepped(seeds: Sequence[int]) -> Words:
    """Seeds after the first step of ``fmix64``, which can be taken before two meet."""
    words = np.array(seeds, np.uint64)
    return words ^ words >> _SHIFT


@lru_cache(maxsize=4)  # as many as there are shapes whose seeds are kept
def partition_words(seeds: PartitionSeeds) -> Words:
    """The partitions' stepped seeds, for whoever reads them: they never change either."""
    words = stepped(seeds.each)
    words.flags.writeable = False
    return words


def mix(out: Words, spare: Words) -> Words:
    """The rest of ``fmix64`` but for its last step, in place: the top 33 bits are final."""
    np.multiply(out, _FIRST, out=out)
    np.right_shift(out, _SHIFT, out=spare)
    np.bitwise_xor(out, spare, out=out)
    np.multiply(out, _SECOND, out=out)
    return out


def scores(ones: Words, others: Words) -> Words:
    """The whole score of each pair of stepped seeds; the shapes are broadcast."""
    x: Words = ones ^ others
    mix(x, np.empty_like(x))
    x ^= x >> _SHIFT
    return x


def leading(partitions: Words, nodes: Words, count: int) -> tuple[Places, Marks]:
    """The first ``count`` of the nodes for each partition by their scores.

    Args:
        partitions: The stepped seeds of the partitions, at least one.
        nodes: The stepped seeds of the nodes.
        count: At least 1, and not more than there are nodes.

    Returns:
        The nodes' places in ``nodes``, one row for each rank, and which partitions are unsure.
    """
    size = max(1, min(isqrt(3 * len(nodes) // (4 * count)), len(nodes) // count))
    groups = -(-len(nodes) // size)
    # The last group is filled up with its last node, which leaves its greatest as it is.
    padded = np.append(nodes, np.repeat(nodes[-1:], groups * size - len(nodes)))
    grouped = padded.reshape(groups, size, 1)
    first = np.arange(0, groups * size, size, dtype=np.uint64)[:, np.newaxis]
    width = min(len(partitions), _WIDTH, max(1, _ROOM // (2 * lines_sorted(count))))
    together = max(1, CACHED // (size * width))
    found = np.empty((count, len(partitions)), np.intp)
    unsure = np.empty(len(partitions), np.bool_)
    piece = max(CACHED, size * width, _ROOM // lines_sorted(count))
    with lent(piece) as (work, spare, other, room):
        for start in range(0, len(partitions), width):
            block = partitions[start : start + width]
            places = found[:, start : start + width]
            best = Best(groups, len(block), count, room, work)
            for lot in range(0, groups, together):
                some = grouped[lot : lot + together]
                shape = len(some), size, len(block)
                x, y = (a[: some.size * len(block)].reshape(shape) for a in (work, spare))
                np.bitwise_xor(some, block, out=x)
                greatest = other[: len(some) * len(block)].reshape(len(some), -1)
                np.maximum.reduce(mix(x, y), axis=1, out=greatest)
                best.take(greatest, first[lot : lot + together])
            doubt = best.numbers(places)
            if size > 1:
                best = Best(count * size, len(block), count, room, work)
                memory = [a[: size * len(block)].reshape(size, -1) for a in (spare, work, other)]
                for group in places:
                    best.take(*_members(group, padded, len(nodes), block, memory))
                doubt |= best.numbers(places)
            unsure[start : start + width] = doubt
    return found, unsure


def _members(
    first: Places, nodes: Words, real: int, block: Words, memory: Sequence[Words]
) -> tuple[Words, Words]:
    """The scores of each partition's group, which begins at ``first``, and the nodes' places."""
    x, y, places = memory
    at = places.view(np.intp)
    np.add(first, np.arange(len(x))[:, np.newaxis], out=at)
    nodes.take(at, out=x, mode="wrap")  # they are within; the other modes copy or are slower
    np.bitwise_xor(x, block, out=x)
    mix(x, y)
    if len(nodes) > real:
        np.copyto(x, 0, where=at >= real)
    return x, places


@contextmanager
def lent(words: int) -> Iterator[tuple[Words, Words, Words, Words]]:
    """Three pieces of memory of that size, and the room for the best.

    It is kept for the next time, since to be given fresh pages by the system takes longer than to
    compute what is put there. ``pop`` and ``append`` are one step each, so that no two threads
    are lent the same; whoever comes second has memory of its own.
    """
    try:
        memory = _kept.pop()
    except IndexError:
        memory = np.empty(0, np.uint64)
    if len(memory) < 3 * words + _ROOM:
        memory = np.empty(3 * words + _ROOM, np.uint64)
    work, spare, other = memory[_ROOM : _ROOM + 3 * words].reshape(3, words)
    try:
        yield work, spare, other, memory[:_ROOM]
    finally:
        if not _kept:
            _kept.append(memory)


class Grid:
    """The nodes of a ranking as arrays, and the places of partitions' holders among them."""

    def __init__(self, ranking: Ranking) -> None:
        groups = ranking.groups
        self._count = ranking.count
        self.ids = tuple(chain.from_iterable(g.ids for g in groups))
        self.nodes = stepped(list(chain.from_iterable(g.seeds for g in groups)))
        self._plain = len(groups) == 1
        if self._plain:
            return  # what follows is not asked for
        self._weights = np.array([g.weight for g in groups for _ in g.ids], np.float64)
        self._weighted = ranking.weighted
        zones = {zone: number for number, zone in enumerate({g.zone for g in groups} - {None})}
        self._alone = len(zones)
        self._zone = np.array([zones.get(g.zone, self._alone) for g in groups for _ in g.ids])
        starts = np.cumsum([0, *(len(g.ids) for g in groups)])
        self._selected = [
            (slice(start, start + len(g.ids)), g.depth)
            for start, g in zip(starts.tolist(), groups, strict=False)
            if g.depth < len(g.ids)
        ]
        whole = [g.depth == len(g.ids) for g in groups for _ in g.ids]
        self._whole = np.flatnonzero(whole)  # every node of these groups is compared with others

    def places(self, partitions: Words) -> tuple[Places, Marks]:
        """As ``leading``, of all nodes, by weights and zones."""
        if self._plain:
            return leading(partitions, self.nodes, self._count)
        lines = len(self._whole) + sum(depth for _, depth in self._selected)
        width = max(_NARROW, 4 * CACHED // lines)
        parts = [
            self._compared(partitions[start : start + width])
            for start in range(0, len(partitions), width)
        ]
        found = np.concatenate([places for places, _ in parts], axis=1)
        return found, np.concatenate([doubt for _, doubt in parts])

    def _compared(self, block: Words) -> tuple[Places, Marks]:
        doubt = np.zeros(len(block), np.bool_)
        lines = [np.broadcast_to(self._whole[:, np.newaxis], (len(self._whole), len(block)))]
        for members, depth in self._selected:
            best, unsure = leading(block, self.nodes[members], depth)
            lines.append(best + members.start)
            doubt |= unsure
        at = np.concatenate(lines)
        x = scores(self.nodes[at], block)
        if self._weighted:
            costs = estimates(x, self._weights[at] / self._weights.min())
            order = np.argsort(costs, axis=0)
            costs = np.take_along_axis(costs, order, axis=0)
            doubt |= (costs[1:] - costs[:-1] <= SLACK).any(axis=0)
        else:
            order = np.argsort(~x, axis=0)
            x = np.take_along_axis(x, order, axis=0)
            doubt |= (x[1:] == x[:-1]).any(axis=0)
        at = np.take_along_axis(at, order, axis=0)
        return (self._spread(at) if self._alone else at)[: self._count], doubt

    def _spread(self, at: Places) -> Places:
        """Turn by turn through the zones, as ``placement.spread`` does."""
        zones = self._zone[at]
        turns = np.empty_like(zones)
        used = np.zeros((self._alone + 1, at.shape[1]), np.intp)
        columns = np.arange(at.shape[1])
        for zone, turn in zip(zones, turns, strict=True):
            turn[:] = used[zone, columns]
            used[zone, columns] += 1
            used[self._alone] = 0
        return np.take_along_axis(at, np.argsort(turns, axis=0, kind="stable"), axis=0)

    def rows(self, places: Places) -> Iterator[Row]:
        """The ids at these places."""
        ids = np.array(self.ids, object)
        return zip(*(ids[line].tolist() for line in places), strict=True)


def estimates(x: Words, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``costs.estimate`` of each score and weight, within the same bound."""
    shares = (x.astype(np.float64) + 1.0) * 2.0**-64
    return -np.log(shares) / weights
