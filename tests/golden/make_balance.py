"""Writes the golden vectors of placement with caps and with even primaries.

As with those of ``assign``, a difference is a fault of the code and never of the file. It is
written anew only to add vectors before a release, with ``--force``.
"""

from __future__ import annotations

import sys

from clusterkit.core.balance import place
from clusterkit.core.placement import Candidate

from .vectors import main

Nodes = list[tuple[str, int, str | None]]


def plain(count: int) -> Nodes:
    return [(f"node-{i}", 100, None) for i in range(count)]


MIXED = [(f"pod-{i}", (50, 100, 150, 400)[i % 4], ("x", "y", None)[i % 3]) for i in range(14)]

# Partitions, replication factor, cluster seed, balance in percent, even primaries, nodes.
CLUSTERS: dict[str, tuple[int, int, int, int | None, bool, Nodes]] = {
    "nobody": (3, 2, 0, 125, True, []),
    "one node": (4, 3, 0, 100, True, plain(1)),
    "capped": (64, 3, 0, 125, False, plain(10)),
    "capped, another seed": (64, 3, 0xFEEDFACECAFEBEEF, 125, False, plain(10)),
    "no room to spare": (64, 3, 1, 100, False, plain(7)),
    "all but one node hold all but a part": (48, 3, 2, 100, False, plain(4)),
    "more nodes than copies": (8, 2, 3, 125, False, plain(30)),
    "weights": (
        64,
        3,
        4,
        125,
        False,
        [(f"n{i}", w, None) for i, w in enumerate((0, 1, 50, 100, 100, 200, 999_999, 1_000_000))],
    ),
    "zones": (64, 3, 5, 110, False, [(f"node-{i}", 100, "abc"[i % 3]) for i in range(9)]),
    "a small zone": (64, 3, 6, 125, False, [(f"n{i}", 100, "aaaabbbbcc"[i]) for i in range(10)]),
    "fewer zones than replicas": (
        64,
        5,
        7,
        105,
        False,
        [(f"n{i}", 100, "ab"[i > 4]) for i in range(8)],
    ),
    "even primaries": (64, 3, 8, None, True, plain(10)),
    "even primaries, weights": (
        64,
        2,
        9,
        None,
        True,
        [(f"node-{i}", 50 * (i + 1), None) for i in range(8)],
    ),
    "even primaries as far as one replica allows": (64, 2, 10, None, True, plain(25)),
    "all of it": (128, 3, 2**64 - 1, 115, True, MIXED),
}


def vectors() -> dict[str, list[object]]:
    """All of the file. Seeds are hexadecimal texts, as JSON promises 53 bits only."""
    entries: list[object] = []
    for name, (partitions, factor, seed, percent, primaries, nodes) in CLUSTERS.items():
        placed = place(
            [Candidate(*node) for node in nodes],
            partitions=partitions,
            replication_factor=factor,
            cluster_seed=seed,
            balance_percent=percent,
            balance_primaries=primaries,
        )
        entries.append(
            {
                "name": name,
                "partitions": partitions,
                "replication_factor": factor,
                "cluster_seed": hex(seed),
                "balance_percent": percent,
                "balance_primaries": primaries,
                "candidates": nodes,
                "rows": placed.rows,
                "relaxed": placed.relaxed,
            }
        )
    return {"place": entries}


if __name__ == "__main__":
    sys.exit(main(__doc__, "balance.json", vectors))
