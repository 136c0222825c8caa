"""Who really has the data of a partition, which is not who should have it while copies run.

A pure function of the views and receipts that a node has applied, so that all nodes name the same
sources for a copy. Only partitions in motion take space: a partition is at rest once every one of
its holders has said, by its receipt, that its hooks up to the holder's newest change succeeded.

Terms: a *gain* is one (partition, node) pair where the node becomes a holder or the primary. A gain
that needs data makes the pair *unproven* until the node's receipt reaches the gain's epoch. The
*keepers* of a partition in motion are the nodes that held it in any view since it was last at rest.
One that was still unproven when it ceased to be a holder may have all of it, a part, or nothing: a
receipt is for all partitions of a node at once, so that nobody but the node itself can tell.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

from .placement import Row
from .records import Receipt
from .rows import differences


@dataclass(frozen=True, slots=True)
class Gain:
    """A node becomes a holder (``needs_data``) or the primary of a partition."""

    index: int
    node_id: str
    epoch: int
    needs_data: bool


class Holdings:
    """The partitions in motion. Owned by one thread."""

    def __init__(self) -> None:
        self._unproven: dict[str, dict[int, int]] = {}  # node → partition → epoch of the gain
        self._waiting: dict[int, int] = {}  # partition → how many of its holders are unproven
        # partition → node → its rank: 0 if it once had all, else since when it may have a part.
        self._keepers: dict[int, dict[str, int]] = {}
        # Partitions of which nobody alive had anything when they were last given out.
        self._fresh: set[int] = set()
        # Partitions found in motion, or in other hands when not all was seen, with nobody proven:
        # any of these nodes may have them.
        self._unknown: set[int] = set()
        self._anyone: tuple[str, ...] = ()

    def assume(
        self,
        rows: Sequence[Row],
        nonces: Mapping[str, str],
        receipts: Mapping[str, Receipt],
        epoch: int,
    ) -> None:
        """Takes a first reading: whoever has no receipt for this epoch has yet to prove itself."""
        behind = {
            node_id
            for node_id, nonce in nonces.items()
            if (r := receipts.get(node_id)) is None or r.nonce != nonce or r.epoch < epoch
        }
        self._anyone = tuple(sorted(nonces))
        # A cluster in which nobody has ever given a receipt is being made in this very moment.
        young = not any(n in receipts and receipts[n].nonce == nonces[n] for n in nonces)
        for index, row in enumerate(rows):
            for node_id in row:
                if node_id in behind:
                    self._keepers[index] = {n: epoch if n in behind else 0 for n in row}
                    self._doubt(node_id, index, epoch)
            if row and behind.issuperset(row):
                self._unknown.add(index)
                if young:
                    self._fresh.add(index)

    def advance(
        self,
        old: Sequence[Row],
        new: Sequence[Row],
        *,
        epoch: int,
        reset: Collection[str],
        gone: Collection[str],
        between: Collection[str] = (),
    ) -> list[Gain]:
        """Passes from one assignment to the next; the gains are in the order of the partitions.

        Args:
            old: The rows before, empty before the first assignment.
            new: The rows now.
            epoch: The epoch of the new assignment.
            reset: The nodes whose copies are worthless: they are back with a new registration.
            gone: The nodes that are no members any more.
            between: The members that may have held any partition for a time, where assignments in
                between were not seen; empty if none was missed.
        """
        # Where one of these is unproven it was in the row, so each such partition comes up below.
        lost = {*gone, *reset}
        for node_id in lost:
            for index in self._unproven.pop(node_id, ()):
                self._uncount(index)
        if lost:
            # A keeper need not be in the row. It must not pass for one when it comes back empty.
            self._anyone = tuple(n for n in self._anyone if n not in lost)
            for index, keepers in self._keepers.items():
                self._keepers[index] = {n: r for n, r in keepers.items() if n not in lost}
        if between:
            self._anyone = tuple(sorted({*self._anyone, *between}))
        gains: list[Gain] = []
        unproven = self._unproven
        for index, before, row in _affected(old, new, reset):
            found = self._keepers.get(index)
            kept = dict(found) if found else {}
            for node_id in before:
                if node_id in lost:
                    continue
                pairs = unproven.get(node_id)
                if not pairs:
                    kept[node_id] = 0
                    continue
                rank = pairs.get(index, 0)
                if kept.get(node_id, rank) >= rank:
                    kept[node_id] = rank
                if node_id not in row and pairs.pop(index, None) is not None:
                    self._uncount(index)
            if between and all(n in lost or n not in row for n in before):
                self._unknown.add(index)  # it went from hand to hand, and who had it is not known
            if not kept and index not in self._unknown:
                self._fresh.add(index)
            for place, node_id in enumerate(row):
                if node_id not in before or node_id in reset:
                    # A keeper that is back missed writes, unless all keepers are back: then nobody
                    # who could have taken them is left.
                    needs_data = node_id not in kept or not all(
                        r == 0 and n in row and n not in before for n, r in kept.items()
                    )
                    gains.append(Gain(index, node_id, epoch, needs_data))
                    if needs_data:
                        self._doubt(node_id, index, epoch)
                elif place == 0 and before[0] != node_id:
                    waits = index in unproven.get(node_id, ())
                    gains.append(Gain(index, node_id, epoch, needs_data=waits))
            if index in self._waiting or not row:  # without a holder nobody has taken it over
                self._keepers[index] = kept
            else:
                self._forget(index)
        return gains

    def prove(self, node_id: str, epoch: int) -> list[tuple[int, tuple[str, ...]]]:
        """The node's receipt: its hooks up to ``epoch`` have succeeded.

        Returns:
            The partitions that have come to rest by this, each with its keepers.
        """
        pairs = self._unproven.get(node_id)
        if pairs is None:
            return []
        rested: list[tuple[int, tuple[str, ...]]] = []
        for index in [i for i, gained in pairs.items() if gained <= epoch]:
            del pairs[index]
            self._uncount(index)
            self._fresh.discard(index)
            if index not in self._waiting:
                rested.append((index, tuple(self._keepers.get(index, ()))))
                self._forget(index)
        if not pairs:
            del self._unproven[node_id]
        return rested

    def lower(self, epoch: int) -> None:
        """etcd has gone back: the receipts to come are for smaller epochs than those awaited."""
        for pairs in self._unproven.values():
            for index, gained in pairs.items():
                pairs[index] = min(gained, epoch)

    def sources(
        self,
        gain: Gain,
        row: Row,
        *,
        old_primary: str | None,
        receipts: Mapping[str, Receipt],
        members: Collection[str],
        again: bool = False,
    ) -> list[str]:
        """Whom to copy from: those proven to have the data, the old primary first, then by receipt.

        Then come those who may have it, or a part of it: a receipt is for all partitions of a node
        at once, so that a holder or keeper without one may have it all the same. Only a node that
        this same change makes a holder cannot, unless it has kept its copy from before.

        Each of two that wait for the same data may so be named to the other. They must not wait for
        ever: with ``again``, when all have been asked in vain, and where nobody ever had any of the
        partition, only those of a lower rank are named. The rank of a node is 0 if it had all of
        it once, else the epoch in which it first became a holder, since the partition was at rest.
        """
        proven: list[str] = []
        doubtful: list[str] = []
        keepers = self._keepers.get(gain.index, {})
        unknown = gain.index in self._unknown
        gained = self._unproven.get(gain.node_id, {}).get(gain.index)
        mine = gain.epoch if gained is None else keepers.get(gain.node_id, gained)
        ranked = again or gain.index in self._fresh
        for node_id in dict.fromkeys((*keepers, *row, *(self._anyone if unknown else ()))):
            if node_id == gain.node_id or node_id not in members:
                continue
            if node_id not in row:
                # Of anyone nothing is known, but that it was there before.
                (proven if keepers.get(node_id) == 0 else doubtful).append(node_id)
                continue
            since = self._unproven.get(node_id, {}).get(gain.index)
            if since is None:
                proven.append(node_id)
                continue
            theirs = keepers.get(node_id, since)
            same = theirs == mine and (mine == 0 or unknown) and node_id < gain.node_id
            if (theirs < mine or same) if ranked else (theirs == 0 or unknown or since != gained):
                doubtful.append(node_id)

        def order(node_id: str) -> tuple[bool, int]:
            receipt = receipts.get(node_id)
            return node_id != old_primary, -(receipt.epoch if receipt else 0)

        return sorted(proven, key=order) + sorted(doubtful, key=order)

    def surely_has_source(self, gain: Gain, row: Row, members: Collection[str]) -> bool:
        """Whether some member is one of ``sources``, as far as that is quickly told.

        It is if it is a holder that is proven to have the data, or held the partition since that
        was last at rest.
        """
        unproven = self._unproven
        for node_id in row:
            if node_id != gain.node_id and node_id in members:
                pairs = unproven.get(node_id)
                if pairs is None or gain.index not in pairs:
                    return True
        keepers = self._keepers.get(gain.index, ())
        return any(n not in row and n != gain.node_id and n in members for n in keepers)

    def keeps(self, gain: Gain) -> bool:
        """Whether the node that gains the partition has kept its copy from before."""
        return self._keepers.get(gain.index, {}).get(gain.node_id) == 0

    def is_anew(self, index: int) -> bool:
        """Whether nobody had any of it when it was given out, and no holder has it yet."""
        return index in self._fresh

    def to_move(self, gains: Iterable[Gain]) -> tuple[set[int], list[Gain]]:
        """The partitions that must reach the nodes that gain them, which have no copy of before.

        Returns:
            Their indexes, and the gains of which that depends on whether anybody else has a copy.
        """
        needed: set[int] = set()
        kept: list[Gain] = []
        for gain in gains:
            if gain.needs_data:
                keepers = self._keepers.get(gain.index)
                if keepers is None or keepers.get(gain.node_id) != 0:
                    needed.add(gain.index)
                else:
                    kept.append(gain)
        return needed, kept

    def _forget(self, index: int) -> None:
        """The partition is at rest."""
        self._keepers.pop(index, None)
        self._unknown.discard(index)
        self._fresh.discard(index)

    def _doubt(self, node_id: str, index: int, epoch: int) -> None:
        pairs = self._unproven.setdefault(node_id, {})
        if index not in pairs:
            self._waiting[index] = self._waiting.get(index, 0) + 1
        pairs[index] = epoch

    def _uncount(self, index: int) -> None:
        self._waiting[index] -= 1
        if not self._waiting[index]:
            del self._waiting[index]


def _affected(
    old: Sequence[Row], new: Sequence[Row], reset: Collection[str]
) -> Iterator[tuple[int, Row, Row]]:
    """The new rows that are others than before, or that one of the reset nodes is in."""
    if reset:
        lost = frozenset(reset)
        for index, (before, row) in enumerate(zip(chain(old, repeat(())), new, strict=False)):
            if before != row or not lost.isdisjoint(row):
                yield index, before, row
        return
    for index, before, row in differences(old, new):
        if index < len(new):
            yield index, before, row
