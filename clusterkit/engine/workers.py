"""Worker threads, started when there is work for them and ended when there has been none.

There is no limit here: whoever submits bounds what runs at once. The threads are daemons, since a
hook that never returns must not keep the process from ending.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Workers(Generic[T]):
    """Calls ``handle`` with each submitted item, on a thread of its own at the time.

    Args:
        handle: Must not raise.
        name: Threads are called this, with a number.
        idle_seconds: How long a thread without work stays.
    """

    def __init__(self, handle: Callable[[T], None], *, name: str, idle_seconds: float) -> None:
        self._handle = handle
        self._name = name
        self._idle_seconds = idle_seconds
        self._numbers = itertools.count(1)
        self._queue: SimpleQueue[T | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        # Threads that wait for an item and are not yet counted on for one in the queue.
        self._idle = 0
        self._closed = False

    def submit(self, item: T) -> None:
        """Has the item handled at once.

        Raises:
            RuntimeError: The system can start no more threads.
        """
        with self._lock:
            if self._idle:
                self._idle -= 1
                self._queue.put(item)
                return
        thread = threading.Thread(
            target=self._work, args=(item,), name=f"{self._name}-{next(self._numbers)}", daemon=True
        )
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def close(self, timeout: float) -> None:
        """Ends the idle threads, and the others when they are done; waits that long for it."""
        deadline = time.monotonic() + timeout
        with self._lock:
            started = list(self._threads)
            self._closed = True
            for _ in range(self._idle):
                self._queue.put(None)
            self._idle = 0
        for thread in started:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self, first: T) -> None:
        item: T | None = first
        while item is not None:
            self._handle(item)
            item = None  # an idle thread must not keep the last hook's objects alive
            with self._lock:
                if self._closed:
                    return
                self._idle += 1
            item = self._next()

    def _next(self) -> T | None:
        while True:
            try:
                return self._queue.get(timeout=self._idle_seconds)
            except Empty:
                with self._lock:
                    if self._idle:
                        self._idle -= 1
                        return None
                # Each thread that waits is counted on: an item is just being put for this one.
