"""The greatest few of each column of many lines, some operations on whole arrays at a time.

Lines are sorted against each other by a network of compare-exchanges (K. E. Batcher, "Sorting
networks and their applications", AFIPS 1968): a maximum and a minimum of two arrays put two lines
of every column in order, and one call of numpy does that to many pairs of lines at once. To insert
line after line would be as many comparisons in several times as many calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Words: TypeAlias = npt.NDArray[np.uint64]
Places: TypeAlias = npt.NDArray[np.intp]
Marks: TypeAlias = npt.NDArray[np.bool_]
Pairs: TypeAlias = Sequence[tuple[int, int]]

# Arrays and no scalars: numpy would make one of each scalar in each call.
LOW = np.array((1 << 31) - 1, np.uint64)
HIGH = ~LOW


class Best:
    """The greatest ``count`` of each column of lines that come in parts, by their top 33 bits."""

    def __init__(self, lines: int, width: int, count: int, room: Words, spare: Words) -> None:
        """For so many lines of that width.

        Args:
            lines: How many will come, at least ``count``.
            width: The length of a line.
            count: At least 1.
            room: Memory for ``2 * lines_sorted(count)`` lines; with more there are fewer calls.
            spare: Memory for as many as ``room`` has, over ``lines_sorted(count)``.
        """
        self._count = count
        self._wanted = min(count + 1, lines)  # with one more it shows whether the last is sure
        self._depth = lines_sorted(count)
        fitting = len(room) // (width * self._depth) * self._depth
        self._lines = room[: fitting * width].reshape(fitting, width)
        self._spare = spare
        self._taken = 0

    def take(self, lines: Words, numbers: Words) -> None:
        """The next lines, and their numbers, below 2**31, of each line or of each of its places."""
        while len(lines):
            if self._taken == len(self._lines):
                best = np.stack(self._sorted())
                self._lines[: self._depth] = best
                self._taken = self._depth
            free = self._lines[self._taken : self._taken + len(lines)]
            now = len(free)
            np.bitwise_and(lines[:now], HIGH, out=free)
            np.bitwise_or(free, numbers[:now], out=free)
            lines, numbers = lines[now:], numbers[now:]
            self._taken += now

    def numbers(self, out: Places) -> Marks:
        """Puts the numbers of the greatest into ``out``, by rank, and says which are unsure."""
        best = self._sorted()[: self._wanted]
        for line, place in zip(best, out.view(np.uint64), strict=False):
            np.bitwise_and(line, LOW, out=place)
        if len(best) == 1:
            return np.zeros(out.shape[1], np.bool_)
        nearest = best[0] ^ best[1]
        difference = np.empty_like(nearest)
        for one, other in pairwise(best[1:]):
            np.bitwise_xor(one, other, out=difference)
            np.minimum(nearest, difference, out=nearest)
        doubt: Marks = nearest <= LOW
        return doubt

    def _sorted(self) -> list[Words]:
        """The first ``depth`` of what was taken; in place, so it is no longer there."""
        high = -(-self._taken // self._depth)
        self._lines[self._taken : high * self._depth] = 0
        planes = [self._lines[n * high : (n + 1) * high] for n in range(self._depth)]
        spare = self._spare[: planes[0].size].reshape(planes[0].shape)
        spare = _exchange(planes, _sorting(self._depth), spare)
        odd: list[list[Words]] = []
        while high > 1:
            if high % 2:
                odd.append([plane[-1:] for plane in planes])
            high //= 2
            others = [plane[high : 2 * high] for plane in planes]
            planes = [plane[:high] for plane in planes]
            spare = _merge(planes, others, spare[:high])
        for others in odd:
            spare = _merge(planes, others, spare)
        return [plane[0] for plane in planes]


def lines_sorted(count: int) -> int:
    """How many lines a network sorts for ``count`` of them and one more."""
    return 1 << count.bit_length()


def _merge(planes: list[Words], others: Sequence[Words], spare: Words) -> Words:
    """The greatest of two sorted stacks, as many as one has, into the first."""
    for plane, other in zip(planes, reversed(others), strict=True):
        np.maximum(plane, other, out=plane)  # now it falls and rises, or rises and falls
    return _exchange(planes, _cleaning(len(planes)), spare)


def _exchange(planes: list[Words], pairs: Pairs, spare: Words) -> Words:
    """Puts each pair in order. The spare array takes the place of one, which is returned."""
    for n, m in pairs:
        one, other = planes[n], planes[m]
        np.maximum(one, other, out=spare)
        np.minimum(one, other, out=other)
        planes[n], spare = spare, one
    return spare


@lru_cache(maxsize=8)
def _sorting(size: int) -> Pairs:
    """Batcher's odd-even merge sort of a power of two."""
    pairs = []
    run = 1
    while run < size:
        step = run
        while step:
            for start in range(step % run, size - step, 2 * step):
                for n in range(start, min(start + step, size - step)):
                    if n // (2 * run) == (n + step) // (2 * run):
                        pairs.append((n, n + step))  # noqa: PERF401
            step //= 2
        run *= 2
    return pairs


@lru_cache(maxsize=8)
def _cleaning(size: int) -> Pairs:
    """The last merge of a bitonic sort of a power of two."""
    steps = [size >> n for n in range(1, size.bit_length())]
    return [(n, n + step) for step in steps for n in range(size) if not n & step]
