"""One partition on its way to its holders: who is to have it, and who may have which part of it.

Terms: a *gain* is one (partition, node) pair where the node becomes a holder or the primary. A gain
that needs data makes the node *unproven* until its receipt reaches the gain's epoch. The *keepers*
are the nodes that held the partition in any view since it was last at rest. One that was still
unproven when it ceased to be a holder may have all of it, a part, or nothing: a receipt is for all
partitions of a node at once, so that nobody but the node itself can tell.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .placement import Row


@dataclass(slots=True)  # not frozen: in a burst they are many, and that would take thrice the time
class Gain:
    """A node becomes a holder (``needs_data``) or the primary of a partition."""

    index: int
    node_id: str
    epoch: int
    needs_data: bool


class Motion:
    """What is known of one partition that is not at rest.

    Attributes:
        keepers: The keepers' ranks: 0 for one that once had all of it, else the epoch since which
            it may have a part.
        unproven: The holders that are unproven, with the epoch of the newest gain of each.
        anew: Whether nobody alive had anything of it when it was last given out.
        unknown: Whether it was found in motion, or in other hands when not all was seen, with
            nobody proven: any of the nodes that were there then may have it.
    """

    __slots__ = ("anew", "keepers", "unknown", "unproven")

    def __init__(
        self,
        keepers: dict[str, int],
        unproven: dict[str, int],
        *,
        anew: bool = False,
        unknown: bool = False,
    ) -> None:
        self.keepers = keepers
        self.unproven = unproven
        self.anew = anew
        self.unknown = unknown

    def pass_on(self, before: Row, row: Row, lost: Collection[str]) -> list[str]:
        """From one row to the next: the holders before are keepers, but those that are lost.

        Returns:
            Those of them that nobody waits for any more, since they are no holders now.
        """
        keepers, unproven = self.keepers, self.unproven
        let_go: list[str] = []
        for node_id in before:
            if node_id in lost:
                continue
            since = unproven.get(node_id)
            if since is None:
                keepers[node_id] = 0
                continue
            if keepers.setdefault(node_id, since) > since:
                keepers[node_id] = since
            if node_id not in row:
                del unproven[node_id]
                let_go.append(node_id)
        return let_go

    def all_back(self, before: Row, row: Row) -> bool:
        """Whether each keeper once had all of it, held none before, and is a holder again."""
        return all(rank == 0 and n in row and n not in before for n, rank in self.keepers.items())

    def sources(
        self,
        gain: Gain,
        row: Row,
        members: Collection[str],
        *,
        again: bool,
        anyone: Sequence[str],
    ) -> tuple[list[str], list[str]]:
        """Who is proven to have the data, and who may have it: see ``Holdings.sources``.

        Of ``anyone`` each may have what is unknown.
        """
        proven: list[str] = []
        doubtful: list[str] = []
        keepers, unproven, unknown = self.keepers, self.unproven, self.unknown
        gained = unproven.get(gain.node_id)
        mine = gain.epoch if gained is None else keepers.get(gain.node_id, gained)
        ranked = again or self.anew
        for node_id in dict.fromkeys((*keepers, *row, *(anyone if unknown else ()))):
            if node_id == gain.node_id or node_id not in members:
                continue
            if node_id not in row:
                # Of anyone nothing is known, but that it was there before.
                (proven if keepers.get(node_id) == 0 else doubtful).append(node_id)
                continue
            since = unproven.get(node_id)
            if since is None:
                proven.append(node_id)
                continue
            theirs = keepers.get(node_id, since)
            same = theirs == mine and (mine == 0 or unknown) and node_id < gain.node_id
            if (theirs < mine or same) if ranked else (theirs == 0 or unknown or since != gained):
                doubtful.append(node_id)
        return proven, doubtful

    def surely_has_source(self, node_id: str, row: Row, members: Collection[str]) -> bool:
        """Whether some member is one of ``sources`` for the node, as far as that is quickly told.

        It is if it is a holder that is proven to have the data, or held the partition since that
        was last at rest.
        """
        if any(n not in self.unproven and n != node_id and n in members for n in row):
            return True
        return any(n not in row and n != node_id and n in members for n in self.keepers)
