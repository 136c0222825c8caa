"""What the dispatcher keeps its work in: lanes, and deadlines. Pure; every step is O(1).

A lane is a queue whose head alone may run. Work may stand in several lanes; it is free when it
is at the head of all of them.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from enum import Enum
from typing import Generic, TypeVar

from ..events import Event, PartitionChangeEvent, RebalanceEvent
from ..hooks import HookSpec
from .jobs import Job

K = TypeVar("K", bound=Hashable)


class State(Enum):
    """The states of a piece of work.

    ::

        WAITING ──head of its lanes──► READY ──a slot is free──► RUNNING ──ended──► OVER
                                         ▲                        │    │
                                         └──time──── BACKOFF ◄────┘    └─out of time─► ZOMBIE
                                                     (to be retried)                     │
        OVER ◄──────────────── it has really ended ──────────────────────────────────────┘
        WAITING, READY, BACKOFF ──superseded──► OVER
    """

    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    BACKOFF = "backoff"
    ZOMBIE = "zombie"
    OVER = "over"


class Work:
    """One hook to be run for one event, with all its retries.

    ``change`` is set for a partition change's, ``rebalance`` for the start and complete hooks'.
    ``since`` is when it was queued.
    """

    __slots__ = (
        "args",
        "attempt",
        "blocked",
        "cancelled",
        "change",
        "event",
        "job",
        "lanes",
        "rebalance",
        "replayed",
        "since",
        "spec",
        "state",
    )

    def __init__(
        self,
        spec: HookSpec,
        event: Event,
        args: tuple[object, ...],
        *,
        since: float = 0.0,
        change: Change | None = None,
        rebalance: Rebalance | None = None,
        replayed: bool = False,
    ) -> None:
        self.spec = spec
        self.event = event
        self.args = args
        self.since = since
        self.change = change
        self.rebalance = rebalance
        self.replayed = replayed
        self.attempt = 1
        self.state = State.WAITING
        self.cancelled = False
        self.job: Job | None = None
        self.lanes: tuple[Lane, ...] = ()
        self.blocked = 0


class Lane:
    """Work of one hook function, or about one node: one after another.

    ``stuck`` is True while the head is a zombie that nobody waits for any more.
    """

    __slots__ = ("key", "queue", "stuck")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.queue: deque[Work] = deque()
        self.stuck = False

    def enter(self, work: Work) -> None:
        work.lanes += (self,)
        if self.queue:
            work.blocked += 1
        self.queue.append(work)

    def leave(self, work: Work) -> Work | None:
        """Takes work out; the work that became free by that, if any.

        Work in the middle is only marked, and removed when it comes to the head.
        """
        was_head = self.queue[0] is work
        work.lanes = tuple(lane for lane in work.lanes if lane is not self)
        if not was_head:
            work.blocked -= 1
            return work if work.blocked == 0 and work.state is State.WAITING else None
        while self.queue and self not in self.queue[0].lanes:
            self.queue.popleft()
        if not self.queue:
            return None
        head = self.queue[0]
        head.blocked -= 1
        return head if head.blocked == 0 and head.state is State.WAITING else None


class Change:
    """One partition change whose hooks run one after another, in a partition's lane."""

    __slots__ = (
        "attempts",
        "entered",
        "error",
        "event",
        "index",
        "rebalance",
        "settled",
        "specs",
        "work",
    )

    def __init__(
        self, event: PartitionChangeEvent, specs: tuple[HookSpec, ...], rebalance: Rebalance
    ) -> None:
        self.event = event
        self.specs = specs
        self.rebalance = rebalance
        self.index = 0
        self.work: Work | None = None
        self.attempts = 0
        self.error: BaseException | None = None
        self.entered = False  # whether it is, or was, in its partition's lane
        self.settled = False


class PartitionLane:
    """The changes of one partition, one after another. ``busy`` is the work that occupies it."""

    __slots__ = ("busy", "queue", "stuck")

    def __init__(self) -> None:
        self.queue: deque[Change] = deque()
        self.busy: Work | None = None
        self.stuck = False


class Phase(Enum):
    """The phases of a rebalance, in their order; each is left when what it awaits is over.

    PENDING awaits the node hooks from before it, and the rebalance that it supersedes; if it is
    superseded itself before that, it never was. STARTING awaits its start hooks, CHANGING its
    partition changes, COMPLETING its complete hooks.
    """

    PENDING = 1
    STARTING = 2
    CHANGING = 3
    COMPLETING = 4
    DONE = 5


class Rebalance:
    """One rebalance on its way through its phases.

    ``awaits`` is the work that the phase waits for, ``open`` how many changes are not settled,
    ``since`` when it was planned, ``not_before`` until when it waits for the one that it
    supersedes. A ``replay`` is the changes
    for one hook that came late: it has no start and no end that anybody is told of, supersedes
    nothing, and settles nothing.
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

    def __init__(self, event: RebalanceEvent, not_before: float, awaits: set[Work]) -> None:
        self.event = event
        self.since = not_before
        self.not_before = not_before
        self.awaits = awaits
        self.phase = Phase.PENDING
        self.begun = 0.0
        self.changes: list[Change] = []
        self.open = 0
        self.replayed: set[str] = set()
        self.superseded = False
        self.replay = False


class Deadlines(Generic[K]):
    """Deadlines that are mostly called off. Deadlines of equal delays come in the order in which
    they were set, so one queue for each delay keeps them sorted; there are few delays.
    """

    def __init__(self) -> None:
        self._by_delay: dict[float, OrderedDict[K, float]] = {}

    def set(self, key: K, delay: float, now: float) -> None:
        queue = self._by_delay.get(delay)
        if queue is None:
            queue = self._by_delay[delay] = OrderedDict()
        queue[key] = now + delay

    def cancel(self, key: K, delay: float) -> None:
        queue = self._by_delay.get(delay)
        if queue is not None:
            queue.pop(key, None)

    def first(self) -> float | None:
        """The next deadline."""
        heads = [next(iter(queue.values())) for queue in self._by_delay.values() if queue]
        return min(heads, default=None)

    def due(self, now: float) -> list[K]:
        """Takes out all whose deadline has come, the earliest first."""
        found: list[tuple[float, K]] = []
        for queue in self._by_delay.values():
            while queue:
                key, deadline = next(iter(queue.items()))
                if deadline > now:
                    break
                del queue[key]
                found.append((deadline, key))
        found.sort(key=lambda pair: pair[0])
        return [key for _, key in found]
