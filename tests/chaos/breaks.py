"""Builds that are broken on purpose: what the validators must catch, each by one change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from clusterkit.core import membership
from clusterkit.core.membership import Left
from clusterkit.core.records import History, NodeRecord
from clusterkit.engine.session import Session
from clusterkit.etcd import EtcdStore
from clusterkit.ports import Watch


def _fencing() -> None:
    """A node never doubts its lease."""
    Session.proven = lambda self, now: True  # type: ignore[method-assign] # that is the defect


def _resume() -> None:
    """A watch that broke is resumed one revision too late."""
    watch = EtcdStore.watch
    opened: set[int] = set()

    def broken(self: EtcdStore, prefix: bytes, start_revision: int) -> Watch:
        again = id(self) in opened
        opened.add(id(self))
        return watch(self, prefix, start_revision + again)

    EtcdStore.watch = broken  # type: ignore[method-assign,assignment] # that is the defect


def _reason() -> None:
    """An expiry is told as a graceful leave."""
    loss = membership._loss

    def broken(before: NodeRecord, after: NodeRecord | None, past: History | None) -> Left | None:
        left = loss(before, after, past)
        return None if left is None else replace(left, reason="graceful_shutdown")

    membership._loss = broken


BREAKS: Final[dict[str, Callable[[], None]]] = {
    "fencing": _fencing,
    "resume": _resume,
    "reason": _reason,
}
