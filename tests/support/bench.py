"""What the tests of single threads and calls share: a profile, a store with faults, and waiting."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar, cast

from clusterkit.core import codec, membership
from clusterkit.core.keys import Keys
from clusterkit.core.membership import State
from clusterkit.core.records import ClusterConfig, Departure, Process
from clusterkit.engine.join import Profile
from clusterkit.ports import Delete, LeaseGrant, Put, RangeResult, Store, Txn, TxnResult, Watch

T = TypeVar("T")
Fault = Callable[[Callable[[], Any]], Any]
"""Is called in place of a call, with the call itself: it may make it, not, or do more."""

KEYS = Keys.of("/clusterkit", "test")


def profile(node_id: str = "a", **changes: Any) -> Profile:
    base = Profile(
        node_id=node_id,
        address=f"{node_id}:1",
        services=MappingProxyType({}),
        zone=None,
        weight=100,
        labels=MappingProxyType({}),
        incarnation=f"inc-{node_id}",
        storage="memory",
        on_conflict="takeover",
        ttl_seconds=10,
        grace_seconds=0,
        fence_margin=1.0,
        process=Process(),
        config=ClusterConfig(8, 2, "blake2b", 1, 7),
    )
    return replace(base, **changes)


def state_of(store: Store) -> State:
    read = store.range(KEYS.root, timeout=1)
    return membership.read(KEYS, read.kvs, read.revision, read.cluster_id)


def remove_by_admin(store: Store, node_id: str) -> None:
    state = state_of(store)
    end = Departure(state.members[node_id].registration, "removed_by_admin", None, 0)
    value = codec.history_with(state.history[node_id].raw, ended=end)
    ops = (Put(KEYS.history(node_id), value), Delete(KEYS.node(node_id)))
    assert store.txn(Txn((), ops), timeout=1).succeeded


def eventually(holds: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    """Waits for a condition, and fails when its deadline has passed."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        pause.wait(0.005)


def our_threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith("clusterkit-")}


class FaultyStore:
    """A store whose next calls can be made to go wrong, each in its own way."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.calls: list[tuple[str, object]] = []
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._always: dict[str, Fault] = {}

    def next(self, call: str, fault: Fault) -> None:
        """The next call of that name that has no fault yet goes wrong like this."""
        self._faults[call].append(fault)

    def always(self, call: str, fault: Fault | None) -> None:
        """Every call of that name goes wrong like this, until told otherwise."""
        if fault is None:
            self._always.pop(call, None)
        else:
            self._always[call] = fault

    def _call(self, name: str, about: object, call: Callable[[], T]) -> T:
        self.calls.append((name, about))
        fault = self._faults[name].popleft() if self._faults[name] else self._always.get(name)
        return call() if fault is None else cast(T, fault(call))

    def range(self, prefix: bytes, *, timeout: float) -> RangeResult:
        return self._call("range", prefix, lambda: self.inner.range(prefix, timeout=timeout))

    def txn(self, txn: Txn, *, timeout: float) -> TxnResult:
        return self._call("txn", txn, lambda: self.inner.txn(txn, timeout=timeout))

    def grant(self, ttl_seconds: int, *, timeout: float) -> LeaseGrant:
        return self._call(
            "grant", ttl_seconds, lambda: self.inner.grant(ttl_seconds, timeout=timeout)
        )

    def revoke(self, lease_id: int, *, timeout: float) -> None:
        return self._call("revoke", lease_id, lambda: self.inner.revoke(lease_id, timeout=timeout))

    def keep_alive(self, lease_id: int, *, timeout: float) -> int:
        return self._call(
            "keep_alive", lease_id, lambda: self.inner.keep_alive(lease_id, timeout=timeout)
        )

    def watch(self, prefix: bytes, start_revision: int) -> Watch:
        return self._call("watch", start_revision, lambda: self.inner.watch(prefix, start_revision))

    def server_version(self, *, timeout: float) -> str:
        return self.inner.server_version(timeout=timeout)

    def close(self) -> None:
        self.inner.close()


def raising(error: BaseException, *, applied: bool = False) -> Fault:
    """The call fails; ``applied``: but not without effect, only its answer is lost."""

    def fault(call: Callable[[], Any]) -> Any:
        if applied:
            call()
        raise error.with_traceback(None)  # else the traces of all calls pile up

    return fault


def refusing(seen: threading.Event, error: BaseException) -> Fault:
    """The call fails, and it is told that it was made."""

    def fault(call: Callable[[], Any]) -> Any:
        seen.set()
        raise error.with_traceback(None)

    return fault


def first(action: Callable[[], object]) -> Fault:
    """Something else happens just before the call."""

    def fault(call: Callable[[], Any]) -> Any:
        action()
        return call()

    return fault
