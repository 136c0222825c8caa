"""The node of a chaos run: joins, works under ``guard``, and records what it sees and does.

Its one argument is a JSON object (see ``Life`` in ``nodes.py``, which starts it). It says
``loaded`` in its record, waits for the line ``go``, then runs until the line ``stop`` (it leaves)
or the end of its standard input (it ends as it is).
"""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any, get_args

from clusterkit import _compose
from clusterkit.core.records import Process
from clusterkit.engine import effects as fx
from clusterkit.engine import messages
from clusterkit.engine import runner as engine
from clusterkit.engine.watcher import Changed, Reread, WatchBroke
from clusterkit.errors import ClusterKitError, KitStateError, NotOwnerError, StoreError
from clusterkit.errors import FencedError as Fenced
from clusterkit.etcd import EtcdStore
from clusterkit.events import Event, PartitionRoleEvent
from clusterkit.hooks import HookKind
from clusterkit.sync import ClusterKit

from .breaks import BREAKS
from .records import Recorder, now, rows_hash

_WORK_SECONDS = 0.05
_RETRY_SECONDS = 0.2
_HOOK_SECONDS = 0.01
_SLOW_WORK_SECONDS = 0.4


class _Logs(logging.Handler):
    """Warnings, and what ClusterKit itself calls a defect, go into the record."""

    def __init__(self, record: Recorder) -> None:
        super().__init__(logging.WARNING)
        self._record = record

    def emit(self, record: logging.LogRecord) -> None:
        defect = record.exc_info is not None or record.levelno >= logging.CRITICAL
        text = self.format(record)
        self._record("log", level=record.levelname, defect=defect, text=text)


def record_views(record: Recorder) -> None:
    """Has every runner of this process record what it applies and what it publishes."""
    tell, carry_out = engine.Runner._tell, engine.Runner._carry_out
    how = {"": "other"}  # of the one runner that there is: how its newest message came
    handed: dict[int, str] = {}  # how revisions came that are not published yet

    def telling(self: engine.Runner, message: Any) -> list[fx.Effect]:
        match message:
            case messages.Begin():
                how[""] = "start"
            case messages.Expect(nonce):
                record("expect", nonce=nonce)
            case Changed():
                how[""] = "watch"
                handed[message.batch.revision] = "watch"
            case Reread():
                how[""] = "reread"
                handed[message.result.revision] = "reread"
                record("reread", reason=message.reason, rev=message.result.revision)
            case WatchBroke(error):
                record("broke", error=str(error))
        try:
            return tell(self, message)
        finally:
            if not isinstance(message, messages.Begin | Changed | Reread):
                how[""] = "other"

    def carrying_out(self: engine.Runner, effect: fx.Effect) -> None:
        carry_out(self, effect)
        if isinstance(effect, fx.Publish):
            s = effect.snapshot
            # Revisions that waited for the answer to a join are applied one by one, and only the
            # last is published.
            steps = [step for step in handed.items() if step[0] <= s.view.revision]
            waited = how[""] == "other" and s.view.revision in handed
            handed.clear()
            record(
                "view",
                rev=s.view.revision,
                epoch=s.epoch,
                rows=rows_hash(s.rows),
                members={node_id: s.state.members[node_id].nonce for node_id in s.view.nodes},
                how="held" if waited else how[""],
                steps=steps if waited else [],
                kit=str(s.kit_state),
                session=None if s.session is None else s.session.nonce,
            )

    engine.Runner._tell = telling  # type: ignore[method-assign] # watched from outside
    engine.Runner._carry_out = carrying_out  # type: ignore[method-assign] # as above


def record_renewals(record: Recorder) -> None:
    """Records what etcd has promised: how long a lease lives, from before it was asked."""
    renew = EtcdStore.keep_alive

    def renewing(self: EtcdStore, lease_id: int, *, timeout: float) -> int:
        asked = now()
        ttl = renew(self, lease_id, timeout=timeout)
        record("renewed", at=asked, lease=lease_id, ttl=ttl)
        return ttl

    EtcdStore.keep_alive = renewing  # type: ignore[method-assign] # watched from outside


def on_event(record: Recorder, kind: str, event: Event, *_: object) -> None:
    """The hook for every kind of event."""
    fields: dict[str, object] = {"kind": kind, "id": event.event_id, "rev": event.revision}
    for name in ("reason", "partition_id", "failed_event"):
        if hasattr(event, name):
            fields[name] = str(getattr(event, name))
    if hasattr(event, "node"):
        fields["node"] = event.node.id
    if isinstance(event, PartitionRoleEvent):
        fields |= {"old_role": event.old_role, "new_role": event.new_role}
    record("hook", **fields)
    threading.Event().wait(_HOOK_SECONDS)  # the work
    record("ended", kind=kind, id=event.event_id)


class Storage:
    """The far end of ``storage.py``."""

    def __init__(self, port: int, node_id: str, life: str) -> None:
        self._who = {"node": node_id, "life": life}
        self._file = socket.create_connection(("127.0.0.1", port)).makefile("rw")

    def write(self, partition: int, epoch: int) -> bool:
        self._file.write(json.dumps({**self._who, "p": partition, "e": epoch}) + "\n")
        self._file.flush()
        return self._file.readline() == "ok\n"


def work(
    kit: ClusterKit, storage: Storage, rng: random.Random, record: Recorder, over: threading.Event
) -> None:
    """Writes to random partitions, each time under a new guard, sometimes long after it."""
    count = len(kit.partitions())
    last = ""
    while not over.wait(_WORK_SECONDS):
        mine = [
            p.index
            for p in kit.partitions_of(kit.node_id)
            if p.primary is not None and p.primary.id == kit.node_id
        ]
        index = rng.choice(mine) if mine else rng.randrange(count)
        asked = now()
        try:
            guard = kit.guard(f"partition-{index}")
        except (Fenced, NotOwnerError, KitStateError) as e:
            if type(e).__name__ != last:
                last = type(e).__name__
                record("refused", at=asked, p=index, error=last)
            continue
        last = ""
        record("guard", at=asked, p=index, e=guard.epoch)
        if rng.random() < 0.1:
            over.wait(rng.random() * _SLOW_WORK_SECONDS)
        accepted = storage.write(index, guard.epoch)
        record("write", p=index, e=guard.epoch, ok=accepted)


def start(told: dict[str, Any], record: Recorder, stopping: threading.Event) -> ClusterKit | None:
    """Joins, however long etcd does not answer."""

    def on_node(event: Event) -> None:
        on_event(record, event.event_id.partition("/")[0], event)

    while not stopping.is_set():
        kit = ClusterKit(**told["options"])
        # One function for all that happens to nodes: it is called in the order of the revisions.
        for kind in get_args(HookKind):
            news = on_node if kind.startswith("node_") else partial(on_event, record, kind)
            getattr(kit, f"on_{kind}")(news)
        record("starting")
        try:
            kit.start()
        except StoreError as e:
            record("not_started", error=str(e))
            stopping.wait(_RETRY_SECONDS)
        else:
            return kit
    return None


def main() -> int:
    told = json.loads(sys.argv[1])
    record = Recorder(Path(told["record"]))
    logging.getLogger("clusterkit").addHandler(_Logs(record))
    if told["broken"]:
        BREAKS[told["broken"]]()
    record_views(record)
    record_renewals(record)
    # As if in a pod of its own: a successor cannot see that this process is still there.
    pod = Process("boot", told["life"], os.getpid(), 1, told["life"])
    _compose.this_process = lambda: pod  # type: ignore[attr-defined] # imported there by name
    stopping, over = threading.Event(), threading.Event()
    graceful: list[bool] = []

    def listen() -> None:
        graceful.append(sys.stdin.readline() == "stop\n")
        record("asked")
        stopping.set()

    record("loaded", pid=os.getpid())
    if sys.stdin.readline() != "go\n":
        return 0
    threading.Thread(target=listen, daemon=True).start()
    try:
        kit = start(told, record, stopping)
    except ClusterKitError as e:
        record("failed", error=f"{type(e).__name__}: {e}")
        return 1
    if kit is None:
        return 0
    record("started")
    storage = Storage(told["storage"], told["options"]["node_id"], told["life"])
    rng = random.Random(told["life"])
    worker = threading.Thread(target=work, args=(kit, storage, rng, record, over), daemon=True)
    worker.start()
    while not stopping.wait(0.1):
        if kit.wait_stopped(0):
            record("failed", error="the kit has stopped by itself")
            return 1
    if graceful[0]:
        kit.stop(timeout=5)
        record("stopped")
    over.set()
    worker.join(5)
    return 0


if __name__ == "__main__":
    sys.exit(main())
