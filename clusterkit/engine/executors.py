"""Runs hooks: ``def`` on worker threads, ``async def`` on a loop, whatever they do.

A hook that is a coroutine function runs on the application's loop, or, where there is none, on a
private one in a thread of its own. Any other is called on a worker thread; if it returns an
awaitable, that is awaited on the loop. Each run has its own copy of the context that the kit was
started in, with its ``HookContext`` in it.

Whatever a hook raises, ``SystemExit`` and its like included, ends that run alone; it is logged
with its traceback, and reported. Every run that is started is reported exactly once, when it has
really ended: the caller decides what a run out of time means.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from queue import Empty, SimpleQueue
from typing import cast

from ..errors import ClusterKitError
from ..hooks import HookCancelledError, HookContext, _current
from ..metrics import HookOutcome
from .jobs import OUT_OF_TIME, Job
from .loops import HookLoop
from .workers import Workers

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 10.0


class HookLoopError(ClusterKitError, RuntimeError):
    """The event loop that a hook was to run on has been closed."""


@dataclass(frozen=True, slots=True)
class JobEnded:
    """A run has really ended: with ``error``, or well.

    Attributes:
        job_id: Of which job.
        error: What it raised, None if nothing.
        job: The job itself.
        outcome: What to count it as; None if it never began, or was counted as out of time.
        seconds: How long the hook itself ran.
    """

    job_id: int
    error: BaseException | None
    job: Job | None = None
    outcome: HookOutcome | None = None
    seconds: float = 0.0


class _Run:
    """One run: its job, what it may ask, and where it is."""

    __slots__ = (
        "awaitable",
        "began",
        "context",
        "hook_context",
        "job",
        "on_loop",
        "owner",
        "task",
        "thread_id",
        "timed_out",
    )

    def __init__(self, job: Job, owner: Executors, context: contextvars.Context) -> None:
        self.job = job
        self.owner = owner
        self.context = context
        deadline = None
        if job.timeout is not None:
            deadline = datetime.now(UTC) + timedelta(seconds=job.timeout)
        self.hook_context = HookContext(
            event_id=job.event.event_id,
            attempt=job.attempt,
            replayed=job.replayed,
            deadline=deadline,
        )
        self.began: float | None = None
        self.timed_out = False
        self.on_loop = False
        self.awaitable: Awaitable[object] | None = None
        self.task: asyncio.Task[None] | None = None
        self.thread_id: int | None = None

    @property
    def cancelled(self) -> bool:
        return self.hook_context.cancelled


_this_run: contextvars.ContextVar[_Run] = contextvars.ContextVar("clusterkit_run")


def in_hook() -> bool:
    """Whether the code that asks is part of a hook's run, which would wait for itself."""
    run = _this_run.get(None)
    return run is not None and run.owner.is_running(run.job.id)


class Executors:
    """Runs the jobs of one dispatcher.

    All methods may be called from any thread, hooks and loops included, and none but ``close``
    waits for anything.

    Args:
        report: Called once for each job that was started, from any thread and also while objects
            are being collected: it must do no more than ``SimpleQueue.put``.
        loop: Where coroutines run; None for a private loop.
        context: What each run gets a copy of.
        idle_seconds: How long a worker thread without work stays.
    """

    def __init__(
        self,
        report: Callable[[JobEnded], None],
        *,
        loop: asyncio.AbstractEventLoop | None,
        context: contextvars.Context,
        idle_seconds: float = _IDLE_SECONDS,
    ) -> None:
        self._report = report
        self._context = context
        # Taking a run out of this dict, which is atomic, is what decides who reports its end.
        # There is no lock around it: an end may be noticed by the garbage collector anywhere.
        self._runs: dict[int, _Run] = {}
        self._workers: Workers[_Run] = Workers(
            self._call, name="clusterkit-hook", idle_seconds=idle_seconds
        )
        self._loop = HookLoop(loop)
        self._closed = False
        self._ends: SimpleQueue[None] = SimpleQueue()
        # The run that called close() from the loop: its end is the private loop's end.
        self._last_on_loop: _Run | None = None
        self._is_coroutine: dict[int, bool] = {}

    def start(self, job: Job) -> None:
        """Runs a job. Its end is reported, also if it cannot be run."""
        run = _Run(job, self, self._context.copy())
        run.context.run(_enter, run)
        self._runs[job.id] = run
        if self._closed:
            run.hook_context._cancelled = True  # that it never ran is not an error of the hook
            self._end(run, HookCancelledError("the kit has stopped"))
            return
        order = job.spec.order
        coroutine = self._is_coroutine.get(order)
        if coroutine is None:
            coroutine = self._is_coroutine[order] = is_coroutine_hook(job.spec.fn)
        if coroutine:
            self._await(run)
            return
        try:
            self._workers.submit(run)
        except RuntimeError as error:
            self._end(run, error)

    def cancel(self, job_id: int, reason: str) -> None:
        """Tells a run to end: a coroutine is cancelled, a thread can only be asked.

        A job that is not running is ignored.
        """
        run = self._runs.get(job_id)
        if run is None:
            return
        run.hook_context._cancelled = True
        run.timed_out = run.timed_out or reason == OUT_OF_TIME
        if not run.on_loop:
            return
        if run.task is None and not self._loop.is_running():
            # It waits for a loop that may never run again, and has done nothing yet.
            self._end(run, HookCancelledError(reason))
        else:
            self._post(partial(_cancel_task, run))

    def check(self) -> None:
        """Reports the runs on a loop that has been closed. Call it now and then."""
        if self._loop.is_closed():
            self._loop_closed()

    @property
    def busy(self) -> bool:
        """Whether there is a job that has not ended."""
        return bool(self._runs)

    def is_running(self, job_id: int) -> bool:
        """Whether a job was started and has not ended."""
        return job_id in self._runs

    def where(self, job_id: int) -> str:
        """The stack of a running job, as text; empty if it cannot be known."""
        run = self._runs.get(job_id)
        if run is None:
            return ""
        if run.on_loop:
            return _where_awaiting(run.awaitable)
        frame = sys._current_frames().get(run.thread_id) if run.thread_id is not None else None
        return "" if frame is None else "".join(traceback.format_stack(frame, limit=20))

    def close(self, timeout: float) -> tuple[str, ...]:
        """Tells all runs to end, waits for them, and lets go of threads and the private loop.

        It does not wait for the run that it is called from, nor, called on the loop, for
        coroutines. What still runs afterwards is reported when it ends.

        Returns:
            The names of the hooks that still run.
        """
        self._closed = True
        deadline = time.monotonic() + timeout
        own = self._own_run()
        for run in self._running():
            if run is not own:  # it asked for this, and shall see the end of it
                self.cancel(run.job.id, "the kit is stopping")
        while self._awaited(own) and (left := deadline - time.monotonic()) > 0:
            self.check()
            # Ends wake this at once; now and then it looks at the loop as well.
            with contextlib.suppress(Empty):
                self._ends.get(timeout=min(left, 0.2))
        self._workers.close()
        if own is not None and own.on_loop:
            self._last_on_loop = own
        else:
            self._loop.close(max(0.0, deadline - time.monotonic()))
        return tuple(sorted(run.job.spec.name for run in self._running()))

    def _own_run(self) -> _Run | None:
        own = _this_run.get(None)
        return own if own is not None and self._runs.get(own.job.id) is own else None

    def _awaited(self, own: _Run | None) -> bool:
        on_loop = self._loop.is_current()
        return any(run is not own and not (on_loop and run.on_loop) for run in self._running())

    def _running(self) -> list[_Run]:
        return list(self._runs.values())

    # -- on a worker thread -----------------------------------------------------------------

    def _call(self, run: _Run) -> None:
        error: BaseException | None = None
        result: object = None
        if run.cancelled:
            self._end(run, HookCancelledError("told to end before it began"))
            return
        run.thread_id = threading.get_ident()
        run.began = time.perf_counter()
        try:
            result = run.context.run(run.job.spec.fn, *run.job.args)
        except BaseException as raised:
            error = raised
        run.thread_id = None
        if error is None and inspect.isawaitable(result):
            run.awaitable = result
            self._await(run)
        else:
            self._end(run, error)

    # -- on the loop ------------------------------------------------------------------------

    def _await(self, run: _Run) -> None:
        run.on_loop = True
        self._post(partial(self._begin, run))

    def _post(self, step: Callable[[], None]) -> None:
        try:
            self._loop.post(step)
        except RuntimeError:
            self._loop_closed()

    def _begin(self, run: _Run) -> None:
        if run.job.id not in self._runs:
            _discard(run)  # ended while it waited for the loop
            return
        if run.cancelled:
            _discard(run)
            self._end(run, HookCancelledError("told to end before it began"))
            return
        loop = asyncio.get_running_loop()
        run.task = loop.create_task(self._drive(run), name=run.job.spec.name, context=run.context)
        # A task that is cancelled before its first step never enters its coroutine.
        run.task.add_done_callback(lambda task: self._never_began(run))

    def _never_began(self, run: _Run) -> None:
        if run.job.id in self._runs:
            _discard(run)
            self._end(run, HookCancelledError("cancelled before it began"))

    async def _drive(self, run: _Run) -> None:
        # Nothing may leave this coroutine: asyncio lets SystemExit and KeyboardInterrupt of a
        # task end the whole loop, which is the application's.
        error: BaseException | None = None
        try:
            if run.awaitable is None:
                run.began = time.perf_counter()
                run.awaitable = cast("Awaitable[object]", run.job.spec.fn(*run.job.args))
            await run.awaitable
        except asyncio.CancelledError as raised:
            error = HookCancelledError("cancelled") if run.cancelled else raised
        except BaseException as raised:
            error = raised
        self._end(run, error)

    def _loop_closed(self) -> None:
        for run in self._running():
            if run.on_loop:
                if run.task is None:
                    _discard(run)
                self._end(
                    run,
                    HookLoopError(
                        f"hook {run.job.spec.name!r} could not finish: the event loop that the kit "
                        "was started on has been closed; stop the kit before its loop ends"
                    ),
                )

    # -- the end ----------------------------------------------------------------------------

    def _end(self, run: _Run, error: BaseException | None) -> None:
        job = run.job
        if self._runs.pop(job.id, None) is None:
            return
        run.awaitable = None
        if error is not None and not (run.cancelled and isinstance(error, HookCancelledError)):
            # A broken log handler is not the hook's fault, and must not lose its end.
            with contextlib.suppress(Exception):
                logger.error(
                    "hook %s raised for event %s (attempt %d)",
                    job.spec.name,
                    job.event.event_id,
                    job.attempt,
                    exc_info=error,
                    extra={
                        "ck_hook": job.spec.name,
                        "ck_kind": job.spec.kind,
                        "ck_event_id": job.event.event_id,
                        "ck_attempt": job.attempt,
                    },
                )
        self._report(_ended(run, error))
        if self._closed:
            self._ends.put(None)
        if run is self._last_on_loop:
            self._loop.close(0.0)


def _ended(run: _Run, error: BaseException | None) -> JobEnded:
    job = run.job
    if run.began is None or run.timed_out:
        return JobEnded(job.id, error, job)
    seconds = time.perf_counter() - run.began
    outcome: HookOutcome = "ok"
    if error is not None:
        told_to = run.cancelled and isinstance(error, HookCancelledError)
        outcome = "cancelled" if told_to else "error"
    return JobEnded(job.id, error, job, outcome, seconds)


def is_coroutine_hook(fn: Callable[..., object]) -> bool:
    """Whether calling ``fn`` only makes a coroutine, and so may be done on the loop."""
    inner: object = fn
    while isinstance(inner, partial):
        inner = inner.func
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(
        getattr(type(inner), "__call__", None)  # noqa: B004  # what it is, not whether
    )


def _enter(run: _Run) -> None:
    """Makes the run the one that its own context knows."""
    _current.set(run.hook_context)
    _this_run.set(run)


def _cancel_task(run: _Run) -> None:
    if run.task is not None:
        run.task.cancel()


def _discard(run: _Run) -> None:
    """Lets go of a coroutine that will not be awaited, without a warning about that."""
    if inspect.iscoroutine(run.awaitable) and run.awaitable.cr_frame is not None:
        with contextlib.suppress(Exception):
            run.awaitable.close()


def _where_awaiting(awaitable: object) -> str:
    lines: list[str] = []
    while inspect.iscoroutine(awaitable) and awaitable.cr_frame is not None:
        lines += traceback.format_stack(awaitable.cr_frame, limit=1)
        awaitable = awaitable.cr_await
    return "".join(lines)
