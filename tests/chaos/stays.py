"""The stays of nodes, read off etcd's raw revisions: the code under test has no part in it."""

from __future__ import annotations

from dataclasses import dataclass

from clusterkit.core import codec
from clusterkit.core.keys import Keys
from clusterkit.ports import WatchBatch

KEYS = Keys.of("/chaos", "c")


@dataclass(slots=True)
class Stay:
    """One registration, as etcd had it.

    Attributes:
        again: Whether its own record says that the node was here before.
        began: The revision that made it.
        ended: The revision in which its key went or got another nonce; None if it still stands.
        reason: Of a departure; ``replaced`` for another nonce on a key that stood.
        successor: The other nonce.
    """

    node_id: str
    nonce: str
    again: bool
    began: int
    lease: int = 0
    ended: int | None = None
    reason: str | None = None
    successor: str | None = None


class Stays:
    """All stays so far, by nonce, and which stand, by node."""

    def __init__(self) -> None:
        self.all: dict[str, Stay] = {}
        self.present: dict[str, str] = {}
        self.receipts: dict[str, int] = {}

    def feed(self, batch: WatchBatch) -> None:
        """One whole revision, the next one."""
        parsed = [(KEYS.parse(e.kv.key), e) for e in batch.events]
        pasts = {
            key.node_id: codec.decode_history(e.kv.value)
            for key, e in parsed
            if key is not None and key.kind == "history" and e.kind == "put"
        }
        for key, e in parsed:
            if key is None:
                continue
            if key.kind == "applied" and e.kind == "put":
                self.receipts[key.node_id] = codec.decode_receipt(e.kv.value).epoch
            if key.kind != "nodes":
                continue
            before = self.all.get(self.present.get(key.node_id, ""))
            if e.kind == "delete":
                if before is not None:
                    past = pasts.get(key.node_id)
                    end = None if past is None else past.end_of(before.nonce)
                    before.ended = batch.revision
                    before.reason = "health_check_failure" if end is None else end.reason
                    del self.present[key.node_id]
                continue
            record = codec.decode_node(key.node_id, e.kv.value)
            if before is not None:
                if before.nonce == record.nonce:
                    continue
                before.ended, before.reason = batch.revision, "replaced"
                before.successor = record.nonce
            self.present[key.node_id] = record.nonce
            self.all[record.nonce] = Stay(
                key.node_id,
                record.nonce,
                record.previous is not None,
                batch.revision,
                e.kv.lease,
            )
