"""Placement with more even loads than chance gives: two settings on top of ``assign``.

Both are for clusters that ask for them, as both cost: a cap makes other nodes than the one that
joins or leaves move copies, and even primaries make more of them change their node.

Pure functions of the nodes and the settings, as ``assign``: they read no past, so all nodes have
one answer, and a cluster that grows and shrinks again is where it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from .bounded import Copies, settle
from .mending import Mender
from .placement import Candidate, Row, assign
from .primaries import balance_primaries as _balance_primaries
from .shares import caps, copy_shares, zone_limits, zones_that_matter


@dataclass(frozen=True, slots=True)
class Placed:
    """A placement.

    Attributes:
        rows: The holders of every partition, in the order of the partitions' indexes.
        relaxed: The indexes, rising, of the partitions that break a limit because zones and caps
            do not go together; see ``place``. Empty without a cap.
    """

    rows: tuple[Row, ...]
    relaxed: tuple[int, ...]


def place(
    candidates: Iterable[Candidate],
    *,
    partitions: int,
    replication_factor: int,
    cluster_seed: int,
    balance_percent: int | None = None,
    balance_primaries: bool = False,
) -> Placed:
    """The holders of every partition, with or without a cap on each node's load.

    With both settings off these are the rows of ``assign``. With them too each partition has
    min(``replication_factor``, nodes with weight) distinct holders, and zones are used as evenly
    as ``assign`` uses them, except in relaxed rows.

    The cap: a node's fair share is the copies of all partitions split by weight. A node holds a
    partition once at most, so what is beyond that is split among the others. No node holds more
    than ``balance_percent`` of its fair share, rounded up. Where zones are of unequal size that
    may contradict an even spread; then the spread goes first, as it is what saves data when a zone
    fails: the shares are split among zones first, with the copies that the spread leaves each of
    them, and the cap is that percentage of those shares. So nodes of a small zone may be above the
    cap that they had without zones, but never above what their zone makes inevitable by more than
    that percentage. The partitions that these nodes rank last of all they hold are relaxed: as
    many as each node holds too many. Relaxed are also partitions, if any, whose spread is not even.

    How: the copies of ``assign`` that a full node does not accept go to the next nodes of their
    ranking; see ``clusterkit.core.bounded`` for the algorithm and its source. While no cap binds,
    the rows are those of ``assign``. The caps are rounded up or down by a hash of the node, such
    that no size of the cluster is one where all of them change.

    Movement, when one node joins or leaves: what it gains or held, and beyond that what full nodes
    turn away, as their caps fall, or take back. With 1024 partitions, 3 holders, equal nodes and
    125 percent the whole is about 1.12 times what must move at 100 nodes (median over sets of
    names), and below 1.2 times at each size up to 120. In small clusters of very different weights
    it is more, as caps bind there all the time.

    The primaries: see ``balance_primaries`` in ``clusterkit.core.primaries``. It changes no
    holders. Without it the primary is the first holder in the partition's ranking.

    Args:
        candidates: The nodes, in any order.
        partitions: How many there are, at least 1.
        replication_factor: How many holders each is to have, at least 1.
        cluster_seed: The cluster's seed, an unsigned 64-bit integer.
        balance_percent: The cap in percent of the fair share, at least 100; None for no cap.
        balance_primaries: Whether each node is to be the primary of its share of partitions.

    Raises:
        ValueError: Two candidates with one id, or a number out of its range.
    """
    if balance_percent is not None and balance_percent < 100:
        raise ValueError(
            f"balance_percent is {balance_percent}; below 100 there is no room for all copies"
        )
    nodes = [c for c in candidates if c.weight]
    rows = assign(
        nodes,
        partitions=partitions,
        replication_factor=replication_factor,
        cluster_seed=cluster_seed,
    )
    return even_out(
        rows,
        nodes,
        cluster_seed=cluster_seed,
        balance_percent=balance_percent,
        balance_primaries=balance_primaries,
    )


def even_out(
    rows: tuple[Row, ...],
    candidates: Iterable[Candidate],
    *,
    cluster_seed: int,
    balance_percent: int | None,
    balance_primaries: bool,
) -> Placed:
    """What ``place`` makes of the rows that ``assign`` gives for the same candidates."""
    nodes = sorted((c for c in candidates if c.weight), key=lambda c: c.id)
    placed = Placed(rows, ())
    if balance_percent is not None and nodes:
        placed = _bound(placed.rows, nodes, cluster_seed, balance_percent)
    if balance_primaries and nodes:
        weights = {node.id: node.weight for node in nodes}
        placed = Placed(_balance_primaries(placed.rows, weights), placed.relaxed)
    return placed


def _bound(
    rows: tuple[Row, ...], nodes: list[Candidate], cluster_seed: int, balance_percent: int
) -> Placed:
    partitions, count = len(rows), len(rows[0])
    zones = zones_that_matter(nodes)
    limits = caps(
        nodes,
        zones,
        copy_shares(nodes, zones, partitions=partitions, count=count),
        partitions=partitions,
        cluster_seed=cluster_seed,
        balance_percent=balance_percent,
    )
    copies = Copies(rows, nodes, zones, cluster_seed)
    settle(copies, [cap.soft for cap in limits])
    mender = Mender(copies, zone_limits(nodes, zones, count), [cap.hard for cap in limits])
    mender.mend()
    relaxed = mender.uneven()
    if zones:
        plain = copy_shares(nodes, {}, partitions=partitions, count=count)
        for node, (held, share) in enumerate(zip(copies.held(), plain, strict=True)):
            beyond = len(held) - ceil(share * balance_percent / 100)
            if beyond > 0:
                held.sort(key=lambda p: (copies.score(p, node), -p))
                relaxed.update(held[:beyond])
    return Placed(copies.rows(), tuple(sorted(relaxed)))
