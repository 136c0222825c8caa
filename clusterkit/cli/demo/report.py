"""What the demo shows: a timeline for people, or one JSON object a line for programs."""

from __future__ import annotations

import json
import sys
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from clusterkit.cli.records import HOOK_KINDS, Record, describe


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """How one step of the demo ended. ``records`` is what the live nodes said in it."""

    name: str
    seconds: float
    live: frozenset[str]
    records: Sequence[Record]
    written: int
    read: int
    lost: int
    violations: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The demo in figures; what ``--json`` prints last.

    ``partitions_moved`` counts copies of partitions, ``bytes_moved`` what they had to carry.
    """

    keys_written: int
    keys_lost: int
    writes_acknowledged: int
    partitions_moved: int
    bytes_moved: int
    hooks_seen: Sequence[str]
    violations: Sequence[str]
    without_hooks: bool
    seconds: float

    @property
    def passed(self) -> bool:
        """Nothing lost and everything seen as expected; for the control: something was lost."""
        if self.without_hooks:
            return self.keys_lost > 0
        return not self.keys_lost and not self.violations and len(self.hooks_seen) == 7


class Report(Protocol):
    """Where the driver tells its story. ``heard`` is called from other threads."""

    def heard(self, record: Record) -> None:
        """A node said something."""

    def begin(self, name: str, title: str, at: float, revision: int) -> None:
        """A step begins, ``at`` seconds after the start."""

    def waiting(self, text: str) -> None:
        """What is being waited for."""

    def end(self, result: StepResult) -> None:
        """The step is over."""

    def close(self) -> None:
        """Nothing more comes but the summary, if that."""

    def summary(self, summary: Summary) -> None:
        """The whole is over."""


class JsonReport:
    """One JSON object a line, on standard output."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._step: dict[str, Any] = {}

    def heard(self, record: Record) -> None:
        self._print(record)

    def begin(self, name: str, title: str, at: float, revision: int) -> None:
        self._step = {"seen_by": "demo", "revision": revision, "step": name}
        self._print(
            {
                "event": "step",
                **self._step,
                "event_id": f"step/{name}",
                "title": title,
                "at": round(at, 3),
            }
        )

    def waiting(self, text: str) -> None:
        """Programs wait by themselves."""

    def end(self, result: StepResult) -> None:
        self._print(
            {
                "event": "step_done",
                **self._step,
                "event_id": f"step_done/{result.name}",
                "seconds": round(result.seconds, 3),
                "keys_read": result.read,
                "keys_lost": result.lost,
                "violations": list(result.violations),
            }
        )

    def close(self) -> None:
        """Every line is out already."""

    def summary(self, summary: Summary) -> None:
        self._print({"event": "summary", **asdict(summary), "passed": summary.passed})

    def _print(self, line: Mapping[str, Any]) -> None:
        with self._lock:
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


class HumanReport:
    """A timeline; what is being waited for stands in a line that is overwritten."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._waiting_for = ""

    def heard(self, record: Record) -> None:
        """Told at the end of the step, all together."""

    def begin(self, name: str, title: str, at: float, revision: int) -> None:
        self._console.print(f"[bold]{at:6.2f} s  {escape(title)}[/bold]", highlight=False)

    def waiting(self, text: str) -> None:
        if text == self._waiting_for:
            return
        self._waiting_for = text
        if not self._console.is_terminal:
            self._line("…", escape(f"waiting for {text}"))
        elif self._status is None:
            self._status = self._console.status(escape(f"waiting for {text}"))
            self._status.start()
        else:
            self._status.update(escape(f"waiting for {text}"))

    def end(self, result: StepResult) -> None:
        self._clear_status()
        for what, detail, who in summarise(result.records, result.live):
            self._line(what, f"{escape(detail)}  [dim]{escape(who)}[/dim]")
        if result.read:
            colour = "red" if result.lost else "green"
            self._line(
                "keys",
                f"{result.written} writes; [{colour}]{result.read - result.lost} of {result.read} "
                f"read back[/{colour}] through their owners",
            )
        for violation in result.violations:
            self._line("not as expected", f"[red]{escape(violation)}[/red]")

    def close(self) -> None:
        """Gives the terminal back, also when the demo ended early."""
        self._clear_status()

    def summary(self, summary: Summary) -> None:
        count = len(summary.hooks_seen)
        colour = "green" if summary.passed else "red"
        line = (
            f"keys written {summary.keys_written}, keys lost {summary.keys_lost}, "
            f"partitions moved {summary.partitions_moved}, bytes moved {summary.bytes_moved}, "
            f"hooks seen {count} of {len(HOOK_KINDS)}, {summary.seconds:.1f} s"
        )
        if summary.without_hooks:
            line += (
                f": without the migration hook {summary.keys_lost} keys are gone, as they must be"
                if summary.passed
                else ": without the migration hook keys should have been lost, and none was"
            )
        elif summary.violations:
            line += f": {len(summary.violations)} things were not as expected"
        self._console.print(line, style=f"bold {colour}", highlight=False, soft_wrap=True)

    def _line(self, what: str, detail: str) -> None:
        self._console.print(
            f"          [cyan]{what:<22}[/cyan]{detail}", highlight=False, soft_wrap=True
        )

    def _clear_status(self) -> None:
        self._waiting_for = ""
        if self._status is not None:
            self._status.stop()
            self._status = None


def summarise(records: Sequence[Record], live: frozenset[str]) -> list[tuple[str, str, str]]:
    """One line for each thing that was told, however many nodes saw it: what, detail, by whom.

    The partition changes of a step are one line for each reason, its copies one line.
    """
    lines: list[tuple[str, str, str]] = []
    for kind in HOOK_KINDS:
        observers: defaultdict[str, set[str]] = defaultdict(set)
        ids: defaultdict[str, set[str]] = defaultdict(set)
        slowest: defaultdict[str, float] = defaultdict(float)
        for record in records:
            if record["event"] == kind:
                text = _aggregate(record)
                observers[text].add(record["seen_by"])
                ids[text].add(record["event_id"])
                slowest[text] = max(slowest[text], record.get("duration", 0.0))
        for text, nodes in observers.items():
            if kind == "partition_change":
                text_now = f"{len(ids[text])} changes, {text}"
            elif kind == "rebalance_complete":
                text_now = f"{text}, took up to {slowest[text]:.2f} s"
            else:
                text_now = text
            who = f"all {len(live)} live nodes" if nodes == live else ", ".join(sorted(nodes))
            lines.append((kind, text_now, f"seen by {who}"))
    copies = [record for record in records if record["event"] == "copied"]
    if copies:
        size = sum(record["bytes"] for record in copies)
        keys = sum(record["keys"] for record in copies)
        receivers = sorted({record["seen_by"] for record in copies})
        lines.append(
            (
                "copies",
                f"{len(copies)} partitions, {keys} keys, {size} bytes",
                f"received by {', '.join(receivers)}",
            )
        )
    return lines


def _aggregate(record: Record) -> str:
    match record["event"]:
        case "partition_change":
            return f"reason {record['change_reason']}"
        case "rebalance_complete":
            return describe({key: value for key, value in record.items() if key != "duration"})
    return describe(record)
