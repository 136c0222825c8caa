"""When this node says, in etcd, that its partition-change hooks have succeeded."""

from __future__ import annotations

from ..core.ledger import Ledger
from ..core.membership import State
from ..core.records import Receipt
from .effects import Outbox, WriteReceipt
from .session import Session


class Receipts:
    """The receipts that one node gives. Owned by one thread."""

    def __init__(self, ledger: Ledger, node_id: str) -> None:
        self._ledger = ledger
        self._me = node_id
        self._given: Receipt | None = None
        self._initial_copies_of: str | None = None

    def begin(self) -> None:
        """A session begins: the receipt that was written went with the lease before."""
        self._given = None

    def give(self, session: Session, state: State, out: Outbox) -> None:
        """Writes a receipt when nothing is owed."""
        if not self._ledger.owes(self._me):
            self._initial_copies_of = session.nonce
        if self._ledger.empty:
            receipt = Receipt(session.nonce, state.epoch)
            if receipt != self._given:
                self._given = receipt
                out.add(WriteReceipt(session, receipt))

    @property
    def ever_done(self) -> bool:
        """Whether all of some stay of this process had arrived."""
        return self._initial_copies_of is not None

    def initial_copies_done(self, session: Session | None) -> bool:
        """Whether all that the node was to receive when it joined has arrived."""
        return session is not None and self._initial_copies_of == session.nonce
