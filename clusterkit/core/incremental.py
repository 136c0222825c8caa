"""The next assignment from the last one, by what has changed.

Always what ``placement.assign`` says of the same nodes, in a fraction of the time: a node that
comes is scored against all partitions (one column of the scores), and takes its place in the rows
that it reaches; the rows of one that goes are made anew, and no other. A node with another weight
or zone goes and comes. What makes that right:

- Rank the nodes of a partition, and let the first of each zone be in turn 0, the second in turn 1,
  and so on (a node without a zone is always in turn 0). A row is the first ``count`` nodes by turn
  and rank. So of each zone it has the first few, and a node outside of it moves none within it:
  taking that node away leaves the row as it is.
- A node that comes makes those of its zone that rank behind it one turn later. At each turn of its
  zone there is now one that ranks before or is the one of old. So whoever was outside of the row
  has no fewer before it than it had, and the new row is within the old one and the newcomer.
- Every row ends in the same turn, ``rounds`` - 1. If the newcomer's zone has at least as many nodes
  as that, it can enter a row only by ranking before one of its holders, hence before the last of
  them by rank: that one's score is the row's *floor*, by which a column is sifted. (A smaller zone
  was used up, and its newcomer enters every row: that is a full pass.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from .columns import Columns, Members
from .placement import Candidate, Ranking, vector_pays
from .rows import Rows
from .shape import Shape


class Incremental:
    """An assignment that follows its nodes. Owned by one thread.

    Attributes:
        rows: The holders of every partition; a new object whenever any of them differs.
        full_passes: How often all partitions were placed anew.
    """

    def __init__(self) -> None:
        self.rows = Rows()
        self.full_passes = 0
        self._members: Members | None = None
        self._columns: Columns | None = None

    def assign(
        self,
        candidates: Iterable[Candidate],
        *,
        partitions: int,
        replication_factor: int,
        cluster_seed: int,
    ) -> tuple[int, ...] | None:
        """Makes ``rows`` what ``placement.assign`` returns for the same arguments.

        Returns:
            The indexes of the rows that differ from before, in ascending order; None if that was
            not found out, since all partitions were placed anew.

        Raises:
            ValueError: As ``placement.assign`` does; then nothing has changed.
        """
        shape = Shape(partitions, replication_factor, cluster_seed)
        given = [c for c in candidates if c.weight]
        nodes = {c.id: c for c in given}
        if len(nodes) < len(given):
            Ranking.of(given, shape)  # says which node is there twice
        members = self._members
        if members is None or members.shape != shape:
            fresh = Members(shape)
            for node in given:
                fresh.add(node)
            self._anew(fresh)
            return None
        come = [c for c in given if members.nodes.get(c.id) != c]
        return self.change(come, [n for n in members.nodes if n not in nodes])

    def change(
        self, come: Iterable[Candidate], gone: Collection[str] = ()
    ) -> tuple[int, ...] | None:
        """Some nodes come, or come back as others than they were, and some go.

        For a caller that knows them: with a thousand nodes it takes longer to compare all than to
        place one.

        Args:
            come: The nodes that come, each id once.
            gone: The ids of those that go.

        Returns:
            As ``assign``.

        Raises:
            RuntimeError: There is no assignment yet.
        """
        members = self._members
        if members is None:
            raise RuntimeError("nothing was assigned yet: assign() comes before change()")
        newcomers = [c for c in come if members.nodes.get(c.id) != c]
        leavers = {n for n in (*gone, *(c.id for c in newcomers)) if n in members.nodes}
        newcomers = [c for c in newcomers if c.weight]
        if not leavers and not newcomers:
            return ()
        old, changes = self.rows, list[list[int]]()
        full = members.count
        # A newcomer costs a column of the scores, a leaver as many as a row has holders.
        pays = full == members.shape.replication_factor and (
            len(newcomers) + full * len(leavers) < len(members.nodes)
        )
        columns = self._columns_of(members, newcomers) if pays else None
        for node_id in leavers:
            members.remove(node_id)
        if members.count < full:
            columns = None
        elif columns is not None and leavers:
            changes.append(columns.leave(leavers))
        for newcomer in newcomers:
            if not members.has_place_for(newcomer):
                columns = None
            members.add(newcomer)
            if columns is not None:
                changes.append(columns.enter(newcomer))
        if columns is None:
            self._anew(members)
            return None
        self.rows = columns.rows
        if len(changes) == 1:
            return tuple(changes[0])
        return tuple(i for i in sorted(set().union(*changes)) if self.rows[i] != old[i])

    def _columns_of(self, members: Members, newcomers: Sequence[Candidate]) -> Columns:
        kind = Columns
        if vector_pays(members.shape.partitions * len(members.nodes)):
            kind = _vectors(ranked=members.alike(newcomers))
        if type(self._columns) is not kind:
            self._columns = kind(members, self.rows)
        return self._columns

    def _anew(self, members: Members) -> None:
        self.rows = Rows(members.ranking().all_rows(members.shape.seeds))
        self._members, self._columns = members, None
        self.full_passes += 1


def _vectors(*, ranked: bool) -> type[Columns]:
    if ranked:
        from ._ranked_columns import RankedColumns

        return RankedColumns
    from ._vector_columns import VectorColumns

    return VectorColumns
