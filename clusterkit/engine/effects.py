"""What the node's state machine wants done: the words between it and the runner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from ..core.records import Receipt
from .comparison import ReadView
from .departures import CloseHistory
from .jobs import CancelJob, HookFailed, HookSlow, HookTimedOut, RebalanceCompleted, StartJobs
from .pruning import PruneHistory
from .session import Session
from .snapshot import Snapshot

DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40
"""The levels of ``Note``, by the numbers of ``logging``."""


@dataclass(frozen=True, slots=True)
class Instant:
    """Now, by both clocks: ``mono`` for decisions, ``wall`` for what people read."""

    mono: float
    wall: datetime


@dataclass(frozen=True, slots=True)
class Publish:
    """Swap the snapshot that lookups read."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class WriteReceipt:
    """Write which of this node's partition-change hooks have succeeded."""

    session: Session
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class WriteAlive:
    """Publish which health checks fail here, in the sign of life."""

    session: Session
    incarnation: str
    failing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Register:
    """Join again after about ``delay`` seconds; ``after`` is the nonce of the stay before."""

    after: str
    delay: float


@dataclass(frozen=True, slots=True)
class Drop:
    """Let go of a session: stop renewing it, and revoke its lease; with ``slot`` its slot's too."""

    session: Session
    slot: bool


@dataclass(frozen=True, slots=True)
class ReadAgain:
    """Open the watch anew, with a reading of the whole prefix before it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something for the log."""

    level: int
    message: str
    args: tuple[object, ...]
    extra: Mapping[str, object]


Effect: TypeAlias = (
    Publish
    | WriteReceipt
    | WriteAlive
    | CloseHistory
    | PruneHistory
    | ReadView
    | ReadAgain
    | Register
    | Drop
    | Note
    | StartJobs
    | CancelJob
    | HookFailed
    | HookTimedOut
    | HookSlow
    | RebalanceCompleted
)


class Outbox:
    """The effects of one step of the machine, in order; its parts all put theirs in here."""

    def __init__(self) -> None:
        self._effects: list[Effect] = []

    def add(self, *effects: Effect) -> None:
        self._effects += effects

    def note(self, level: int, message: str, *args: object, **extra: object) -> None:
        """Something for the log, with its data under ``ck_`` names in ``extra``."""
        self._effects.append(Note(level, message, args, extra))

    def take(self) -> list[Effect]:
        """What has been put in since this was last asked."""
        effects, self._effects = self._effects, []
        return effects
