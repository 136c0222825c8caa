"""For tests, yours too: an embedded etcd, a store in memory, a virtual clock."""

from __future__ import annotations

from .embedded import EmbeddedEtcd

__all__ = ["EmbeddedEtcd"]
