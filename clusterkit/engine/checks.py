"""The application's health checks: run at their intervals, and what fails is told when it changes.

One thread keeps the times and runs nothing itself. A ``def`` check is called on a worker thread, an
``async def`` one on the loop that hooks run on. A check fails if it raises, returns False, or takes
longer than its timeout; a run that is out of time is told to end, if it is a coroutine, and the
check is not run again before that run has ended. So a check that hangs harms nobody but itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

from ..errors import ClusterKitError
from .loops import HookLoop
from .runs import is_coroutine_hook
from .workers import Workers

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 10.0


class CheckFailedError(ClusterKitError):
    """A health check says by its result, or by its silence, that something is wrong."""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """What to check, and how often; times in seconds."""

    name: str
    fn: Callable[[], object]
    interval: float
    timeout: float


class _Run:
    """One run of a check."""

    __slots__ = ("check", "context", "ended", "error", "on_loop", "out_of_time", "started", "task")

    def __init__(self, check: HealthCheck, context: contextvars.Context, started: float) -> None:
        self.check = check
        self.context = context
        self.started = started
        self.task: asyncio.Task[None] | None = None
        self.on_loop = False
        self.out_of_time = False
        self.ended = False
        self.error: BaseException | None = None


class _Watched:
    """A check, and how it is."""

    __slots__ = ("check", "due", "failing", "run")

    def __init__(self, check: HealthCheck, due: float) -> None:
        self.check = check
        self.due = due
        self.run: _Run | None = None
        self.failing = False


class Checks:
    """Runs health checks from ``start()`` to ``close()``.

    Args:
        report: Called with the sorted names of the failing checks whenever they change.
        loop: Where coroutines run; None for a private loop.
        context: What each run gets a copy of.
    """

    def __init__(
        self,
        report: Callable[[tuple[str, ...]], None],
        *,
        loop: asyncio.AbstractEventLoop | None,
        context: contextvars.Context,
    ) -> None:
        self._report = report
        self._context = context
        self._loop = HookLoop(loop)
        self._workers: Workers[_Run] = Workers(
            self._call, name="clusterkit-check", idle_seconds=_IDLE_SECONDS
        )
        self._changed = threading.Condition()
        self._watched: list[_Watched] = []
        self._failing: tuple[str, ...] = ()
        self._started = self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, check: HealthCheck) -> None:
        """Runs this check as well, for the first time at once or with the start."""
        with self._changed:
            self._watched.append(_Watched(check, time.monotonic()))
            self._wake()

    def start(self) -> None:
        """Begins to run the checks."""
        with self._changed:
            self._started = True
            self._wake()

    def close(self, timeout: float) -> None:
        """Ends the thread, and what runs as far as that can be ended. Waits no longer than that."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            runs = [watched.run for watched in self._watched if watched.run is not None]
        for run in runs:
            self._cancel(run)
        if self._thread is not None:
            self._thread.join(timeout)
        # A thread in a check that does not end is left alone.
        self._workers.close(0.0 if any(not run.on_loop for run in runs) else timeout)
        self._loop.close(timeout)

    # -- the thread that keeps the times -----------------------------------------------------

    def _wake(self) -> None:
        if self._thread is None and self._started and self._watched and not self._closed:
            self._thread = threading.Thread(
                target=self._keep, name="clusterkit-checks", daemon=True
            )
            self._thread.start()
        self._changed.notify()

    def _keep(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                now = time.monotonic()
                wake_at = min(self._look_at(watched, now) for watched in self._watched)
                failing = tuple(sorted(w.check.name for w in self._watched if w.failing))
                if failing == self._failing:
                    self._changed.wait(max(0.0, wake_at - now))
                    continue
                self._failing = failing
            self._report(failing)

    def _look_at(self, watched: _Watched, now: float) -> float:
        """Starts the check, or takes its result; when to look at it again."""
        run, check = watched.run, watched.check
        if run is not None and run.ended:
            watched.run = None
            watched.due = max(now, run.started + check.interval)
            if not run.out_of_time:
                self._judge(watched, run.error)
        elif run is not None and not run.out_of_time and now >= run.started + check.timeout:
            run.out_of_time = True
            self._judge(watched, CheckFailedError(f"no result after {check.timeout:g} s"))
            self._cancel(run)
        if watched.run is None and watched.due <= now:
            watched.run = run = _Run(check, self._context.copy(), now)
            self._begin(run)
        if watched.run is None:
            return watched.due
        if watched.run.ended:
            return now  # it could not even begin
        # Its end wakes this thread; what is out of time may take for ever.
        started = watched.run.started
        return now + check.interval if watched.run.out_of_time else started + check.timeout

    def _judge(self, watched: _Watched, error: BaseException | None) -> None:
        name, failed = watched.check.name, error is not None
        if failed and not watched.failing:
            logger.warning(
                "health check %s fails: %s: %s",
                name,
                type(error).__name__,
                error,
                extra={"ck_check": name},
            )
        elif watched.failing and not failed:
            logger.info("health check %s passes again", name, extra={"ck_check": name})
        watched.failing = failed

    def _begin(self, run: _Run) -> None:
        if is_coroutine_hook(run.check.fn):
            self._post(run, None)
            return
        try:
            self._workers.submit(run)
        except RuntimeError as e:
            self._ended(run, e)

    def _cancel(self, run: _Run) -> None:
        def cancel() -> None:
            if run.task is not None:
                run.task.cancel()

        if run.on_loop:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self._loop.post(cancel)

    # -- one run -----------------------------------------------------------------------------

    def _call(self, run: _Run) -> None:
        """On a worker thread."""
        result: object = None
        error: BaseException | None = None
        try:
            result = run.context.run(run.check.fn)
        except BaseException as e:  # SystemExit of a check is a failure like any other
            error = e
        if error is None and inspect.isawaitable(result):
            self._post(run, result)
        else:
            self._ended(run, error or _verdict(result))

    def _post(self, run: _Run, awaitable: Awaitable[object] | None) -> None:
        run.on_loop = True
        try:
            self._loop.post(partial(self._await, run, awaitable))
        except RuntimeError as e:
            _discard(awaitable)
            self._ended(run, e)

    def _await(self, run: _Run, awaitable: Awaitable[object] | None) -> None:
        """On the loop."""
        if run.out_of_time or self._closed:
            _discard(awaitable)
            self._ended(run, CheckFailedError("the loop came to it too late"))
            return
        run.task = asyncio.get_running_loop().create_task(
            self._drive(run, awaitable), name=run.check.name, context=run.context
        )
        run.task.add_done_callback(lambda _: self._never_began(run, awaitable))

    async def _drive(self, run: _Run, awaitable: Awaitable[object] | None) -> None:
        error: BaseException | None
        try:
            if awaitable is None:
                awaitable = cast("Awaitable[object]", run.check.fn())
            error = _verdict(await awaitable)
        except BaseException as e:  # what leaves a task may end the application's loop
            error = e
        self._ended(run, error)

    def _never_began(self, run: _Run, awaitable: Awaitable[object] | None) -> None:
        if not run.ended:
            _discard(awaitable)
            self._ended(run, CheckFailedError("it was cancelled before it began"))

    def _ended(self, run: _Run, error: BaseException | None) -> None:
        with self._changed:
            run.ended, run.error = True, error
            self._changed.notify()


def _verdict(result: object) -> CheckFailedError | None:
    return CheckFailedError("it returned False") if result is False else None


def _discard(awaitable: Awaitable[object] | None) -> None:
    if inspect.iscoroutine(awaitable):
        awaitable.close()
