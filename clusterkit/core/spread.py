"""How the partitions are spread: how many each node holds, counted without making a partition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter

from .placement import Row
from .rows import Rows

# A count of this many rows is one step of the interpreter, which nobody else has meanwhile.
_PART = 8192
_FEW = 16  # where one row in so many has changed, to look at those takes less than to count all


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
    every = list(rows)
    sample = every[:_PART]
    if 4 * len(set(sample)) < 3 * len(sample):
        primaries, replicas = _by_kind(every)
    else:
        primaries, replicas = Counter[str](), Counter[str]()
        for part in _parts(every):
            primaries.update(map(itemgetter(0), filter(None, part)))
            replicas.update(chain.from_iterable(part))
        replicas.subtract(primaries)
    return _balance(len(every), primaries, replicas)


def balance_after(balance: Balance, old: Sequence[Row], new: Sequence[Row]) -> Balance:
    """The counts of ``new``, made from those of ``old`` where few rows are others."""
    replaced = old.replaced_until(new) if isinstance(old, Rows) else None
    if replaced is None or len(replaced) * _FEW > len(new):
        return balance_of(new)
    primaries, replicas = Counter(balance.primaries), Counter(balance.replicas)
    for rows, one in ((replaced.values(), -1), (map(new.__getitem__, replaced), 1)):
        for row in rows:
            for place, node_id in enumerate(row):
                (replicas if place else primaries)[node_id] += one
    return _balance(len(new), primaries, replicas)


def _balance(partitions: int, primaries: Counter[str], replicas: Counter[str]) -> Balance:
    return Balance(
        partitions=partitions,
        primaries=_some(primaries),
        replicas=_some(replicas),
        unowned=partitions - primaries.total(),
    )


def _some(counts: Mapping[str, int]) -> dict[str, int]:
    return {node_id: count for node_id, count in counts.items() if count}


def _by_kind(rows: list[Row]) -> tuple[Counter[str], Counter[str]]:
    """Where few nodes share many partitions, most rows are like another one."""
    kinds = Counter[Row]()
    for part in _parts(rows):
        kinds.update(part)
    primaries, replicas = Counter[str](), Counter[str]()
    for row, count in kinds.items():
        for place, node_id in enumerate(row):
            (replicas if place else primaries)[node_id] += count
    return primaries, replicas


def _parts(rows: list[Row]) -> Iterator[list[Row]]:
    return (rows[start : start + _PART] for start in range(0, len(rows), _PART))
