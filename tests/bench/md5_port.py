"""The obvious algorithm: each partition sorts all nodes by an MD5 of the two names."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import md5


def place(nodes: Sequence[str], partitions: int, count: int) -> list[list[str]]:
    """The holders of each partition."""

    def score(partition: int, node: str) -> bytes:
        return md5(f"{partition}:{node}".encode(), usedforsecurity=False).digest()

    return [
        sorted(nodes, key=lambda node: score(partition, node))[:count]
        for partition in range(partitions)
    ]
