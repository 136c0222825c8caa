"""How the partitions are spread: how many each node holds, counted without making a partition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter

from .placement import Row

_SAMPLE = 512


@dataclass(frozen=True, slots=True)
class Balance:
    """The counts of one assignment. A node that holds nothing is in neither mapping.

    Attributes:
        partitions: How many there are.
        primaries: How many each node is the primary of.
        replicas: How many each node is a replica of.
        unowned: How many have no holder at all.
    """

    partitions: int
    primaries: Mapping[str, int]
    replicas: Mapping[str, int]
    unowned: int


def balance_of(rows: Sequence[Row]) -> Balance:
    """Counts an assignment. The long loops are the interpreter's own: see ``docs/admin.md``."""
    sample = rows[:_SAMPLE]
    if 4 * len(set(sample)) < 3 * len(sample):
        primaries, replicas = _by_kind(rows)
    else:
        primaries = Counter(map(itemgetter(0), filter(None, rows)))
        replicas = Counter(chain.from_iterable(rows))
        replicas.subtract(primaries)
    return Balance(
        partitions=len(rows),
        primaries=dict(primaries),
        replicas={node_id: count for node_id, count in replicas.items() if count},
        unowned=len(rows) - primaries.total(),
    )


def _by_kind(rows: Sequence[Row]) -> tuple[Counter[str], Counter[str]]:
    """Where few nodes share many partitions, most rows are like another one."""
    primaries: Counter[str] = Counter()
    replicas: Counter[str] = Counter()
    for row, count in Counter(rows).items():
        for place, node_id in enumerate(row):
            (replicas if place else primaries)[node_id] += count
    return primaries, replicas
