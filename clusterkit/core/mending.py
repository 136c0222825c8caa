"""What deferred acceptance leaves to do when caps are tight.

A partition may be short of a holder, or spread over zones less evenly than it could be. The cure is
an augmenting path (L. R. Ford, D. R. Fulkerson, "Maximal Flow Through a Network", Canadian Journal
of Mathematics 8, 1956): a full node takes the copy and passes another one on, until a node has
room. Without zones there is such a path whenever a partition is short, as long as the caps have
room for all copies and none is above the number of partitions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from .bounded import Copies


class Mender:
    """Gives the partitions that were turned away what they are still short of.

    Args:
        copies: As ``settle`` left them.
        limits: From ``zone_limits``.
        caps: How many copies each node may hold.
    """

    def __init__(
        self, copies: Copies, limits: dict[str | None, tuple[int, int]], caps: Sequence[int]
    ) -> None:
        self._copies = copies
        self._caps = caps
        self._zoned = any(zone is not None for zone in copies.zones)
        # A node without a zone is one of its own.
        self._zone = [i if zone is None else zone for i, zone in enumerate(copies.zones)]
        self._limits = {z: limits[z if isinstance(z, str) else None] for z in self._zone}
        self._held: list[set[int]] = []

    def mend(self) -> None:
        """Mends what it can, one partition after the other."""
        copies = self._copies
        broken = [
            p
            for p in sorted(copies.changed)
            if len(copies.holders(p)) < copies.count or not self._even(copies.holders(p))
        ]
        if not broken:
            return
        self._held = [set(held) for held in copies.held()]
        for partition in broken:
            self._even_out(partition)
            while len(copies.holders(partition)) < copies.count:
                if not self._give(partition, evenly=False):
                    break

    def uneven(self) -> set[int]:
        """The partitions whose zones are not spread as evenly as the zones' sizes allow."""
        copies = self._copies
        return {p for p in copies.changed if not self._even(copies.holders(p))}

    def _used(self, holders: Iterable[int]) -> Counter[str | int]:
        return Counter(self._zone[node] for node in holders)

    def _even(self, holders: Iterable[int]) -> bool:
        if not self._zoned:
            return True
        used = self._used(holders)
        return all(low <= used[zone] <= high for zone, (low, high) in self._limits.items())

    def _even_out(self, partition: int) -> None:
        """Gives holders where the spread needs them, in place of those it can do without."""
        holders = self._copies.change(partition)
        while len(holders) < self._copies.count:
            if not self._give(partition, evenly=True):
                return
        while not self._even(holders):
            for dropped in self._superfluous(partition):
                self._drop(partition, dropped)
                if self._give(partition, evenly=True):
                    break
                self._add(partition, dropped)
            else:
                return

    def _superfluous(self, partition: int) -> list[int]:
        """The holders in zones used too much, or else in those that can spare one.

        The last of the ranking comes first. To replace one makes the row more even in either case.
        """
        holders = self._copies.holders(partition)
        used = self._used(holders)
        too_much = any(used[zone] > high for zone, (_, high) in self._limits.items())
        ranked = sorted((self._copies.rank(partition, node) for node in holders), reverse=True)
        return [
            node
            for _, _, node in ranked
            if used[self._zone[node]] > self._limits[self._zone[node]][too_much]
        ]

    def _give(self, partition: int, *, evenly: bool) -> bool:
        """Gives the partition one more holder, over the shortest path; False if there is none.

        With ``evenly`` only a holder that an even spread has a place for, and likewise for every
        partition that is passed on.
        """
        came: dict[int, tuple[int | None, int]] = {}  # from which node, and which partition it gets
        left = list(range(len(self._caps)))
        seen: set[int] = set()
        queue: list[int | None] = [None]
        for giver in queue:  # it grows meanwhile
            for moved in [partition] if giver is None else sorted(self._held[giver]):
                if moved in seen or not left:
                    continue
                seen.add(moved)
                others = self._copies.holders(moved) - {giver}
                places = self._places(others) if evenly else self._limits.keys()
                for node in left:
                    if node not in others and self._zone[node] in places:
                        came[node] = giver, moved
                        if len(self._held[node]) < self._caps[node]:
                            self._pass_on(node, came)
                            return True
                        queue.append(node)
                left = [node for node in left if node not in came]
        return False

    def _places(self, others: Iterable[int]) -> set[str | int]:
        """The zones that may have one more holder, beside these, in an even spread."""
        used = self._used(others)
        short = {zone for zone, (low, _) in self._limits.items() if used[zone] < low}
        return short or {zone for zone, (_, high) in self._limits.items() if used[zone] < high}

    def _pass_on(self, end: int, came: dict[int, tuple[int | None, int]]) -> None:
        node: int | None = end
        while node is not None:
            giver, moved = came[node]
            self._add(moved, node)
            if giver is not None:
                self._drop(moved, giver)
            node = giver

    def _add(self, partition: int, node: int) -> None:
        self._copies.change(partition).add(node)
        self._held[node].add(partition)

    def _drop(self, partition: int, node: int) -> None:
        self._copies.change(partition).remove(node)
        self._held[node].remove(partition)
