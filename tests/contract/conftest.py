"""The stores that the contract suite holds to one wording: in memory, etcd 3.5, etcd 3.4.

Each test gets a ``Bench``: a store, a prefix of its own, and what a test needs beyond the ``Store``
protocol. One etcd server of each release serves all tests of a worker process.

An etcd 3.4 is no Python package. It is the one that ``TEST_ETCD_34`` names, or the one
on PATH if it is a 3.4; ``make test-etcd34`` gets one. Without any, its tests are not collected, and
the head of pytest's report says so; in CI that is an error.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import shutil
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from clusterkit.errors import StoreError
from clusterkit.etcd.store import EtcdStore
from clusterkit.ports import Delete, Op, Store, Txn, Watch, WatchBatch
from clusterkit.testing import EmbeddedEtcd
from clusterkit.testing.clock import VirtualClock
from clusterkit.testing.embedded import etcd_version
from clusterkit.testing.memory import MemoryServer, MemoryStore

VARIABLE = "TEST_ETCD_34"


def find_etcd_34() -> Path | None:
    """The etcd 3.4 to test with.

    Raises:
        UsageError: The variable names something else.
    """
    if named := os.environ.get(VARIABLE):
        if etcd_version(Path(named)).startswith("3.4."):
            return Path(named)
        raise pytest.UsageError(f"{VARIABLE}={named} is not an etcd 3.4 that runs")
    on_path = shutil.which("etcd")
    if on_path is not None and etcd_version(Path(on_path)).startswith("3.4."):
        return Path(on_path)
    return None


ETCD_34 = find_etcd_34()
KINDS = ["memory", "etcd"] if ETCD_34 is None else ["memory", "etcd", "etcd34"]


def pytest_configure() -> None:
    if ETCD_34 is None and os.environ.get("CI") == "true":
        raise pytest.UsageError(
            f"CI is set, and there is no etcd 3.4 for the contract tests: install Debian's "
            f"etcd-server, or name a binary by {VARIABLE}; `make test-etcd34` gets one"
        )


def pytest_report_header() -> str:
    if ETCD_34 is None:
        return (
            f"contract tests: not over etcd 3.4, there is none on PATH or in {VARIABLE} "
            "(`make test-etcd34` gets one)"
        )
    return f"contract tests: also over etcd {etcd_version(ETCD_34)} at {ETCD_34}"


TIMEOUT = 10.0
"""For calls that must succeed, and for what a watch must deliver; a busy machine is no failure."""


class Tail:
    """Reads a watch on a thread of its own, so that a test can wait with a deadline."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self._said: queue.SimpleQueue[WatchBatch | StoreError | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, name="tail", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for batch in self.watch:
                self._said.put(batch)
        except StoreError as e:
            self._said.put(e)
        else:
            self._said.put(None)

    def next(self, timeout: float = TIMEOUT) -> WatchBatch:
        """The next batch that has events."""
        deadline = time.monotonic() + timeout
        while True:
            said = self._said.get(timeout=max(0.0, deadline - time.monotonic()))
            assert isinstance(said, WatchBatch), f"the watch ended: {said!r}"
            if said.events:
                return said

    def take(self, n: int) -> list[WatchBatch]:
        return [self.next() for _ in range(n)]

    def end(self, timeout: float = TIMEOUT) -> StoreError | None:
        """How the watch ended: with an error, or with None for StopIteration."""
        deadline = time.monotonic() + timeout
        while True:
            said = self._said.get(timeout=max(0.0, deadline - time.monotonic()))
            if not isinstance(said, WatchBatch):
                self._thread.join(timeout)
                assert not self._thread.is_alive()
                return said

    def close(self) -> None:
        self.watch.close()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive(), "close() did not wake the thread that iterates"


class Bench:
    """A store under test; ``kind`` is ``memory``, ``etcd`` or ``etcd34``."""

    def __init__(
        self,
        kind: str,
        new_store: Callable[[], Store],
        compact: Callable[[int], object],
        pass_time: Callable[[float], object],
    ) -> None:
        self.kind = kind
        self.prefix = f"/contract/{uuid.uuid4().hex}/".encode()
        self.compact = compact
        self.pass_time = pass_time
        self._new_store = new_store
        self._exits = ExitStack()
        self.store = self.connect()
        self._names = itertools.count()

    def connect(self) -> Store:
        """One more store on the same data."""
        return self._exits.enter_context(closing(self._new_store()))

    def key(self, name: str = "") -> bytes:
        """A key under this test's prefix; a new one unless a name is given."""
        return self.prefix + (name or f"k{next(self._names)}").encode()

    def txn(self, *ops: Op, store: Store | None = None) -> int:
        """Carries out operations without conditions; the revision."""
        return (store or self.store).txn(Txn((), ops), timeout=TIMEOUT).revision

    def revision(self) -> int:
        return self.store.range(self.prefix, timeout=TIMEOUT).revision

    def watch(self, start_revision: int, prefix: bytes | None = None) -> Tail:
        return self.tail(self.store.watch(prefix or self.prefix, start_revision))

    def tail(self, watch: Watch) -> Tail:
        tail = Tail(watch)
        self._exits.callback(tail.close)
        return tail

    def close(self) -> None:
        self._exits.callback(self._clean)
        self._exits.close()

    def _clean(self) -> None:
        # Leases that a test left behind then end without a revision in somebody else's test.
        with closing(self._new_store()) as store:
            end = self.prefix[:-1] + bytes([self.prefix[-1] + 1])
            store.txn(Txn((), (Delete(self.prefix, end),)), timeout=TIMEOUT)


def compact_etcd(endpoint: str, revision: int) -> None:
    """Compacts over etcd's JSON gateway: no part of the code under test does it."""
    url = endpoint if endpoint.startswith("http") else f"http://{endpoint}"
    body = json.dumps({"revision": str(revision)}).encode()
    request = urllib.request.Request(f"{url}/v3/kv/compaction", body)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        answer.read()


@pytest.fixture
def memory_bench() -> Iterator[Bench]:
    clock = VirtualClock()
    with (
        MemoryServer(clock) as server,
        closing(
            Bench("memory", lambda: MemoryStore(server), server.compact, clock.advance)
        ) as bench,
    ):
        yield bench


def bench_over(kind: str, endpoint: str) -> Bench:
    return Bench(
        kind,
        lambda: EtcdStore(endpoints=[endpoint]),
        lambda revision: compact_etcd(endpoint, revision),
        threading.Event().wait,  # real time passes by itself
    )


@pytest.fixture(scope="session")
def etcd35_endpoint() -> Iterator[str]:
    """A server of its own: in one that others use, their leases end in revisions of their own."""
    with EmbeddedEtcd() as etcd:
        yield etcd.endpoint


@pytest.fixture
def etcd_bench(etcd35_endpoint: str) -> Iterator[Bench]:
    with closing(bench_over("etcd", etcd35_endpoint)) as bench:
        yield bench


@pytest.fixture(scope="session")
def etcd34_endpoint() -> Iterator[str]:
    with EmbeddedEtcd(binary=ETCD_34) as etcd:
        yield etcd.endpoint


@pytest.fixture
def etcd34_bench(etcd34_endpoint: str) -> Iterator[Bench]:
    with closing(bench_over("etcd34", etcd34_endpoint)) as bench:
        yield bench


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest) -> Bench:
    bench: Bench = request.getfixturevalue(f"{request.param}_bench")
    return bench


@pytest.fixture(params=KINDS[1:])
def real_bench(request: pytest.FixtureRequest) -> Bench:
    """Only the stores that are really etcd."""
    bench: Bench = request.getfixturevalue(f"{request.param}_bench")
    return bench
