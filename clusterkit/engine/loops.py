"""The event loop that coroutine hooks run on: the application's, or a private one."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable

LAST_WORDS_SECONDS = 1.0
"""For a thread that has nothing more to do, to be gone."""


class HookLoop:
    """The application's loop, or a private one that is started with the first step."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._loop = loop
        self._private: threading.Thread | None = None
        self._lock = threading.Lock()
        self._steps: deque[Callable[[], None]] = deque()
        self._woken = False

    def post(self, step: Callable[[], None]) -> None:
        """Has a step carried out on the loop; many steps cost one wake-up.

        Raises:
            RuntimeError: The loop is closed.
        """
        loop = self._loop
        if loop is None:
            loop = self._start_private()
        if loop.is_closed():
            self._steps.clear()
            raise RuntimeError("the loop is closed")
        self._steps.append(step)
        if not self._woken:
            self._woken = True
            loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        # Lowered first: a step that is posted from here on wakes the loop again.
        self._woken = False
        while self._steps:
            self._steps.popleft()()

    def _start_private(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._private = threading.Thread(
                    target=_run_loop, args=(self._loop,), name="clusterkit-hook-loop", daemon=True
                )
                self._private.start()
            return self._loop

    def is_closed(self) -> bool:
        return self._loop is not None and self._loop.is_closed()

    def is_running(self) -> bool:
        return self._loop is not None and (self._private is not None or self._loop.is_running())

    def is_current(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def close(self, timeout: float) -> None:
        """Ends a private loop, and waits for that unless called on it."""
        if self._private is None or self._loop is None:
            return
        with contextlib.suppress(RuntimeError):  # it has been closed before
            self._loop.call_soon_threadsafe(self._loop.stop)
        if self._private is not threading.current_thread():
            self._private.join(timeout + LAST_WORDS_SECONDS)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        # What still runs is cancelled for good; what resists that is given up.
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=LAST_WORDS_SECONDS))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
