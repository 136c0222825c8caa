"""The thread that writes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from clusterkit.core import codec
from clusterkit.core.records import Receipt
from clusterkit.engine.departures import CloseHistory
from clusterkit.engine.effects import WriteReceipt
from clusterkit.engine.errands import Errands
from clusterkit.engine.join import Joiner
from clusterkit.engine.session import Session
from clusterkit.errors import StoreUnavailableError
from clusterkit.testing.clock import VirtualClock
from clusterkit.testing.memory import MemoryServer, MemoryStore
from tests.support.bench import KEYS, FaultyStore, eventually, profile, raising, refusing, state_of


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    clock = VirtualClock()
    with MemoryServer(clock) as server:
        yield FaultyStore(MemoryStore(server))


@pytest.fixture
def session(store: FaultyStore) -> Session:
    joiner = Joiner(store, KEYS, VirtualClock(), profile("a"), 1.0)
    return joiner.join("n1", after=None, cancelled=threading.Event())


@pytest.fixture
def errands(store: FaultyStore) -> Iterator[Errands]:
    thread = Errands(store, KEYS, "a", 1.0)
    yield thread
    thread.close(5.0)
    assert not thread._thread.is_alive()


def test_a_receipt_is_written_on_the_lease(
    store: FaultyStore, errands: Errands, session: Session
) -> None:
    errands.receipt(WriteReceipt(session, Receipt("n1", 7)))
    eventually(lambda: state_of(store).receipts, "the receipt")
    assert state_of(store).receipts == {"a": Receipt("n1", 7)}
    errands.revoke(session, slot=True)
    eventually(lambda: not state_of(store).members, "the lease is revoked")
    assert state_of(store).receipts == {}


def test_a_receipt_is_written_however_often_it_takes(
    store: FaultyStore, errands: Errands, session: Session
) -> None:
    for _ in range(2):
        store.next("txn", raising(StoreUnavailableError("nobody there")))
    errands.receipt(WriteReceipt(session, Receipt("n1", 7)))
    eventually(lambda: state_of(store).receipts, "the receipt")


@pytest.mark.parametrize("applied", [True, False])
def test_a_receipt_whose_answer_was_lost_is_written_again_only_if_it_is_not_there(
    store: FaultyStore, errands: Errands, session: Session, applied: bool
) -> None:
    older = WriteReceipt(session, Receipt("n1", 6))
    errands.receipt(older)
    eventually(lambda: errands._done is older, "an older one is there")
    before = store.range(KEYS.root, timeout=1).revision
    store.next("txn", raising(StoreUnavailableError("lost"), applied=applied))
    newer = WriteReceipt(session, Receipt("n1", 7))
    errands.receipt(newer)
    eventually(lambda: errands._done is newer, "it is known to be there")
    assert state_of(store).receipts == {"a": Receipt("n1", 7)}
    assert store.range(KEYS.root, timeout=1).revision == before + 1, "nobody hears of it twice"


def test_a_newer_receipt_takes_the_place_of_one_that_cannot_be_written(
    store: FaultyStore, errands: Errands, session: Session
) -> None:
    tried = threading.Event()
    store.always("txn", raising(StoreUnavailableError("nobody there")))
    store.next("txn", refusing(tried, StoreUnavailableError("no")))
    errands.receipt(WriteReceipt(session, Receipt("n1", 7)))
    assert tried.wait(10)
    errands.receipt(WriteReceipt(session, Receipt("n1", 8)))
    store.always("txn", None)
    eventually(lambda: state_of(store).receipts, "the receipt")
    errands.close(5.0)
    assert state_of(store).receipts == {"a": Receipt("n1", 8)}


def test_no_receipt_is_written_for_a_stay_that_is_over(
    store: FaultyStore, errands: Errands, session: Session
) -> None:
    store.revoke(session.lease_id, timeout=1)
    revision = store.range(KEYS.root, timeout=1).revision
    errands.receipt(WriteReceipt(session, Receipt("n1", 7)))
    errands.close(5.0)
    assert store.range(KEYS.root, timeout=1).revision == revision


def test_a_receipt_that_cannot_be_written_does_not_hold_up_the_rest(
    store: FaultyStore, errands: Errands, session: Session
) -> None:
    refused = raising(StoreUnavailableError("the role may not write receipts"))
    store.always("txn", refused)
    errands.receipt(WriteReceipt(session, Receipt("n1", 7)))
    other = store.grant(10, timeout=1)
    errands.revoke(Session("n2", other.id, 10, 1.0, 0.0), slot=False)
    eventually(lambda: ("revoke", other.id) in store.calls, "the revocation")


def test_closing_ends_retries(store: FaultyStore, errands: Errands, session: Session) -> None:
    tried = threading.Event()
    store.always("txn", refusing(tried, StoreUnavailableError("no")))
    errands.receipt(WriteReceipt(session, Receipt("n1", 7)))
    assert tried.wait(10)
    errands.close(5.0)
    assert not errands._thread.is_alive()


def test_a_history_is_written_only_if_it_is_still_the_same(
    store: FaultyStore, errands: Errands, session: Session
) -> None:
    state = state_of(store)
    closed = codec.history_with(state.history["a"].raw)
    errands.close_history(CloseHistory("a", state.history_revisions["a"] - 1, closed))
    errands.close_history(CloseHistory("a", state.history_revisions["a"], closed))
    eventually(lambda: state_of(store).history["a"].open is None, "the history is closed")
    errands.close(5.0)
    assert state_of(store).revision == state.revision + 1


def test_it_survives_whatever_a_store_does(
    store: FaultyStore, errands: Errands, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    store.next("revoke", raising(ZeroDivisionError("a defect")))
    store.next("revoke", raising(StoreUnavailableError("nobody there")))
    errands.revoke(session, slot=True)
    errands.revoke(session, slot=True)
    errands.receipt(WriteReceipt(session, Receipt("n1", 7)))
    eventually(lambda: state_of(store).receipts, "the receipt")
    assert [r.levelname for r in caplog.records] == ["ERROR", "WARNING"]
