"""A member that is only keys in etcd: it comes and goes as a real node does, by single puts."""

from __future__ import annotations

import itertools
import time
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Self

from clusterkit import Node
from clusterkit.core import codec
from clusterkit.core.keys import Keys
from clusterkit.core.records import Alive, Departure, NodeRecord, Process
from clusterkit.etcd.store import EtcdStore
from clusterkit.ports import Delete, Put, Txn

GUEST = "guest"


class Guest:
    """Writes the transactions of a join and of a graceful leave, from a connection of its own."""

    def __init__(self, endpoint: str, prefix: str, *, weight: int = 100) -> None:
        self._store = EtcdStore([endpoint])
        self._keys = Keys.of(prefix, "c")
        self._weight = weight
        self._numbers = itertools.count(1)
        self._here: NodeRecord | None = None
        self.node_key = self._keys.node(GUEST)
        self.root = self._keys.root

    def move(self) -> tuple[float, int]:
        """Joins if it is not there, else leaves.

        Returns:
            When the transaction was sent (``time.perf_counter``), and its revision.
        """
        txn = self._join() if self._here is None else self._leave(self._here)
        sent = time.perf_counter()
        return sent, self._store.txn(txn, timeout=10.0).revision

    def _join(self) -> Txn:
        now = datetime.now(UTC)
        nothing = MappingProxyType[str, str]({})
        name = f"{next(self._numbers):032x}"
        node = Node(
            GUEST, "guest.test:1", nothing, None, self._weight, nothing, name, "active", now
        )
        self._here = NodeRecord(node, name, "memory", None, False, Process())
        return Txn(
            (),
            (
                Put(self.node_key, codec.encode_node(self._here)),
                Put(self._keys.alive(GUEST, name), codec.encode_alive(Alive(name))),
                Put(
                    self._keys.history(GUEST),
                    codec.history_with(b"", opened=self._here.registration),
                ),
                Put(self._keys.membership, codec.encode_membership(GUEST, now)),
            ),
        )

    def _leave(self, here: NodeRecord) -> Txn:
        self._here = None
        ended = Departure(here.registration, "graceful_shutdown", datetime.now(UTC), 0)
        return Txn(
            (),
            (
                Put(self._keys.history(GUEST), codec.history_with(b"", ended=ended)),
                Delete(self.node_key),
                Delete(self._keys.alive(GUEST, here.nonce)),
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        t: type[BaseException] | None,
        e: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._here is not None:
            self.move()
        self._store.close()
