"""What a request needs of the role of etcd's user: a permission on a range of keys. Pure.

etcd says "permission denied" and no more. What was asked for is known here, so the error says it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clusterkit.core.keys import range_end
from clusterkit.ports import Get, Put, Txn


@dataclass(frozen=True, slots=True)
class Access:
    """A permission on all keys that begin with ``prefix``."""

    permission: Literal["read", "write", "readwrite"]
    prefix: bytes

    def __str__(self) -> str:
        start = self.prefix.decode(errors="backslashreplace")
        end = range_end(self.prefix)
        if end == b"\0":
            keys = f"all keys from {start!r} on"
        else:
            keys = f"the keys from {start!r} up to {end.decode(errors='backslashreplace')!r}"
        return (
            f"{self.permission} permission on {keys}, as by `etcdctl role grant-permission "
            f"--prefix=true ROLE {self.permission} {start or repr('')}`"
        )


def access_of(txn: Txn) -> Access:
    """What a transaction needs, as one range: the deepest "folder" that has all of its keys.

    A compare is a read. With a range its end is where the range stops, mostly outside of it, so
    only the beginnings count.
    """
    ops = (*txn.success, *txn.failure)
    reads = bool(txn.compares) or any(isinstance(op, Get) for op in ops)
    writes = any(not isinstance(op, Get) for op in ops)
    keys = [compare.key for compare in txn.compares] + [op.key for op in ops]
    ranges = any(
        not isinstance(item, Put) and item.range_end is not None for item in (*txn.compares, *ops)
    )
    common = _common(keys)
    if len(keys) > 1 or ranges:
        common = common[: common.rfind(b"/") + 1]
    permission: Literal["read", "write", "readwrite"] = (
        "readwrite" if reads and writes else "write" if writes else "read"
    )
    return Access(permission, common)


def _common(keys: Sequence[bytes]) -> bytes:
    low, high = min(keys, default=b""), max(keys, default=b"")
    pairs = enumerate(zip(low, high, strict=False))
    return low[: next((at for at, (a, b) in pairs if a != b), len(low))]
