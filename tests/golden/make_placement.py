"""Writes the golden vectors of hashing and placement: what they computed when they were released.

A cluster's data lies where these functions say, so a difference is a fault of the code and never of
the file. It is written anew only to add vectors before a release, with ``--force``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from clusterkit.core.costs import log2_fixed
from clusterkit.core.hashing import KEY_HASHES, fmix64, key_indexer, seed64
from clusterkit.core.placement import Candidate, assign

from .vectors import main

SEEDS = (0, 1, 0x0123456789ABCDEF, 2**64 - 1)
NAMES = ("", "node-0", "partition-0", "web-7f9c4d-x2x9z", "knoten-ä", "节点")
NUMBERS = (0, 1, 2, 3, 1023, 2**32 - 1, 2**32, 0x9E3779B97F4A7C15, 2**63, 2**64 - 2, 2**64 - 1)
KEYS = (
    "",
    "0",
    "1",
    "user:1",
    "user:2",
    "user:1000000",
    "order/2024/05/31",
    "3f2b8a52-6a0e-4d3e-9f61-0f7d3f1b2c4d",
    "schlüssel",
    "键",
    "\udc80",
)

Nodes = list[tuple[str, int, str | None]]


def plain(count: int) -> Nodes:
    return [(f"node-{i}", 100, None) for i in range(count)]


CLUSTERS: dict[str, tuple[int, int, int, Nodes]] = {
    "nobody": (3, 2, 0, []),
    "one node": (4, 3, 0, plain(1)),
    "equal": (64, 3, 0, plain(10)),
    "equal, another seed": (64, 3, 0xFEEDFACECAFEBEEF, plain(10)),
    "more than one block of partitions": (300, 1, 5, plain(5)),
    "many nodes": (16, 3, 9, plain(100)),
    "weights": (
        64,
        3,
        1,
        [
            (f"node-{i}", w, None)
            for i, w in enumerate((0, 1, 50, 100, 100, 200, 999_999, 1_000_000))
        ],
    ),
    "zones": (64, 3, 2, [(f"node-{i}", 100, "abc"[i % 3]) for i in range(9)]),
    "fewer zones than replicas": (64, 5, 3, [(f"n{i}", 100, "ab"[i > 4]) for i in range(8)]),
    "some without a zone": (64, 3, 4, [(f"n{i}", 7, ("a", "a", None)[i % 3]) for i in range(9)]),
    "weights and zones": (
        128,
        3,
        2**64 - 1,
        [(f"pod-{i}", (50, 100, 150, 400)[i % 4], ("x", "y", None)[i % 3]) for i in range(14)],
    ),
}


def vectors() -> dict[str, Sequence[object]]:
    """All of the file. Integers of 64 bits are hexadecimal texts, as JSON promises 53 bits only."""
    return {
        "fmix64": [[hex(x), hex(fmix64(x))] for x in NUMBERS],
        "seed64": [
            [name, hex(seed), domain, hex(seed64(name, seed, domain))]
            for name in NAMES
            for seed in SEEDS
            for domain in ("partition", "node")
        ],
        "log2_fixed": [[hex(x + 1), hex(log2_fixed(x + 1))] for x in NUMBERS],
        "key_indexer": [
            [key_hash, partitions, hex(seed), key, key_indexer(key_hash, partitions, seed)(key)]
            for key_hash in KEY_HASHES
            for partitions in (1, 64, 1000, 65536, 1048576)
            for seed in SEEDS[1:3]
            for key in KEYS
        ],
        "assign": [
            {
                "name": name,
                "partitions": partitions,
                "replication_factor": replication_factor,
                "cluster_seed": hex(seed),
                "candidates": nodes,
                "rows": assign(
                    [Candidate(*node) for node in nodes],
                    partitions=partitions,
                    replication_factor=replication_factor,
                    cluster_seed=seed,
                ),
            }
            for name, (partitions, replication_factor, seed, nodes) in CLUSTERS.items()
        ],
    }


if __name__ == "__main__":
    sys.exit(main(__doc__, "placement.json", vectors))
