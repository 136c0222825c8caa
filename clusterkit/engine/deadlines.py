"""Deadlines that are mostly called off."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """Deadlines of few different delays; each step is O(1) in their number.

    Those of equal delays come in the order in which they were set, so one queue for each delay
    keeps them sorted. Keys are set with times that never run backwards.
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
