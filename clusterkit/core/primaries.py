"""Which holder is the primary: as even as the holders allow, and no data moves for it."""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence

from .placement import Row


def balance_primaries(rows: Sequence[Row], weights: Mapping[str, int]) -> tuple[Row, ...]:
    """Picks the primaries so that each node has its share of them, by weight.

    A node's share is the number of partitions times its part of all weights. Each node is primary
    of as many partitions as its share rounded down or up, wherever the holders allow that; else
    the sum of the squares of what is beyond those two is the least that they allow.

    A row's holders stay, and so does their order, except that the primary comes first. Partitions
    keep their first holder if they can: those that cannot are taken in the order of their indexes,
    first where both nodes gain by it, and the second holder is taken before the third. What is
    then still uneven is passed on along the shortest path over several nodes, as for the optimal
    semi-matchings of N. J. A. Harvey, R. E. Ladner, L. Lovász, T. Tamir, "Semi-matchings for
    Bipartite Graphs and Load Balancing", Journal of Algorithms 59, 2006.

    The answer hangs on nothing but the rows, the weights and the order of ids.

    Args:
        rows: The holders of each partition, the first choice for the primary first.
        weights: The weight of each node, above 0; every holder must be in it.

    Returns:
        The rows with the primary first.

    Raises:
        KeyError: A holder is not in ``weights``.
    """
    ids = sorted(weights)
    index = {node: i for i, node in enumerate(ids)}
    work = _Work([[index[node] for node in row] for row in rows], [weights[node] for node in ids])
    work.swap_directly()
    work.pass_on()
    return tuple(
        row if row[:1] == row[at : at + 1] else (row[at], *row[:at], *row[at + 1 :])
        for row, at in zip(rows, work.chosen(), strict=True)
    )


class _Work:
    """Rows of nodes' indexes, and how many partitions each node is the primary of."""

    def __init__(self, rows: list[list[int]], weights: Sequence[int]) -> None:
        total = sum(weights)
        partitions = sum(1 for row in rows if row)
        self._rows = rows
        self._primary = [row[0] if row else -1 for row in rows]
        self._low = [partitions * weight // total for weight in weights]
        self._high = [-(-partitions * weight // total) for weight in weights]
        self._count = [0] * len(weights)
        for node in self._primary:
            if node >= 0:
                self._count[node] += 1
        # What one primary less would gain, and what one more would cost, in the sum of squares.
        self._gain = [0] * len(weights)
        self._cost = [0] * len(weights)
        for node in range(len(weights)):
            self._update(node)

    def chosen(self) -> list[int]:
        """The primary's place in each row."""
        return [
            row.index(primary) if row else 0
            for row, primary in zip(self._rows, self._primary, strict=True)
        ]

    def swap_directly(self) -> None:
        """Gives partitions of nodes with too many to holders with too few, while one gains."""
        longest = max(map(len, self._rows), default=0)
        gain, cost, primary = self._gain, self._cost, self._primary
        for least in (2, 1):
            for place in range(1, longest):
                for partition, row in enumerate(self._rows):
                    if place < len(row):
                        giver, taker = primary[partition], row[place]
                        if giver != taker and gain[giver] - cost[taker] >= least:
                            primary[partition] = taker
                            self._move(giver, taker)

    def pass_on(self) -> None:
        """Moves primaries along paths from giver to taker until no path gains anything."""
        led: list[list[int]] = [[] for _ in self._count]
        for partition, node in enumerate(self._primary):
            if node >= 0:
                led[node].append(partition)
        # For nodes that a search has reached in vain: nobody beyond them costs less than that.
        vain: dict[int, int] = {}
        improved = True
        while improved:
            improved = False
            for node in range(len(led)):
                while min(self._cost) < self._gain[node] > vain.get(node, -len(self._rows) * 2):
                    if not self._pass_from(node, led, vain):
                        break
                    improved = True

    def _pass_from(self, start: int, led: list[list[int]], vain: dict[int, int]) -> bool:
        worth = self._gain[start]
        came: dict[int, tuple[int, int]] = {start: (start, -1)}
        queue = [start]
        for giver in queue:  # it grows meanwhile
            for partition in led[giver]:
                for taker in self._rows[partition]:
                    if taker in came:
                        continue
                    came[taker] = giver, partition
                    if self._cost[taker] < worth:
                        self._pass_along(start, taker, came, led)
                        vain.clear()
                        return True
                    queue.append(taker)
        vain.update((node, max(worth, vain.get(node, worth))) for node in queue)
        return False

    def _pass_along(
        self, start: int, end: int, came: dict[int, tuple[int, int]], led: list[list[int]]
    ) -> None:
        self._move(start, end)
        taker = end
        while taker != start:
            giver, partition = came[taker]
            led[giver].remove(partition)
            insort(led[taker], partition)
            self._primary[partition] = taker
            taker = giver

    def _move(self, giver: int, taker: int) -> None:
        self._count[giver] -= 1
        self._count[taker] += 1
        self._update(giver)
        self._update(taker)

    def _update(self, node: int) -> None:
        # Squares of what is beyond: beyond ** 2 - (beyond - 1) ** 2 is 2 * beyond - 1.
        count, low, high = self._count[node], self._low[node], self._high[node]
        if count > high:
            self._gain[node] = 2 * (count - high) - 1
        else:
            self._gain[node] = 0 if count > low else -2 * (low - count) - 1
        if count < low:
            self._cost[node] = -2 * (low - count) + 1
        else:
            self._cost[node] = 0 if count < high else 2 * (count - high) + 1
