"""What the integration tests share: conditions with deadlines, a recorder of hooks, and a cluster.

A ``Cluster`` lies under a prefix of its own. Its members run in this process, behind one blocking
interface whichever face they have, or as processes of their own, which can be killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar, Unpack, get_args

from clusterkit import (
    ClusterKit,
    Duration,
    Event,
    Hooks,
    KitState,
    OptionsDict,
    PartitionChangeEvent,
    RebalanceEvent,
)
from clusterkit import sync as threads
from clusterkit.core.keys import Keys
from clusterkit.etcd.store import EtcdStore
from clusterkit.hooks import HookKind
from clusterkit.ports import Put, RangeResult, Txn
from tests.support.processes import pause

T = TypeVar("T")
E = TypeVar("E", bound=Event)
Face: TypeAlias = Literal["threads", "asyncio"]

SECONDS = 20.0
"""For what must happen; a busy machine is no failure."""

REPOSITORY = Path(__file__).parents[2]
PARTITIONS = 64
"""Each cluster draws its own placement: with so many, each of a few nodes is a primary."""
_PAUSE = threading.Event()  # never set


def eventually(predicate: Callable[[], T | None], seconds: float = SECONDS) -> T:
    """Waits until the predicate returns something true, and returns that."""
    deadline = time.monotonic() + seconds
    while not (found := predicate()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {_source(predicate)}"
        _PAUSE.wait(0.01)
    return found


async def soon(predicate: Callable[[], T | None], seconds: float = SECONDS) -> T:
    """``eventually`` for coroutines."""
    deadline = time.monotonic() + seconds
    while not (found := predicate()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {_source(predicate)}"
        await asyncio.sleep(0.01)
    return found


def _source(predicate: Callable[[], object]) -> str:
    code = getattr(getattr(predicate, "func", predicate), "__code__", None)  # of a partial too
    if code is None:
        return repr(predicate)
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}"


def kit_threads() -> set[str]:
    """The names of the threads of this process that belong to kits."""
    return {t.name for t in threading.enumerate() if t.name.startswith("clusterkit")}


@dataclass(frozen=True)
class Seen:
    """One run of a hook."""

    kind: HookKind
    event: Event
    duration: timedelta | None = None


class Recorder(Hooks):
    """A registry with a hook for every kind of event, which remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Seen] = []
        for kind in get_args(HookKind):
            getattr(self, f"on_{kind}")(partial(self._note, kind))

    def _note(self, kind: HookKind, event: Event, duration: timedelta | None = None) -> None:
        self.seen.append(Seen(kind, event, duration))

    def of(self, kind: type[E]) -> list[E]:
        """The events of a type, in the order in which the hooks were told."""
        return [s.event for s in list(self.seen) if isinstance(s.event, kind)]

    def one(self, kind: type[E]) -> E:
        """The only event of a type; waits for it."""
        eventually(lambda: self.of(kind))
        found = self.of(kind)
        assert len(found) == 1, found
        return found[0]

    def kinds(self) -> list[HookKind]:
        return [s.kind for s in list(self.seen)]

    @property
    def starts(self) -> list[RebalanceEvent]:
        return self._rebalances("rebalance_start")

    @property
    def completes(self) -> list[RebalanceEvent]:
        return self._rebalances("rebalance_complete")

    def _rebalances(self, kind: HookKind) -> list[RebalanceEvent]:
        seen = list(self.seen)
        return [s.event for s in seen if s.kind == kind and isinstance(s.event, RebalanceEvent)]

    def rebalanced(self, trigger: str, node_id: str | None) -> RebalanceEvent:
        """The newest completed rebalance, once it is the one that is named."""

        def named() -> RebalanceEvent | None:
            newest = self.completes[-1:]
            return next(
                (e for e in newest if (e.trigger, e.trigger_node_id) == (trigger, node_id)), None
            )

        return eventually(named)

    def changes(self, reason: str | None = None) -> list[PartitionChangeEvent]:
        found = self.of(PartitionChangeEvent)
        return [e for e in found if reason in (None, e.change_reason)]

    def clear(self) -> None:
        self.seen.clear()


class Member:
    """A kit behind one blocking interface; the asyncio face runs on ``loop``."""

    def __init__(self, kit: threads.ClusterKit | ClusterKit, loop: Loop) -> None:
        self.kit = kit
        self._loop = loop

    def start(self) -> None:
        if isinstance(self.kit, ClusterKit):
            self._loop.run(self.kit.start())
        else:
            self.kit.start()

    def stop(self, timeout: Duration | None = None) -> None:
        if isinstance(self.kit, ClusterKit):
            self._loop.run(self.kit.stop(timeout=timeout))
        else:
            self.kit.stop(timeout=timeout)

    def wait_ready(self, timeout: Duration | None = SECONDS) -> None:
        if isinstance(self.kit, ClusterKit):
            self._loop.run(self.kit.wait_ready(timeout))
        else:
            self.kit.wait_ready(timeout)

    def wait_converged(self, timeout: Duration | None = SECONDS) -> None:
        if isinstance(self.kit, ClusterKit):
            self._loop.run(self.kit.wait_converged(timeout))
        else:
            self.kit.wait_converged(timeout)

    def wait_stopped(self) -> None:
        if isinstance(self.kit, ClusterKit):
            self._loop.run(self.kit.wait_stopped())
        else:
            assert self.kit.wait_stopped(SECONDS)

    def rejoin(self) -> None:
        if isinstance(self.kit, ClusterKit):
            self._loop.run(self.kit.rejoin())
        else:
            self.kit.rejoin()

    def rebalance(self, reason: str = "") -> int:
        if isinstance(self.kit, ClusterKit):
            return self._loop.run(self.kit.rebalance(reason))
        return self.kit.rebalance(reason)

    def holds(self, node_id: str) -> tuple[set[str], set[str]]:
        """What a node is the primary, and a replica, of, in this member's view."""
        held = self.kit.partitions_of(node_id)
        owned = {p.id for p in held if p.primary is not None and p.primary.id == node_id}
        return owned, {p.id for p in held} - owned


class Loop:
    """An event loop on a thread of its own, started when it is first needed."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="application")
            self._thread.start()
        return self._loop

    def run(self, coroutine: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(SECONDS * 2)

    def close(self) -> None:
        if self._loop is not None and self._thread is not None:
            self.run(self._loop.shutdown_default_executor())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(SECONDS)
            self._loop.close()


class NodeProcess:
    """A node in a process of its own: ``node_program.py``, told its options."""

    def __init__(self, options: dict[str, object]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("node_program.py")), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def joined(self) -> NodeProcess:
        """Waits until it has joined; its words if it could not."""
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        assert said == "joined", said
        return self

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()
        self._close()

    def freeze(self) -> None:
        """SIGSTOP, until ``thaw``."""
        pause(self._process)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Asks it to stop gracefully, and waits for its end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(SECONDS) == 0
        self._close()

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def end(self) -> None:
        """Whatever became of it, it is over."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._close()


class Cluster:
    """A cluster of its own on an etcd that others use too."""

    def __init__(self, endpoint: str, face: Face = "threads") -> None:
        self.face = face
        self.defaults: OptionsDict = {
            "endpoints": endpoint,
            "prefix": f"/integration/{uuid.uuid4().hex}",
            "cluster": "c",
            "partitions": PARTITIONS,
            "replication_factor": 2,
            "settle_time": 0.05,
            "environ": {},
        }
        self.loop = Loop()
        self._exits = ExitStack()
        self._exits.callback(self.loop.close)
        self._store = EtcdStore(endpoints=[endpoint])
        self._exits.callback(self._store.close)

    def member(
        self, node_id: str, /, *, face: Face | None = None, **options: Unpack[OptionsDict]
    ) -> Member:
        """A member that has not been started."""
        given: OptionsDict = {
            **self.defaults,
            "node_id": node_id,
            "address": f"{node_id}.test:8000",
            **options,
        }
        made = threads.ClusterKit if (face or self.face) == "threads" else ClusterKit
        member = Member(made(**given), self.loop)
        self._exits.callback(member.stop, 5.0)
        return member

    def node(
        self, node_id: str, /, *, face: Face | None = None, **options: Unpack[OptionsDict]
    ) -> Member:
        """A member that has joined."""
        member = self.member(node_id, face=face, **options)
        member.start()
        return member

    def process(self, node_id: str, **options: object) -> NodeProcess:
        """A node in a process of its own, with the shortest TTL unless told otherwise."""
        given: dict[str, object] = {**self.defaults, "node_id": node_id, "lease_ttl": 2}
        given["address"] = f"{node_id}.test:8001"
        del given["environ"]
        process = NodeProcess(given | options)
        self._exits.callback(process.end)
        return process

    @property
    def keys(self) -> Keys:
        return Keys.of(self.defaults["prefix"], self.defaults["cluster"])

    def put(self, key: bytes, value: bytes) -> int:
        """Writes to etcd past the library, as a stranger would."""
        return self._store.txn(Txn((), (Put(key, value),)), timeout=SECONDS).revision

    def read(self, prefix: bytes | None = None) -> RangeResult:
        return self._store.range(prefix or self.keys.root, timeout=SECONDS)

    def close(self) -> None:
        self._exits.close()


def agree(members: Sequence[Member]) -> None:
    """Waits until the members have the same view, and all of their hooks are done."""

    def calm() -> bool:
        stats = [m.kit.stats() for m in members]
        busy = any(s.hooks_running or s.hooks_queued for s in stats)
        owed = any(m.kit.owed() for m in members)
        return not busy and not owed and len({s.revision for s in stats}) == 1

    eventually(calm)


def is_state(member: Member, state: KitState) -> Callable[[], bool]:
    return lambda: member.kit.state is state
