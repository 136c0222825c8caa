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
from collections.abc import Callable, Iterable
from functools import partial
from queue import Empty, SimpleQueue

from ..errors import ClusterKitError
from ..hooks import HookCancelledError
from .drivers import Drivers
from .jobs import OUT_OF_TIME, Job
from .loops import LAST_WORDS_SECONDS, HookLoop
from .runs import Run, is_coroutine_hook, this_run
from .workers import Workers

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 10.0


class HookLoopError(ClusterKitError, RuntimeError):
    """The event loop that a hook was to run on has been closed."""


def in_hook() -> bool:
    """Whether the code that asks is part of a hook's run, which would wait for itself."""
    run = this_run()
    return run is not None and run.owner.is_running(run.job.id)


class Executors:
    """Runs the jobs of one dispatcher.

    All methods may be called from any thread, hooks and loops included, and none but ``close``
    waits for anything.

    Args:
        report: Called with the ends of jobs, each of which is reported once, from any thread and
            also while objects are being collected: it must do no more than ``SimpleQueue.put``.
        loop: Where coroutines run; None for a private loop.
        context: What each run gets a copy of.
        idle_seconds: How long a worker thread without work stays.
    """

    def __init__(
        self,
        report: Callable[[list[Run]], None],
        *,
        loop: asyncio.AbstractEventLoop | None,
        context: contextvars.Context,
        idle_seconds: float = _IDLE_SECONDS,
    ) -> None:
        self._report = report
        self._context = context
        # Taking a run out of this dict, which is atomic, is what decides who reports its end.
        # There is no lock around it: an end may be noticed by the garbage collector anywhere.
        self._runs: dict[int, Run] = {}
        self._workers: Workers[Run] = Workers(
            self._call, name="clusterkit-hook", idle_seconds=idle_seconds
        )
        self._loop = HookLoop(loop)
        self._drivers = Drivers(self._end, self._pass_on)
        self._closed = False
        self._ends: SimpleQueue[None] = SimpleQueue()
        # The run that called close() from the loop: its end is the private loop's end.
        self._last_on_loop: Run | None = None
        self._is_coroutine: dict[int, bool] = {}

    def start(self, jobs: Iterable[Job]) -> None:
        """Runs jobs. The end of each is reported, also if it cannot be run."""
        now = time.time()
        awaited: list[Run] = []
        for job in jobs:
            run = Run(job, self, self._context.copy(), now)
            self._runs[job.id] = run
            if self._closed:
                run.cancel()  # that it never ran is not an error of the hook
                self._tell(run, HookCancelledError("the kit has stopped"))
                continue
            order = job.spec.order
            coroutine = self._is_coroutine.get(order)
            if coroutine is None:
                coroutine = self._is_coroutine[order] = is_coroutine_hook(job.spec.fn)
            if coroutine:
                run.on_loop = True
                awaited.append(run)
                continue
            try:
                self._workers.submit(run)
            except RuntimeError as error:
                self._tell(run, error)
        if awaited:
            self._await(awaited)

    def cancel(self, job_id: int, reason: str) -> None:
        """Tells a run to end: a coroutine is cancelled, a thread can only be asked.

        A job that is not running is ignored.
        """
        run = self._runs.get(job_id)
        if run is None:
            return
        run.cancel()
        run.timed_out = run.timed_out or reason == OUT_OF_TIME
        if not run.on_loop:
            return
        if run.task is None and not self._loop.is_running():
            # It waits for a loop that may never run again, and has done nothing yet.
            self._tell(run, HookCancelledError(reason))
        else:
            self._post(partial(_cancel_task, run))

    def check(self) -> None:
        """Reports what is over on a loop that is held up or closed. Call it before a time-out."""
        self._drivers.flush()
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
            return run.where_awaiting()
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
        # A thread in a hook that does not end is left alone.
        self._workers.close(0.0 if self._runs else LAST_WORDS_SECONDS)
        if own is not None and own.on_loop:
            self._last_on_loop = own
        else:
            self._loop.close(max(0.0, deadline - time.monotonic()))
        return tuple(sorted(run.job.spec.name for run in self._running()))

    def _own_run(self) -> Run | None:
        own = this_run()
        return own if own is not None and self._runs.get(own.job.id) is own else None

    def _awaited(self, own: Run | None) -> bool:
        on_loop = self._loop.is_current()
        return any(run is not own and not (on_loop and run.on_loop) for run in self._running())

    def _running(self) -> list[Run]:
        return list(self._runs.values())

    # -- on a worker thread -----------------------------------------------------------------

    def _call(self, run: Run) -> None:
        error: BaseException | None = None
        result: object = None
        if run.cancelled:
            self._tell(run, HookCancelledError("told to end before it began"))
            return
        run.thread_id = threading.get_ident()
        run.began = time.perf_counter()
        try:
            result = run.context.run(run.call)
        except BaseException as raised:
            error = raised
        run.thread_id = None
        if error is None and inspect.isawaitable(result):
            run.awaitable = result
            run.on_loop = True
            self._await([run])
        else:
            self._tell(run, error)

    # -- on the loop ------------------------------------------------------------------------

    def _await(self, runs: list[Run]) -> None:
        self._post(partial(self._begin, runs))

    def _post(self, step: Callable[[], None]) -> None:
        try:
            self._loop.post(step)
        except RuntimeError:
            self._loop_closed()

    def _begin(self, runs: list[Run]) -> None:
        here: list[Run] = []
        for run in runs:
            if run.job.id in self._runs:
                here.append(run)
            else:
                run.discard()  # ended while it waited for the loop
        self._drivers.begin(here)

    def _loop_closed(self) -> None:
        for run in self._running():
            if run.on_loop:
                if run.task is None:
                    run.discard()
                self._tell(
                    run,
                    HookLoopError(
                        f"hook {run.job.spec.name!r} could not finish: the event loop that the kit "
                        "was started on has been closed; stop the kit before its loop ends"
                    ),
                )

    # -- the end ----------------------------------------------------------------------------

    def _tell(self, run: Run, error: BaseException | None) -> None:
        if self._end(run, error):
            self._pass_on([run])

    def _end(self, run: Run, error: BaseException | None) -> bool:
        """Takes a run out of the books; whether its end is to be reported, and was not before."""
        if self._runs.pop(run.job.id, None) is None:
            return False
        run.ended(error)
        if error is not None and not (run.cancelled and isinstance(error, HookCancelledError)):
            _log(run.job, error)
        if run is self._last_on_loop:
            self._loop.close(0.0)
        return True

    def _pass_on(self, ends: list[Run]) -> None:
        self._report(ends)
        if self._closed:
            self._ends.put(None)


def _log(job: Job, error: BaseException) -> None:
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


def _cancel_task(run: Run) -> None:
    if run.task is not None:
        run.task.cancel()
