"""One run of a hook: its job, what the hook may ask of it, and how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import time
import traceback
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING

from .._hook_context import HookCancelledError, HookContext, _current
from ..metrics import HookOutcome
from .jobs import Job

if TYPE_CHECKING:
    from .executors import Executors

OVER = object()
"""In place of what a hook waits for: it waits for nothing any more."""


class Run:
    """One run: its job, what it may ask, where it is, and, once reported, how it ended.

    Its attributes are written by the thread that runs it; ``cancelled`` and ``timed_out``, which
    only rise, by the one that tells it to end.

    Attributes:
        job: Of which job.
        error: What it raised, None if nothing.
        outcome: What to count it as; None if it never began, or was counted as out of time.
        seconds: How long the hook itself ran.
    """

    __slots__ = (
        "awaitable",
        "began",
        "cancelled",
        "context",
        "error",
        "job",
        "on_loop",
        "outcome",
        "owner",
        "seconds",
        "seen",
        "started",
        "task",
        "thread_id",
        "timed_out",
    )

    def __init__(
        self, job: Job, owner: Executors, context: contextvars.Context, started: float
    ) -> None:
        self.job = job
        self.owner = owner
        self.context = context
        self.started = started
        self.began: float | None = None
        self.cancelled = False
        self.timed_out = False
        self.on_loop = False
        self.awaitable: Awaitable[object] | None = None
        self.task: asyncio.Task[None] | None = None
        self.thread_id: int | None = None
        self.seen: HookContext | None = None
        self.error: BaseException | None = None
        self.outcome: HookOutcome | None = None
        self.seconds = 0.0

    def hook_context(self) -> HookContext:
        """What the hook may ask; made when it first does, which most never do."""
        if self.seen is None:
            job = self.job
            deadline = None
            if job.timeout is not None:
                began = datetime.fromtimestamp(self.started, UTC)
                deadline = began + timedelta(seconds=job.timeout)
            self.seen = HookContext(
                event_id=job.event.event_id,
                attempt=job.attempt,
                replayed=job.replayed,
                deadline=deadline,
            )
        # Afterwards, since it may be told to end by another thread at any moment.
        if self.cancelled:
            self.seen._cancelled = True
        return self.seen

    def cancel(self) -> None:
        """The hook should end soon, and may see so."""
        self.cancelled = True
        if self.seen is not None:
            self.seen._cancelled = True

    def call(self) -> object:
        """Calls the hook; in the run's own context."""
        _current.set(self)
        return self.job.spec.fn(*self.job.args)

    def first_step(self) -> object:
        """Calls a hook that is to be awaited, and goes as far as it can go without waiting.

        Returns:
            What it waits for; ``OVER`` if it has ended.
        """
        _current.set(self)
        awaitable = self.awaitable
        if awaitable is None:
            job = self.job
            awaitable = job.spec.fn(*job.args)  # type: ignore[assignment] # see is_coroutine_hook
        if type(awaitable) is not CoroutineType:
            assert awaitable is not None, "what is awaited is known before"
            awaitable = _awaiting(awaitable)
        self.awaitable = awaitable
        try:
            return awaitable.send(None)
        except StopIteration:
            # Caught here, since each call that it leaves takes as long as the whole of such a hook.
            return OVER

    def ended(self, error: BaseException | None) -> None:
        """Notes how it ended, for the report."""
        self.awaitable = None
        self.error = error
        if self.began is None or self.timed_out:
            return
        self.seconds = time.perf_counter() - self.began
        if error is None:
            self.outcome = "ok"
        elif self.cancelled and isinstance(error, HookCancelledError):
            self.outcome = "cancelled"
        else:
            self.outcome = "error"

    def discard(self) -> None:
        """Lets go of a coroutine that will not be awaited, without a warning about that."""
        if inspect.iscoroutine(self.awaitable) and self.awaitable.cr_frame is not None:
            with contextlib.suppress(Exception):
                self.awaitable.close()

    def where_awaiting(self) -> str:
        """The stack of what it awaits, as text."""
        lines: list[str] = []
        awaitable: object = self.awaitable
        while inspect.iscoroutine(awaitable) and awaitable.cr_frame is not None:
            lines += traceback.format_stack(awaitable.cr_frame, limit=1)
            awaitable = awaitable.cr_await
        return "".join(lines)


async def _awaiting(awaitable: Awaitable[object]) -> object:
    return await awaitable


def this_run() -> Run | None:
    """The run that the code which asks is part of; None if it is part of none."""
    run = _current.get(None)
    return run if isinstance(run, Run) else None


def is_coroutine_hook(fn: Callable[..., object]) -> bool:
    """Whether calling ``fn`` only makes a coroutine, and so may be done on the loop."""
    inner: object = fn
    while isinstance(inner, partial):
        inner = inner.func
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(
        getattr(type(inner), "__call__", None)  # noqa: B004  # what it is, not whether
    )
