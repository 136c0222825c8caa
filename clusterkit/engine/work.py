"""What the dispatcher keeps: work in its states, and rebalances in their phases. Data, no rules."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING

from ..events import Event, PartitionChangeEvent, RebalanceEvent
from ..hooks import HookSpec
from .jobs import Job

if TYPE_CHECKING:
    from .lanes import Lane


class State(Enum):
    """The states of a piece of work.

    ::

        WAITING ──head of its lanes──► READY ──a slot is free──► RUNNING ──ended──► OVER
                                         ▲                        │    │
                                         └──time──── BACKOFF ◄────┘    └─out of time─► ZOMBIE
                                                     (to be retried)                     │
        OVER ◄──────────────── it has really ended ──────────────────────────────────────┘
        WAITING, READY, BACKOFF ──superseded──► OVER

    A change with several hooks is READY again for each of them.
    """

    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    BACKOFF = "backoff"
    ZOMBIE = "zombie"
    OVER = "over"


WAITING, READY, RUNNING = State.WAITING, State.READY, State.RUNNING
BACKOFF, ZOMBIE, OVER = State.BACKOFF, State.ZOMBIE, State.OVER
QUEUED = (WAITING, READY, BACKOFF)


class Work:
    """One hook to be run for one event, with all its retries.

    ``job`` is its newest run, ``started`` when that began, ``timed`` the delay under which its
    time-out is in the books, if it is; ``cancelled`` whether it was told to end.
    """

    __slots__ = (
        "args",
        "attempt",
        "cancelled",
        "event",
        "job",
        "spec",
        "started",
        "state",
        "timed",
    )

    def __init__(self, spec: HookSpec, event: Event, args: tuple[object, ...]) -> None:
        self.spec = spec
        self.event = event
        self.args = args
        self.attempt = 1
        self.state = WAITING
        self.cancelled = False
        self.job: Job | None = None
        self.started = 0.0
        self.timed: float | None = None


class News(Work):
    """A hook that is told at once, or at the start or the end of a rebalance.

    ``rebalance`` is set for a rebalance's start and complete hooks, ``since`` is when it was
    queued, ``lanes`` are those that it stands in, ``blocked`` in how many it is not the head.
    """

    __slots__ = ("blocked", "lanes", "rebalance", "replayed", "since")

    def __init__(
        self,
        spec: HookSpec,
        event: Event,
        args: tuple[object, ...],
        *,
        since: float,
        rebalance: Rebalance | None = None,
        replayed: bool = False,
    ) -> None:
        super().__init__(spec, event, args)
        self.since = since
        self.rebalance = rebalance
        self.replayed = replayed
        self.lanes: tuple[Lane, ...] = ()
        self.blocked = 0


class Change(Work):
    """A partition change and all its hooks, which run one after another.

    ``spec`` is the hook whose turn it is, ``attempts`` how often the hook that was run most often
    was run, ``moves`` whether it brings data to a node that limits that, ``behind`` what waits
    until this has left the partition's lane, ``stuck`` whether it is a zombie that nobody waits
    for any more, ``settled`` whether its outcome has been told.
    """

    __slots__ = (
        "attempts",
        "behind",
        "error",
        "index",
        "moves",
        "partition_id",
        "rebalance",
        "settled",
        "specs",
        "stuck",
    )

    def __init__(
        self,
        event: PartitionChangeEvent,
        specs: tuple[HookSpec, ...],
        rebalance: Rebalance,
        *,
        moves: bool,
    ) -> None:
        self.spec = specs[0]
        self.event: PartitionChangeEvent = event
        self.args = (event,)
        self.attempt = 1
        self.state = WAITING
        self.cancelled = False
        self.job = None
        self.started = 0.0
        self.timed = None
        self.partition_id = event.partition_id
        self.specs = specs
        self.index = 0
        self.moves = moves
        self.rebalance = rebalance
        self.attempts = 0
        self.error: BaseException | None = None
        self.behind: Sequence[Change] = ()
        self.stuck = False
        self.settled = False


class Phase(Enum):
    """The phases of a rebalance, in their order; each is left when what it awaits is over.

    PENDING awaits the node hooks from before it, and the rebalance that it supersedes; if it is
    superseded itself before that, it never was. STARTING awaits its start hooks, CHANGING its
    partition changes, COMPLETING its complete hooks.
    """

    PENDING = auto()
    STARTING = auto()
    CHANGING = auto()
    COMPLETING = auto()
    DONE = auto()


class Rebalance:
    """One rebalance on its way through its phases.

    ``awaits`` is the work that the phase waits for, ``open`` how many changes are not settled,
    ``since`` when it was planned, ``not_before`` until when it waits for the one that it
    supersedes, ``replayed`` the ids of those of its changes that were delivered before. A
    ``replay`` is the changes for one hook that came late: it has no start and no end that anybody
    is told of, supersedes nothing, and settles nothing.
    """

    __slots__ = (
        "awaits",
        "begun",
        "changes",
        "event",
        "not_before",
        "open",
        "phase",
        "replay",
        "replayed",
        "since",
        "superseded",
    )

    def __init__(
        self,
        event: RebalanceEvent,
        now: float,
        awaits: set[News],
        replayed: Collection[str] = (),
    ) -> None:
        self.event = event
        self.since = now
        self.not_before = now
        self.awaits = awaits
        self.phase = Phase.PENDING
        self.begun = 0.0
        self.changes: list[Change] = []
        self.open = 0
        self.replayed = set(replayed)
        self.superseded = False
        self.replay = False
