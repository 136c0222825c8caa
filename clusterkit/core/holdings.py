"""Who really has the data of a partition, which is not who should have it while copies run.

A pure function of the views and receipts that a node has applied, so that all nodes name the same
sources for a copy. Only partitions in motion take space: a partition is at rest once every one of
its holders has said, by its receipt, that its hooks up to the holder's newest change succeeded.

For the terms see ``motion``, which has the rules for one partition.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, repeat

from .motion import Gain, Motion
from .placement import Row
from .records import Receipt
from .rows import differences

_AT_REST = Motion({}, {})  # each of its holders has all of it; never changed


class Holdings:
    """The partitions in motion. Owned by one thread."""

    def __init__(self) -> None:
        self._motion: dict[int, Motion] = {}
        # By node: in which partitions it is unproven, and which it has gained since the mark and
        # not let go again before it had their data.
        self._unproven: defaultdict[str, set[int]] = defaultdict(set)
        self._gained: defaultdict[str, set[int]] = defaultdict(set)
        self._regained: defaultdict[str, set[int]] = defaultdict(set)  # of these, as a keeper
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
        if not behind:
            return
        # A cluster in which nobody has ever given a receipt is being made in this very moment.
        young = not any(n in receipts and receipts[n].nonce == nonces[n] for n in nonces)
        for index, row in enumerate(rows):
            unproven = {n: epoch for n in row if n in behind}
            if unproven:
                nobody = len(unproven) == len(row)
                keepers = {n: unproven.get(n, 0) for n in row}
                self._motion[index] = Motion(
                    keepers, unproven, anew=nobody and young, unknown=nobody
                )
                for node_id in unproven:
                    self._unproven[node_id].add(index)

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
        lost = {*gone, *reset}
        if lost:
            self._lose(lost)
        if between:
            self._anyone = tuple(sorted({*self._anyone, *between}))
        gains: list[Gain] = []
        motions, waits, gained = self._motion, self._unproven, self._gained
        for index, before, row in _affected(old, new, reset):
            motion = motions.get(index)
            if motion is None:  # at rest: each of its holders has all of it
                had = [n for n in before if n not in lost] if lost else before
                motion = motions[index] = Motion(dict.fromkeys(had, 0), {})
            else:
                for node_id in motion.pass_on(before, row, lost):
                    waits[node_id].discard(index)
                    gained[node_id].discard(index)
            if between and all(n in lost or n not in row for n in before):
                motion.unknown = True  # it went from hand to hand, and who had it is not known
            if not motion.keepers and not motion.unknown:
                motion.anew = True
            keepers, unproven = motion.keepers, motion.unproven
            for node_id in row:
                if node_id not in before or node_id in reset:
                    # A keeper that is back missed writes, unless all are back: then nobody who
                    # could have taken them is left.
                    needs_data = node_id not in keepers or not motion.all_back(before, row)
                    gains.append(Gain(index, node_id, epoch, needs_data))
                    if needs_data:
                        unproven[node_id] = epoch
                        waits[node_id].add(index)
                        gained[node_id].add(index)
                        if node_id in keepers:
                            self._regained[node_id].add(index)
                elif node_id == row[0] != before[0]:
                    gains.append(Gain(index, node_id, epoch, needs_data=node_id in unproven))
            if not unproven and row:  # without a holder nobody has taken it over
                del motions[index]
        return gains

    def _lose(self, lost: Collection[str]) -> None:
        # A keeper need not be in the row. It must not pass for one when it comes back empty.
        self._anyone = tuple(n for n in self._anyone if n not in lost)
        for motion in self._motion.values():
            for node_id in lost:
                motion.keepers.pop(node_id, None)
        # Where one is unproven it is in the row, so what is at rest by this will be found so.
        for node_id in lost:
            for index in self._unproven.pop(node_id, ()):
                del self._motion[index].unproven[node_id]

    def prove(self, node_id: str, epoch: int) -> list[tuple[int, Collection[str]]]:
        """The node's receipt: its hooks up to ``epoch`` have succeeded.

        Returns:
            The partitions that have come to rest by this, each with its keepers, in their order.
        """
        rested: list[tuple[int, Collection[str]]] = []
        left: set[int] = set()
        motions = self._motion
        for index in sorted(self._unproven.pop(node_id, ())):
            motion = motions[index]
            if motion.unproven[node_id] > epoch:
                left.add(index)
                continue
            del motion.unproven[node_id]
            motion.anew = False
            if not motion.unproven:
                del motions[index]
                rested.append((index, motion.keepers))
        if left:
            self._unproven[node_id] = left
        return rested

    def lower(self, epoch: int) -> None:
        """etcd has gone back: the receipts to come are for smaller epochs than those awaited."""
        for motion in self._motion.values():
            motion.unproven = {n: min(gained, epoch) for n, gained in motion.unproven.items()}

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
        proven, doubtful = self._of(gain.index).sources(
            gain, row, members, again=again, anyone=self._anyone
        )

        def order(node_id: str) -> tuple[bool, int]:
            receipt = receipts.get(node_id)
            return node_id != old_primary, -(receipt.epoch if receipt else 0)

        return sorted(proven, key=order) + sorted(doubtful, key=order)

    def surely_has_source(self, gain: Gain, row: Row, members: Collection[str]) -> bool:
        """Whether some member is one of ``sources``, as far as that is quickly told."""
        return self._of(gain.index).surely_has_source(gain.node_id, row, members)

    def keeps(self, gain: Gain) -> bool:
        """Whether the node that gains the partition has kept its copy from before."""
        return self._of(gain.index).keepers.get(gain.node_id) == 0

    def is_anew(self, index: int) -> bool:
        """Whether nobody had any of it when it was given out, and no holder has it yet."""
        return self._of(index).anew

    def moved(self, rows: Sequence[Row]) -> tuple[set[int], set[str], list[Gain]]:
        """What had to reach the nodes that gained it since the mark, and hold it in these rows.

        Returns:
            The partitions and the nodes, of what is gained without a copy of before; and the gains
            of which it depends on whether anybody else has a copy.
        """
        moving, nodes, kept = set[int](), set[str](), list[Gain]()
        motions = self._motion
        for node_id, indexes in self._gained.items():
            waits = indexes & self._unproven.get(node_id, set())
            # Whoever has kept all of it had it already when it gained the partition.
            copies = {
                i
                for i in waits & self._regained.get(node_id, set())
                if motions[i].keepers.get(node_id) == 0
            }
            kept += [Gain(i, node_id, motions[i].unproven[node_id], True) for i in copies]
            # What nobody waits for any more has arrived, and may have gone again.
            found = (waits - copies).union(i for i in indexes - waits if node_id in rows[i])
            if found:
                nodes.add(node_id)
                moving |= found
        return moving, nodes, kept

    def mark(self) -> None:
        """From here on ``moved`` tells of what is gained after this."""
        self._gained.clear()
        self._regained.clear()

    def _of(self, index: int) -> Motion:
        return self._motion.get(index, _AT_REST)


def _affected(
    old: Sequence[Row], new: Sequence[Row], reset: Collection[str]
) -> Iterable[tuple[int, Row, Row]]:
    """The new rows that are others than before, or that one of the reset nodes is in."""
    if not reset:
        found = differences(old, new)
        return found if len(old) <= len(new) else (d for d in found if d[0] < len(new))
    lost = frozenset(reset)
    return (
        (index, before, row)
        for index, (before, row) in enumerate(zip(chain(old, repeat(())), new, strict=False))
        if before != row or not lost.isdisjoint(row)
    )
