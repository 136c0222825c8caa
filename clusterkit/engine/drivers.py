"""Drives coroutine hooks on an event loop: many that need not wait in one task, others each in one.

A task costs more than a hook that has nothing to wait for. So a driver, which is a task, begins
runs one after another, each in the run's own context. The first that has to wait keeps the driver
as its own task, from its first step to its last, so whatever it asks of its task (time-outs, task
groups, cancellation) holds for it alone; those that have not begun get a driver each. A hook that
had to wait last time gets a driver of its own at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from functools import partial
from typing import Any

from ..hooks import HookCancelledError
from .runs import OVER, Run

_LONGEST_STEP_SECONDS = 0.001
"""For so long a driver may keep the loop with runs that need not wait."""


class Drivers:
    """All methods but ``flush`` are for the thread of the loop.

    Args:
        end: Takes a run out of the books; whether its end is to be reported, and was not before.
        report: Passes reports on.
    """

    def __init__(
        self,
        end: Callable[[Run, BaseException | None], bool],
        report: Callable[[list[Run]], None],
    ) -> None:
        self._end = end
        self._report = report
        self._waits: set[int] = set()  # the hooks that had to wait when they ran last
        self._unreported: deque[Run] = deque()

    def begin(self, runs: Sequence[Run]) -> None:
        """Begins runs at once."""
        together: list[Run] = []
        for run in runs:
            if run.job.spec.order in self._waits:
                self._spawn([run])
            else:
                together.append(run)
        if together:
            self._spawn(together)

    def flush(self) -> None:
        """Reports what has ended, while a hook may hold up the loop. For any thread."""
        ends: list[Run] = []
        with contextlib.suppress(IndexError):
            while True:
                ends.append(self._unreported.popleft())  # atomic, so each is reported once
        if ends:
            self._report(ends)

    def _spawn(self, runs: list[Run]) -> None:
        name = runs[0].job.spec.name
        task = asyncio.get_running_loop().create_task(self._drive(runs), name=name)
        # A task that is cancelled before its first step never enters its coroutine.
        task.add_done_callback(partial(self._over, runs))

    def _over(self, runs: list[Run], task: asyncio.Task[None]) -> None:
        while runs:
            run = runs.pop()
            run.discard()
            self._tell(run, HookCancelledError("cancelled before it began"))

    async def _drive(self, runs: list[Run]) -> None:
        # Nothing may leave this coroutine: asyncio lets SystemExit and KeyboardInterrupt of a
        # task end the whole loop, which is the application's.
        task = asyncio.current_task()
        assert task is not None, "this is a task's coroutine"
        clock, end, waits = time.perf_counter, self._end, self._waits
        until = clock() + _LONGEST_STEP_SECONDS
        unreported = self._unreported
        runs.reverse()
        while runs:
            run = runs.pop()
            if run.cancelled:
                run.discard()
                error: BaseException | None = HookCancelledError("told to end before it began")
            else:
                error = None
                run.began = began = clock()
                run.task = task
                try:
                    waits_for = run.context.run(run.first_step)
                except BaseException as raised:
                    error, waits_for = raised, OVER
                if waits_for is OVER:
                    if waits and error is None:
                        waits.discard(run.job.spec.order)
                else:
                    task.set_name(run.job.spec.name)
                    waits.add(run.job.spec.order)
                    for other in reversed(runs):
                        self._spawn([other])
                    runs.clear()
                    self.flush()
                    await self._finish(run, waits_for)
                    return
                run.task = None
                if runs and (began > until or task.cancelling()):
                    # Others on the loop have their turn; and who cancelled its task, cancelled it.
                    runs.reverse()
                    rest, runs[:] = list(runs), []
                    self._spawn(rest)
            if end(run, error):
                unreported.append(run)
        self.flush()

    async def _finish(self, run: Run, waits_for: object) -> None:
        error: BaseException | None = None
        try:
            assert asyncio.iscoroutine(run.awaitable)
            await _rest(run.context.run, run.awaitable, waits_for)
        except asyncio.CancelledError as raised:
            error = HookCancelledError("cancelled") if run.cancelled else raised
        except BaseException as raised:
            error = raised
        self._tell(run, error)

    def _tell(self, run: Run, error: BaseException | None) -> None:
        if self._end(run, error):
            self._report([run])


@types.coroutine
def _rest(
    within: Callable[..., object], coroutine: Coroutine[Any, Any, object], waits_for: object
) -> Generator[object, object, None]:
    """Drives a coroutine that has begun to its end, each step ``within`` its context."""
    while True:
        try:
            try:
                value = yield waits_for
            except GeneratorExit:
                within(coroutine.close)
                raise
            except BaseException as error:
                waits_for = within(coroutine.throw, error)
            else:
                waits_for = within(coroutine.send, value)
        except StopIteration:
            return
