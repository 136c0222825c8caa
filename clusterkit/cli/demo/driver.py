"""The story that the demo tells: what is done to the cluster, and what must follow from it."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from clusterkit._compose import observer
from clusterkit.cli.records import HOOK_KINDS, Record
from clusterkit.config import Options
from clusterkit.errors import ClusterKitError
from clusterkit.hooks import Hooks
from clusterkit.testing.embedded import EmbeddedEtcd

from .client import Client
from .expect import Expect, violations
from .processes import DemoError, NodeProcess
from .report import Report, StepResult, Summary
from .timeline import Timeline
from .traffic import Traffic
from .transport import Peers

LEASE_TTL_SECONDS: Final = 2
SETTLE_SECONDS: Final = 15.0
POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How large the demo is, and whether it is the control, without the migration hook."""

    keys: int
    partitions: int
    without_hooks: bool


class Demo:
    """One run. Everything that it starts has ended when ``run`` returns or raises."""

    def __init__(self, settings: Settings, report: Report) -> None:
        self._settings = settings
        self._report = report
        self._timeline = Timeline(report.heard)
        self._began = time.monotonic()
        self._keys = [f"key-{n}" for n in range(settings.keys)]
        self._nodes: dict[str, NodeProcess] = {}
        self._peers = Peers(timeout=2.0)
        self._lost: set[str] = set()
        self._written = 0
        self._violations: list[str] = []

    def run(self) -> Summary:
        """Plays the whole story.

        Raises:
            ClusterKitError: It could not go on; the text says what failed, and where its logs are.
        """
        logs = Path(tempfile.mkdtemp(prefix="clusterkit-demo-"))
        try:
            with _signals(), ExitStack() as self._stack:
                self._logs = logs
                try:
                    self._play()
                finally:
                    # A second Ctrl-C would interrupt the ending of the processes.
                    signal.signal(signal.SIGINT, signal.SIG_IGN)
        except ClusterKitError as error:
            raise DemoError(f"{error} (the logs are in {logs})") from error
        except BaseException:
            shutil.rmtree(logs, ignore_errors=True)
            raise
        summary = self._summary()
        if summary.passed:
            shutil.rmtree(logs, ignore_errors=True)
        return summary

    # The story.

    def _play(self) -> None:
        self._start_cluster()
        self._write_keys()
        self._add_fifth()
        self._kill()
        self._bring_back()
        self._stop_gracefully()
        self._rebalance()

    def _start_cluster(self) -> None:
        names = ["node-1", "node-2", "node-3", "node-4"]
        self._begin("start", f"etcd and {len(names)} node processes start; they join in turn")
        mark = self._timeline.mark()
        started = time.monotonic()
        self._report.waiting("etcd to answer")
        self._endpoint = self._stack.enter_context(EmbeddedEtcd()).endpoint
        self._report.waiting("the processes to listen")
        for name in names:
            self._spawn(name)
        expected = []
        for position, name in enumerate(names):
            self._nodes[name].wait_listening()
            self._nodes[name].join()
            expected.append(
                Expect(
                    kind="node_join",
                    about=name,
                    seen_by=frozenset(names[: position + 1]),
                    fields={"is_bootstrap": position == 0, "cluster_size": position + 1},
                )
            )
        # Joins within the settle time are one rebalance, so how many there are depends on speed.
        expected += [
            Expect(kind=kind, seen_by=frozenset(names), once=False)
            for kind in ("rebalance_start", "partition_change", "rebalance_complete")
        ]
        options = Options.resolve(
            cluster="demo",
            endpoints=self._endpoint,
            partitions=self._settings.partitions,
            replication_factor=2,
            environ={},
        )
        self._observer = self._stack.enter_context(observer(options, Hooks()))
        self._client = Client(self._observer)
        self._stack.callback(self._client.close)
        self._await(expected, mark)
        self._finish("start", mark, started, expected, written=0)

    def _write_keys(self) -> None:
        self._begin("write", f"{len(self._keys)} keys are written")
        mark = self._timeline.mark()
        started = time.monotonic()
        self._report.waiting("every holder to have every key")
        written = self._client.write(self._keys, "first value")
        self._finish("write", mark, started, [], written=written)

    def _add_fifth(self) -> None:
        everyone = frozenset({*self._nodes, "node-5"})
        self._change(
            "join",
            "a fifth node joins",
            lambda: self._spawn_and_join("node-5"),
            [
                Expect(
                    kind="node_join",
                    about="node-5",
                    seen_by=everyone,
                    fields={"is_bootstrap": False, "cluster_size": 5},
                ),
                *_rebalance("node_join", "node-5", everyone),
            ],
        )

    def _kill(self) -> None:
        survivors = frozenset(self._nodes) - {"node-2"}
        self._change(
            "kill",
            f"node-2 is killed with SIGKILL; its lease of {LEASE_TTL_SECONDS} s must run out",
            lambda: self._nodes.pop("node-2").kill(),
            [
                Expect(
                    kind="node_leave",
                    about="node-2",
                    seen_by=survivors,
                    fields={"reason": "health_check_failure"},
                ),
                *_rebalance("node_leave", "node-2", survivors),
                Expect(
                    kind="cluster_health_change",
                    seen_by=survivors,
                    fields={"status": "degraded", "unhealthy_node_ids": ["node-2"]},
                ),
            ],
        )

    def _bring_back(self) -> None:
        before = frozenset(self._nodes)
        everyone = before | {"node-2"}
        self._change(
            "rejoin",
            "node-2 comes back, with no data",
            lambda: self._spawn_and_join("node-2"),
            [
                Expect(kind="node_rejoin", about="node-2", seen_by=everyone),
                *_rebalance("node_rejoin", "node-2", everyone),
                Expect(
                    kind="cluster_health_change",
                    seen_by=everyone,
                    fields={"status": "healthy", "unhealthy_node_ids": []},
                ),
            ],
        )

    def _stop_gracefully(self) -> None:
        survivors = frozenset(self._nodes) - {"node-3"}
        self._change(
            "stop",
            "node-3 stops gracefully",
            lambda: self._nodes.pop("node-3").stop(),
            [
                Expect(
                    kind="node_leave",
                    about="node-3",
                    seen_by=survivors,
                    fields={"reason": "graceful_shutdown"},
                ),
                *_rebalance("node_leave", "node-3", survivors),
            ],
        )

    def _rebalance(self) -> None:
        live = frozenset(self._nodes)
        self._change(
            "rebalance",
            "node-1 asks for a rebalance; nothing is owed, so nothing moves",
            self._ask_for_rebalance,
            [
                Expect(kind=kind, seen_by=live, fields={"trigger": "manual"})
                for kind in ("rebalance_start", "rebalance_complete")
            ],
        )

    # How a step goes.

    def _change(
        self, name: str, title: str, act: Callable[[], object], expected: Sequence[Expect]
    ) -> None:
        """Does something to the cluster under traffic, waits until all is copied, reads back."""
        self._begin(name, title)
        mark = self._timeline.mark()
        started = time.monotonic()
        # Every tenth key, others in each step: the rest shows what copies alone preserve.
        keys = self._keys[len(name) % 10 :: 10]
        with Traffic(self._client, keys, f"written during {name}") as traffic:
            act()
            self._await(expected, mark)
        self._finish(name, mark, started, expected, written=traffic.written)

    def _begin(self, name: str, title: str) -> None:
        revision = max((record["revision"] for record in self._timeline.since(0)), default=0)
        self._report.begin(name, title, self._elapsed(), revision)

    def _await(self, expected: Sequence[Expect], mark: int) -> None:
        """Waits until every copy is done and every expectation met, or patience is at its end."""
        give_up = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < give_up:
            for node in self._nodes.values():
                node.check()
            missing = self._unsettled() or violations(
                expected, self._timeline.since(mark), self._nodes.keys()
            )
            if not missing:
                return
            self._report.waiting(missing[0])
            self._timeline.wait(POLL_SECONDS)

    def _unsettled(self) -> list[str]:
        """What is still moving: empty once all live nodes have one view and all their data."""
        view = self._observer.cluster
        if set(view.nodes) != set(self._nodes):
            return [f"the change of members, which are {', '.join(view.nodes)}"]
        moving = []
        for name, node in sorted(self._nodes.items()):
            try:
                _, body = self._peers.request("GET", node.address, "/status")
            except OSError as error:
                return [f"{name} to answer: {error}"]
            status: dict[str, Any] = json.loads(body)
            if status["epoch"] != view.partitions[0].epoch:
                moving.append(f"{name} to have the newest view")
            elif status["not_ready"]:
                moving.append(f"{name} to receive {len(status['not_ready'])} partitions")
            elif status["owed"]:
                moving.append(f"{name} to receive {', '.join(status['owed'])}")
        return moving

    def _finish(
        self, name: str, mark: int, started: float, expected: Sequence[Expect], *, written: int
    ) -> None:
        self._report.waiting("every key to be read back")
        lost = self._client.lost()
        self._lost.update(lost)
        self._written += written
        records = self._timeline.since(mark)
        wrong = [f"not in time: {what}" for what in self._unsettled()]
        wrong += violations(expected, records, self._nodes.keys())
        self._violations += [f"{name}: {text}" for text in wrong]
        self._report.end(
            StepResult(
                name=name,
                seconds=time.monotonic() - started,
                live=frozenset(self._nodes),
                records=[r for r in records if r["seen_by"] in self._nodes],
                written=written,
                read=self._client.known,
                lost=len(lost),
                violations=wrong,
            )
        )

    def _spawn(self, name: str) -> NodeProcess:
        arguments = [
            *("--cluster", "demo"),
            *("--endpoints", self._endpoint),
            *("--partitions", str(self._settings.partitions)),
            *("--ttl", str(LEASE_TTL_SECONDS)),
            *(["--without-hooks"] if self._settings.without_hooks else []),
        ]
        log = self._logs / f"{name}.log"
        node = NodeProcess(name, arguments, log, self._timeline.add)
        self._nodes[name] = self._stack.enter_context(node)
        return node

    def _spawn_and_join(self, name: str) -> None:
        node = self._spawn(name)
        self._report.waiting(f"{name} to start")
        node.wait_listening()
        node.join()

    def _ask_for_rebalance(self) -> None:
        status, body = self._peers.request("POST", self._nodes["node-1"].address, "/rebalance")
        if status != 200:
            raise DemoError(f"node-1 refused to rebalance: {status} {body.decode()}")

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _summary(self) -> Summary:
        records: list[Record] = self._timeline.since(0)
        kinds = {record["event"] for record in records}
        # What moved before there was a key is no move of data.
        copies = [r for r in records if r["event"] == "copied" and r["keys"]]
        return Summary(
            keys_written=len(self._keys),
            keys_lost=len(self._lost),
            writes_acknowledged=self._written,
            partitions_moved=len(copies),
            bytes_moved=sum(record["bytes"] for record in copies),
            hooks_seen=[f"on_{kind}" for kind in HOOK_KINDS if kind in kinds],
            violations=self._violations,
            without_hooks=self._settings.without_hooks,
            seconds=round(self._elapsed(), 3),
        )


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does, with everything that it started."""

    def terminate(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    interrupt = signal.getsignal(signal.SIGINT)
    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        signal.signal(signal.SIGINT, interrupt)


def _rebalance(reason: str, node_id: str, seen_by: frozenset[str]) -> list[Expect]:
    """The rebalance that follows from one node's coming or going, on every live node alike."""
    cause = {"trigger": reason, "trigger_node_id": node_id}
    return [
        Expect(kind="rebalance_start", seen_by=seen_by, fields=cause),
        Expect(
            kind="partition_change",
            seen_by=seen_by,
            fields={"change_reason": reason},
            once=False,
            same_everywhere=True,
        ),
        Expect(kind="rebalance_complete", seen_by=seen_by, fields=cause),
    ]
