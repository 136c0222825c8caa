"""Plays the story: does each thing, waits until its copies are done, judges, and reads back."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from clusterkit.cli.records import HOOK_KINDS
from clusterkit.errors import ClusterKitError

from .client import Client
from .cluster import DemoCluster, Settings
from .expect import Expect, Violation, violations
from .processes import DemoError
from .report import Report, StepResult, Summary
from .scenario import Step, changes, start
from .timeline import Timeline
from .traffic import Traffic

SETTLE_SECONDS: Final = 15.0
POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Begun:
    """A step under way: its name, its place in the timeline, and when it began."""

    name: str
    mark: int
    at: float


class Demo:
    """One run. Everything that it starts has ended when ``run`` returns or raises.

    Attributes:
        logs: Where the nodes' logs are, if the run did not pass.
    """

    def __init__(self, settings: Settings, report: Report) -> None:
        self._settings = settings
        self._report = report
        self._timeline = Timeline(report.heard)
        self._began = time.monotonic()
        self._keys = [f"key-{n}" for n in range(settings.keys)]
        self._lost: set[str] = set()
        self._written = 0
        self._violations: list[str] = []

    def run(self) -> Summary:
        """Plays the whole story.

        Raises:
            ClusterKitError: It could not go on; the text says what failed, and where its logs are.
        """
        logs = self.logs = Path(tempfile.mkdtemp(prefix="clusterkit-demo-"))
        try:
            with _ended_by_signals(), ExitStack() as stack:
                try:
                    self._play(stack, logs)
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

    def _play(self, stack: ExitStack, logs: Path) -> None:
        first = start()
        begun = self._begin(first.name, first.title)
        cluster = DemoCluster(self._settings, stack, logs, self._timeline, self._report.waiting)
        self._report.waiting("the processes to listen")
        first.act(cluster)
        client = Client(cluster.view)
        stack.callback(client.close)
        self._await(cluster, first.expected, begun)
        self._finish(cluster, client, begun, first.expected, written=0)

        begun = self._begin("write", f"{len(self._keys)} keys are written")
        self._report.waiting("every holder to have every key")
        written = client.write(self._keys, "first value")
        self._finish(cluster, client, begun, (), written=written)

        for number, step in enumerate(changes()):
            self._change(cluster, client, number, step)

    def _change(self, cluster: DemoCluster, client: Client, number: int, step: Step) -> None:
        """Changes the cluster under traffic."""
        begun = self._begin(step.name, step.title)
        # Every tenth key, others in each step: the rest shows what copies alone preserve.
        with Traffic(client, self._keys[number::10], f"written during {step.name}") as traffic:
            step.act(cluster)
            self._await(cluster, step.expected, begun)
        self._finish(cluster, client, begun, step.expected, written=traffic.written)

    def _begin(self, name: str, title: str) -> Begun:
        revision = max((record["revision"] for record in self._timeline.since(0)), default=0)
        now = time.monotonic()
        self._report.begin(name, title, now - self._began, revision)
        return Begun(name, self._timeline.mark(), now)

    def _await(self, cluster: DemoCluster, expected: Sequence[Expect], begun: Begun) -> None:
        """Waits until every copy is done and nothing expected is missing, or patience ends."""
        give_up = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < give_up:
            cluster.check()
            missing = cluster.unsettled() or [
                wrong.text for wrong in self._wrong(cluster, expected, begun) if wrong.pending
            ]
            if not missing:
                return
            self._report.waiting(missing[0])
            self._timeline.wait(POLL_SECONDS)

    def _finish(
        self,
        cluster: DemoCluster,
        client: Client,
        begun: Begun,
        expected: Sequence[Expect],
        *,
        written: int,
    ) -> None:
        self._report.waiting("every key to be read back")
        lost = client.lost()
        wrong = [f"not in time: {what}" for what in cluster.unsettled()]
        wrong += [violation.text for violation in self._wrong(cluster, expected, begun)]
        self._lost.update(lost)
        self._written += written
        self._violations += [f"{begun.name}: {text}" for text in wrong]
        records = self._timeline.since(begun.mark)
        self._report.end(
            StepResult(
                name=begun.name,
                seconds=time.monotonic() - begun.at,
                live=frozenset(cluster.nodes),
                records=[r for r in records if r["seen_by"] in cluster.nodes],
                written=written,
                read=client.known,
                lost=len(lost),
                violations=wrong,
            )
        )

    def _wrong(
        self, cluster: DemoCluster, expected: Sequence[Expect], begun: Begun
    ) -> list[Violation]:
        return violations(expected, self._timeline.since(begun.mark), cluster.nodes.keys())

    def _summary(self) -> Summary:
        records = self._timeline.since(0)
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
            seconds=round(time.monotonic() - self._began, 3),
        )


@contextmanager
def _ended_by_signals() -> Iterator[None]:
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
