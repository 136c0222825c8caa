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

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from .placement import Row
from .records import Receipt


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
        # partition → node → 0 if it once had all, else the epoch since which it was to receive it;
        # of a holder `_unproven` tells more.
        self._keepers: dict[int, dict[str, int]] = {}
        # partition → the nodes that began with it when nobody had any of it: what they have,
        # however little, is all that there is.
        self._origins: dict[int, set[str]] = {}
        # Partitions found in motion, with nobody proven: any of these nodes may have them.
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
        for index, row in enumerate(rows):
            for node_id in row:
                if node_id in behind:
                    self._keepers[index] = {n: epoch if n in behind else 0 for n in row}
                    self._doubt(node_id, index, epoch)
            if row and behind.issuperset(row):
                self._unknown.add(index)

    def advance(
        self,
        old: Sequence[Row],
        new: Sequence[Row],
        *,
        epoch: int,
        reset: Collection[str],
        gone: Collection[str],
    ) -> list[Gain]:
        """Passes from one assignment to the next; the gains are in the order of the partitions.

        Args:
            old: The rows before, empty before the first assignment.
            new: The rows now.
            epoch: The epoch of the new assignment.
            reset: The nodes whose copies are worthless: they are back with a new registration.
            gone: The nodes that are no members any more.
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
                self._keepers[index] = {n: e for n, e in keepers.items() if n not in lost}
            for nodes in self._origins.values():
                nodes -= lost
        gains: list[Gain] = []
        for index, row in enumerate(new):
            before = old[index] if index < len(old) else ()
            if before == row and not (reset and any(n in reset for n in row)):
                continue
            kept = dict(self._keepers.get(index, {}))
            for node_id in before:
                if node_id in lost:
                    continue
                pairs = self._unproven.get(node_id, {})
                had = index not in pairs or node_id in self._origins.get(index, ())
                if had or kept.get(node_id) != 0:
                    kept[node_id] = 0 if had else pairs[index]
                if node_id not in row and pairs.pop(index, None) is not None:
                    self._uncount(index)
            # Keepers that are back missed writes, unless nobody who could have taken them is left.
            all_back = all(e == 0 and n in row and n not in before for n, e in kept.items())
            origin = not kept and index not in self._unknown
            for place, node_id in enumerate(row):
                if node_id not in before or node_id in reset:
                    needs_data = not (all_back and node_id in kept)
                    gains.append(Gain(index, node_id, epoch, needs_data))
                    if needs_data:
                        self._doubt(node_id, index, epoch)
                    if origin:
                        self._origins.setdefault(index, set()).add(node_id)
                elif place == 0 and before[0] != node_id:
                    unproven = index in self._unproven.get(node_id, ())
                    gains.append(Gain(index, node_id, epoch, needs_data=unproven))
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
            if index not in self._waiting:
                rested.append((index, tuple(self._keepers.get(index, ()))))
                self._forget(index)
        if not pairs:
            del self._unproven[node_id]
        return rested

    def sources(
        self,
        gain: Gain,
        row: Row,
        *,
        old_primary: str | None,
        receipts: Mapping[str, Receipt],
        members: Collection[str],
    ) -> list[str]:
        """Whom to copy from: those proven to have the data, the old primary first, then by receipt.

        Then come those who may have it, or a part of it: holders that had it once and are back,
        holders that became so before the gaining node did, and keepers that never proved
        themselves. A node that this same change makes a holder is not among them, unless it has
        kept its copy from before. Of two holders neither of which has proved itself only one is
        ever named to the other, since each may refuse to be copied from until it is ready, and they
        would wait for each other for ever: the one that had all of it once, else the earlier one.
        """
        gained = self._unproven.get(gain.node_id, {}).get(gain.index, gain.epoch)
        proven: list[str] = []
        doubtful: list[str] = []
        keepers = self._keepers.get(gain.index, {})
        anyone = self._anyone if gain.index in self._unknown else ()
        # Who had all of it once comes before who may have got nothing, however early it joined.
        waits_with_a_copy = gain.index in self._unproven.get(gain.node_id, ()) and self.keeps(gain)
        target = (not waits_with_a_copy, gained, gain.node_id)
        for node_id in dict.fromkeys((*keepers, *row, *anyone)):
            if node_id == gain.node_id or node_id not in members:
                continue
            kept = keepers.get(node_id, 1)  # of `anyone` nothing is known, but that it was before
            since = self._unproven.get(node_id, {}).get(gain.index, 0) if node_id in row else kept
            if since == 0:
                proven.append(node_id)
            elif node_id not in row:
                if since < gained:
                    doubtful.append(node_id)
            elif (kept == 0 or since < gained) and (kept != 0, since, node_id) < target:
                doubtful.append(node_id)

        def rank(node_id: str) -> tuple[bool, int]:
            receipt = receipts.get(node_id)
            return node_id != old_primary, -(receipt.epoch if receipt else 0)

        return sorted(proven, key=rank) + sorted(doubtful, key=rank)

    def keeps(self, gain: Gain) -> bool:
        """Whether the node that gains the partition has kept its copy from before."""
        return self._keepers.get(gain.index, {}).get(gain.node_id) == 0

    def _forget(self, index: int) -> None:
        """The partition is at rest."""
        self._keepers.pop(index, None)
        self._origins.pop(index, None)
        self._unknown.discard(index)

    def _doubt(self, node_id: str, index: int, epoch: int) -> None:
        pairs = self._unproven.setdefault(node_id, {})
        if index not in pairs:
            self._waiting[index] = self._waiting.get(index, 0) + 1
        pairs[index] = epoch

    def _uncount(self, index: int) -> None:
        self._waiting[index] -= 1
        if not self._waiting[index]:
            del self._waiting[index]
