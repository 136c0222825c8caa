"""What the runner is told through its queue, by whom.

The watch and the keep-alive thread have words of their own, in ``watcher`` and ``session``.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import ClusterKitError
from ..hooks import HookSpec
from ..metrics import MetricsSink
from ..ports import RangeResult
from .runs import Run
from .session import LeaseDoubted, LeaseLost, LeaseProven, Session
from .snapshot import Snapshot
from .watcher import Changed, Reread, WatchBroke


@dataclass(frozen=True, slots=True)
class Begin:
    """The first reading of the cluster."""

    read: RangeResult


@dataclass(frozen=True, slots=True)
class Expect:
    """A join under this nonce is about to be sent."""

    nonce: str


@dataclass(frozen=True, slots=True)
class Registered:
    """The join was applied."""

    session: Session


@dataclass(frozen=True, slots=True)
class RegisterFailed:
    """Joining again, after the stay with that nonce, failed."""

    after: str
    error: ClusterKitError


@dataclass(frozen=True, slots=True)
class Read:
    """The reading that was asked for to compare the view with."""

    result: RangeResult
    number: int


@dataclass(frozen=True, slots=True)
class Checked:
    """These of the application's health checks fail now."""

    failing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JobsEnded:
    """Runs of hooks have ended."""

    ends: list[Run]


@dataclass(frozen=True, slots=True)
class LookAtClock:
    """Time has passed that this thread cannot have noticed: a test has moved the clock."""


@dataclass(frozen=True, slots=True)
class AddHook:
    """A hook is registered while the kit runs."""

    spec: HookSpec


@dataclass(frozen=True, slots=True)
class AddSink:
    """Somebody wants the measurements too."""

    sink: MetricsSink


@dataclass(frozen=True, slots=True)
class Await:
    """Somebody waits for a snapshot like this."""

    predicate: Callable[[Snapshot], bool]
    future: Future[None]


@dataclass(frozen=True, slots=True)
class Stop:
    """The application wants to leave."""

    timeout: float


@dataclass(frozen=True, slots=True)
class Finished:
    """Everything has ended: the runner may."""


Message: TypeAlias = (
    Begin
    | Expect
    | Registered
    | RegisterFailed
    | Read
    | Checked
    | LookAtClock
    | AddHook
    | AddSink
    | Await
    | Stop
    | Finished
    | Changed
    | Reread
    | WatchBroke
    | LeaseDoubted
    | LeaseLost
    | LeaseProven
    | JobsEnded
)
