"""The words between the dispatcher, which decides, and those who carry its decisions out.

A :class:`Job` is one run of one hook for one event. The dispatcher answers everything that it is
told with a list of actions, which the runner carries out in that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import ClusterKitError
from ..events import Event, PartitionChangeEvent, RebalanceEvent
from ..hooks import HookSpec


class HookTimeoutError(ClusterKitError, TimeoutError):
    """A hook ran longer than it may, or an earlier run of it that did has still not ended."""


# Those that are made for each of thousands of changes are not frozen: it would double their cost.
@dataclass(slots=True, eq=False)
class Job:
    """One run of one hook. A retry is a new job, with a new id and the next attempt.

    Attributes:
        id: Unique within the dispatcher.
        spec: The hook.
        event: What it is about.
        args: What the hook is called with.
        attempt: 1 for the first run.
        timeout: Seconds that the run may take; None for no limit.
        replayed: Whether the event was delivered before.
    """

    id: int
    spec: HookSpec
    event: Event
    args: tuple[object, ...]
    attempt: int
    timeout: float | None
    replayed: bool


OUT_OF_TIME = "timeout"
"""The reason of a ``CancelJob`` for a run that is out of time."""


@dataclass(frozen=True, slots=True)
class StartJobs:
    """Run these now. The end of each must be told to the dispatcher, whatever it is."""

    jobs: Sequence[Job]


@dataclass(frozen=True, slots=True)
class CancelJob:
    """Tell a running job to end. It stays running until its end is told."""

    job_id: int
    reason: str


@dataclass(slots=True)
class ChangeSettled:
    """Every hook of a partition change has had its turn.

    Attributes:
        event: The change.
        ok: Whether all its hooks succeeded; also if no hook wants it.
        error: The first failure, if not.
        attempts: How often the hook that was run most often was run; 0 if no hook wants it, or
            none could start.
        superseded: Whether it ended early because a newer rebalance took its place.
    """

    event: PartitionChangeEvent
    ok: bool
    error: BaseException | None
    attempts: int
    superseded: bool = False


@dataclass(frozen=True, slots=True)
class ChangeDropped:
    """A newer rebalance took the place of a change before any of its hooks started."""

    event: PartitionChangeEvent


@dataclass(frozen=True, slots=True)
class RebalanceStarted:
    """A rebalance begins: its start hooks are about to run."""

    event: RebalanceEvent


@dataclass(frozen=True, slots=True)
class RebalanceCompleted:
    """A rebalance is over: its complete hooks are about to run.

    Attributes:
        event: The event of its start.
        duration_seconds: Since its start began.
        superseded: Whether a newer rebalance ended it early.
    """

    event: RebalanceEvent
    duration_seconds: float
    superseded: bool


@dataclass(frozen=True, slots=True)
class HookFailed:
    """A run of a hook raised."""

    job: Job
    error: BaseException
    will_retry: bool


@dataclass(frozen=True, slots=True)
class HookTimedOut:
    """A run of a hook is out of time. It counts as failed, and is not retried."""

    job: Job


@dataclass(frozen=True, slots=True)
class HookSlow:
    """A run of a hook takes long; said once a run."""

    job: Job


Action: TypeAlias = (
    StartJobs
    | CancelJob
    | ChangeSettled
    | ChangeDropped
    | RebalanceStarted
    | RebalanceCompleted
    | HookFailed
    | HookTimedOut
    | HookSlow
)
