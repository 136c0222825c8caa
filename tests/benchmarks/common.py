"""What the benchmarks share: kits and nodes of a cluster of its own, and a bare watch."""

from __future__ import annotations

import json
import math
import queue
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from clusterkit.etcd.store import EtcdStore
from clusterkit.sync import ClusterKit

_PAUSE = threading.Event()  # never set


@dataclass(frozen=True)
class Figure:
    """One line of the table. ``good`` is None for what has no target."""

    name: str
    value: str
    target: str = ""
    good: bool | None = None


def until(holds: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what}")
        _PAUSE.wait(0.005)


def rest(seconds: float) -> None:
    """Lets time pass that is part of what is measured."""
    _PAUSE.wait(seconds)


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that a share ``q`` of the values does not exceed."""
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]


def options(endpoint: str, prefix: str, node_id: str, **more: object) -> dict[str, Any]:
    return {
        "endpoints": endpoint,
        "prefix": prefix,
        "cluster": "c",
        "node_id": node_id,
        "address": f"{node_id}.test:1",
        "partitions": 16,
        "replication_factor": 2,
        "settle_time": 0.05,
    } | more


def new_prefix() -> str:
    return f"/figures/{uuid.uuid4().hex}"


class NodeProcess:
    """``node.py`` in a process of its own."""

    def __init__(self, given: dict[str, Any], spin_seconds: float = 0.0) -> None:
        self.said: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.node", json.dumps(given), str(spin_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.put(line.split())

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def when(self, word: str, seconds: float = 60.0) -> float:
        """The time at which it says a word; what it says before is passed over."""
        deadline = time.monotonic() + seconds
        while True:
            said = self.said.get(timeout=max(0.01, deadline - time.monotonic()))
            if said[0] == word:
                return float(said[1])

    def start(self) -> Self:
        self.tell("start")
        self.when("started")
        return self

    def kill(self) -> float:
        """SIGKILL; when."""
        at = time.monotonic()
        self._process.kill()
        self._process.wait()
        return at

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        t: type[BaseException] | None,
        e: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class BareWatch:
    """Sees deletions by etcd's own watch, without the library's engine."""

    def __init__(self, endpoint: str, prefix: bytes) -> None:
        self._store = EtcdStore([endpoint])
        revision = self._store.range(prefix, timeout=5.0).revision
        self._watch = self._store.watch(prefix, revision + 1)
        self.deleted: dict[bytes, float] = {}
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    @property
    def store(self) -> EtcdStore:
        return self._store

    def _follow(self) -> None:
        for batch in self._watch:
            at = time.monotonic()
            for event in batch.events:
                if event.kind == "delete":
                    self.deleted[event.kv.key] = at

    def close(self) -> None:
        self._watch.close()
        self._thread.join(5.0)
        self._store.close()


def start_all(kits: Sequence[ClusterKit]) -> None:
    for kit in kits:
        kit.start()


def stop_all(kits: Sequence[ClusterKit]) -> None:
    threads = [threading.Thread(target=kit.stop) for kit in kits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
