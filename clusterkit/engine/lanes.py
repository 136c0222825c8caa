"""The lanes of news: by hook function, and by what the news is about.

A lane is a queue whose head alone may run. News may stand in several lanes; they are free when
they are at the head of all of them. Every step is O(1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from ..events import (
    Event,
    FencedEvent,
    NodeJoinEvent,
    NodeLeaveEvent,
    NodeRejoinEvent,
    PartitionDropEvent,
    PartitionLostEvent,
    PartitionRoleEvent,
    UnfencedEvent,
)
from ..hooks import HookKind, HookSpec
from .slots import Slots
from .work import OVER, QUEUED, WAITING, ZOMBIE, News

NODE_EVENTS = (NodeJoinEvent, NodeRejoinEvent, NodeLeaveEvent)
_PARTITION_NEWS = (PartitionRoleEvent, PartitionDropEvent, PartitionLostEvent)


class Lane:
    """Work of one hook function, or about one subject: one after another.

    ``stuck`` is True while the head is a zombie that nobody waits for any more.
    """

    __slots__ = ("key", "queue", "stuck")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.queue: deque[News] = deque()
        self.stuck = False

    def enter(self, news: News) -> None:
        news.lanes += (self,)
        if self.queue:
            news.blocked += 1
        self.queue.append(news)

    def leave(self, news: News) -> News | None:
        """Takes news out; those that became free by that, if any.

        What is in the middle is only marked, and removed when it comes to the head.
        """
        was_head = self.queue[0] is news
        news.lanes = tuple(lane for lane in news.lanes if lane is not self)
        if not was_head:
            news.blocked -= 1
            return news if news.blocked == 0 and news.state is WAITING else None
        while self.queue and self not in self.queue[0].lanes:
            self.queue.popleft()
        if not self.queue:
            return None
        head = self.queue[0]
        head.blocked -= 1
        return head if head.blocked == 0 and head.state is WAITING else None


class NewsLanes:
    """All lanes of news.

    Args:
        slots: Where news go that may run.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._lanes: dict[Hashable, Lane] = {}

    def enter(self, news: News, *, about: Event | None = None) -> bool:
        """Puts news into their lanes; whether anyone should wait for them.

        Args:
            news: What is to run.
            about: The event whose subject they share a lane with; None for none.
        """
        self._slots.queued += 1
        keys = [] if isinstance(news.event, _PARTITION_NEWS) else [_hook_key(news.spec)]
        subject = None if about is None else _subject(about)
        if subject is not None:
            keys.append(subject)
        first = self._lane(keys[0])
        first.enter(news)
        if first.stuck:
            return False
        for key in keys[1:]:
            self._lane(key).enter(news)
        if not news.blocked:
            self._slots.ready(news)
        return True

    def over(self, news: News) -> None:
        """They have really ended: what stands behind them may come."""
        news.state = OVER
        for lane in news.lanes:
            lane.stuck = False
            self._leave(lane, news)

    def stuck(self, zombie: News) -> list[News]:
        """A zombie has not ended in time: nobody shall wait behind it.

        Returns:
            The zombie and all that stand behind it: they keep their turn, but nobody waits.
        """
        first = zombie.lanes[0]
        first.stuck = True
        hopeless = list(first.queue)
        for news in hopeless:
            for lane in news.lanes:
                if lane is not first:
                    self._leave(lane, news)
        return hopeless

    def awaits(self, kind: HookKind) -> bool:
        """Whether a hook of this kind is queued, or runs and still has time."""
        return any(
            news.spec.kind == kind and news.state is not ZOMBIE
            for lane in self._lanes.values()
            for news in lane.queue
        )

    def queued_since(self) -> list[float]:
        """Since when each of what is queued has been so. For any thread."""
        return [
            news.since
            # Copies, each made in one step, since the runner goes on meanwhile.
            for lane in list(self._lanes.values())
            for news in list(lane.queue)
            if news.state in QUEUED
        ]

    def _lane(self, key: Hashable) -> Lane:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key)
        return lane

    def _leave(self, lane: Lane, news: News) -> None:
        freed = lane.leave(news)
        if not lane.queue:
            del self._lanes[lane.key]
        if freed is not None:
            self._slots.ready(freed)


def _subject(event: Event) -> Hashable | None:
    if isinstance(event, NODE_EVENTS):
        return ("node", event.node.id)
    if isinstance(event, _PARTITION_NEWS):
        return ("partition", event.partition_id)
    if isinstance(event, (FencedEvent, UnfencedEvent)):
        return ("fencing",)
    return None


def _hook_key(spec: HookSpec) -> Hashable:
    """The same for the same function, however often and for whatever kinds it is registered."""
    try:
        hash(spec.fn)
    except TypeError:
        return ("hook", id(spec.fn))
    return ("hook", spec.fn)
