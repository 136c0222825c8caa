"""Hooks really run: on threads and loops, in their context, and whatever they do stays theirs."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from queue import SimpleQueue

import pytest

from clusterkit.engine.executors import Executors, HookLoopError, in_hook
from clusterkit.engine.jobs import Job
from clusterkit.engine.runs import Run
from clusterkit.events import FencedEvent
from clusterkit.hooks import HookCancelledError, HookContext, Hooks, hook_context

WAIT = 10.0
"""Seconds after which a test gives up; nothing waits that long unless it is broken."""

colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")
ids = itertools.count(1)


class Lab:
    """Executors, with the ends that they report."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None, idle: float = 5.0) -> None:
        self.reports: SimpleQueue[Run] = SimpleQueue()
        self.executors = Executors(
            self._report,
            loop=loop,
            context=contextvars.copy_context(),
            idle_seconds=idle,
        )

    def _report(self, ends: list[Run]) -> None:
        for end in ends:
            self.reports.put(end)

    def job(
        self, fn: Callable[..., object], *, timeout: float | None = None, attempt: int = 1
    ) -> Job:
        hooks = Hooks()
        hooks.on_fenced(fn)
        event = FencedEvent(
            reason="test", timestamp=datetime.now(UTC), revision=7, event_id="fenced-7"
        )
        return Job(next(ids), hooks._specs()[0], event, (event,), attempt, timeout, False)

    def start(self, fn: Callable[..., object]) -> Job:
        job = self.job(fn)
        self.executors.start([job])
        return job

    def ended(self) -> Run:
        return self.reports.get(timeout=WAIT)

    def run(self, fn: Callable[..., object]) -> BaseException | None:
        job = self.start(fn)
        end = self.ended()
        assert end.job is job
        return end.error


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    assert made.executors.close(WAIT) == ()
    assert made.reports.empty(), "each run is reported once"


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An application's loop, on a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(WAIT)
        loop.close()


def well(end: Run, job: Job) -> bool:
    """Whether it is the good end of a job."""
    return (end.job, end.error, end.outcome) == (job, None, "ok")


def test_a_function_runs_on_a_worker_thread_with_its_event(lab: Lab) -> None:
    seen: list[tuple[str, int]] = []
    job = lab.job(lambda e: seen.append((threading.current_thread().name, e.revision)))
    lab.executors.start([job])
    assert well(lab.ended(), job)
    assert seen == [("clusterkit-hook-1", 7)]


def test_every_kind_of_callable_that_awaits_runs_on_the_loop(lab: Lab) -> None:
    names: list[str] = []

    async def note(*args: object) -> None:
        await asyncio.sleep(0)
        names.append(threading.current_thread().name)

    class Caller:
        async def __call__(self, event: object) -> None:
            await note()

        async def method(self, event: object) -> None:
            await note()

    def returns_awaitable(event: object) -> Awaitable[None]:
        names.append("on " + threading.current_thread().name)
        return note()

    for fn in (note, Caller(), Caller().method, partial(note, 1), partial(Caller(), ())):
        job = lab.job(fn) if not isinstance(fn, partial) else lab.job(partial(note, 1))
        lab.executors.start([job])
        assert lab.ended().error is None
    assert names == ["clusterkit-hook-loop"] * 5
    names.clear()
    assert lab.run(returns_awaitable) is None
    assert lab.run(lambda e: note()) is None
    assert names == [
        "on clusterkit-hook-1",
        "clusterkit-hook-loop",
        "clusterkit-hook-loop",
    ]


def test_a_coroutine_runs_on_the_loop_that_was_given() -> None:
    with running_loop() as loop:
        lab = Lab(loop)
        seen: list[object] = []

        async def hook(event: object) -> None:
            seen.append(asyncio.get_running_loop())

        assert lab.run(hook) is None
        assert seen == [loop]
        assert lab.executors.close(WAIT) == ()
        assert loop.is_running(), "the application's loop is not ours to end"


@pytest.mark.parametrize("in_loop", [False, True])
def test_each_run_has_a_copy_of_the_context_of_the_start(in_loop: bool) -> None:
    token = colour.set("blue")
    lab = Lab()
    colour.reset(token)
    seen: list[str] = []

    def note(event: object) -> None:
        seen.append(colour.get())
        colour.set("red")

    async def note_async(event: object) -> None:
        note(event)

    for _ in range(2):
        assert lab.run(note_async if in_loop else note) is None
    lab.executors.close(WAIT)
    assert seen == ["blue", "blue"]


def test_a_hook_sees_its_own_hook_context(lab: Lab) -> None:
    seen: list[HookContext] = []
    before = datetime.now(UTC)
    job = lab.job(lambda e: seen.append(hook_context()), timeout=60, attempt=3)
    lab.executors.start([job])
    assert lab.ended().error is None
    context = seen[0]
    assert (context.event_id, context.attempt, context.replayed) == ("fenced-7", 3, False)
    assert context.deadline is not None
    assert timedelta(seconds=60) <= context.deadline - before < timedelta(seconds=60 + WAIT)
    assert not context.cancelled
    assert lab.run(lambda e: seen.append(hook_context())) is None
    assert seen[1].deadline is None


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        StopIteration(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("how", ["thread", "loop", "awaitable"])
def test_whatever_a_hook_raises_is_logged_and_reported_and_breaks_nothing(
    error: BaseException, how: str, lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(event: object) -> None:
        raise error

    async def raises_async(event: object) -> None:
        raise error

    hooks: dict[str, Callable[[object], object]] = {
        "thread": raises,
        "loop": raises_async,
        "awaitable": lambda e: raises_async(e),
    }
    with caplog.at_level(logging.ERROR, "clusterkit"):
        got = lab.run(hooks[how])
    # A coroutine cannot let StopIteration out: Python makes a RuntimeError of it.
    if isinstance(error, StopIteration) and how != "thread":
        assert isinstance(got, RuntimeError)
    else:
        assert got is error
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is got
    assert "raises" in record.getMessage() or "lambda" in record.getMessage()
    assert record.__dict__["ck_event_id"] == "fenced-7"
    assert lab.run(hooks[how]) is not None, "the thread and the loop go on"
    assert lab.run(lambda e: None) is None


def test_a_log_handler_that_raises_loses_no_end(lab: Lab) -> None:
    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise OSError("log")

    def raises(event: object) -> None:
        raise ValueError("x")

    log = logging.getLogger("clusterkit.engine.executors")
    broken = Broken()
    log.addFilter(broken)
    try:
        assert isinstance(lab.run(raises), ValueError)
    finally:
        log.removeFilter(broken)


def test_threads_are_reused_and_end_when_idle() -> None:
    lab = Lab(idle=0.05)
    threads: list[threading.Thread] = []
    for _ in range(3):
        assert lab.run(lambda e: threads.append(threading.current_thread())) is None
    assert len(set(threads)) <= 3
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    assert lab.run(lambda e: None) is None, "a new one is started on demand"
    lab.executors.close(WAIT)


def test_as_many_threads_run_as_there_are_jobs(lab: Lab) -> None:
    together = threading.Barrier(20)
    for _ in range(20):
        lab.start(lambda e: together.wait(WAIT))
    assert [lab.ended().error for _ in range(20)] == [None] * 20


def test_a_thread_is_asked_to_end(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    entered, told = threading.Event(), threading.Event()

    def hook(event: object) -> None:
        entered.set()
        assert told.wait(WAIT)
        hook_context().raise_if_cancelled()

    job = lab.start(hook)
    assert entered.wait(WAIT)
    lab.executors.cancel(job.id, "superseded")
    told.set()
    assert isinstance(lab.ended().error, HookCancelledError)
    assert not caplog.records, "to end when told to is no failure"
    lab.executors.cancel(job.id, "superseded")  # it has ended: nothing happens
    assert not lab.executors.is_running(job.id)


def test_a_coroutine_is_cancelled(lab: Lab) -> None:
    entered = threading.Event()
    seen: list[bool] = []

    async def hook(event: object) -> None:
        entered.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            seen.append(hook_context().cancelled)

    job = lab.start(hook)
    assert entered.wait(WAIT)
    lab.executors.cancel(job.id, "timeout")
    assert isinstance(lab.ended().error, HookCancelledError)
    assert seen == [True]


def test_a_coroutine_that_resists_is_reported_when_it_ends(lab: Lab) -> None:
    entered, resisted = threading.Event(), threading.Event()
    release = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def hook(event: object) -> None:
        loops.append(asyncio.get_running_loop())
        entered.set()
        try:
            await release.wait()
        except asyncio.CancelledError:
            resisted.set()
            await release.wait()

    job = lab.start(hook)
    assert entered.wait(WAIT)
    lab.executors.cancel(job.id, "timeout")
    assert resisted.wait(WAIT)
    assert lab.reports.empty()
    assert lab.executors.is_running(job.id)
    loops[0].call_soon_threadsafe(release.set)
    end = lab.ended()
    assert (end.job.id, end.error) == (job.id, None)
    assert end.outcome is None, "it was counted when it was out of time"


def test_a_coroutine_cancelled_before_its_first_step_is_reported() -> None:
    with running_loop() as loop:
        lab = Lab(loop)
        entered, block = threading.Event(), threading.Event()

        def blocks_the_loop() -> None:
            entered.set()
            assert block.wait(WAIT)

        async def hook(event: object) -> None:
            raise AssertionError("must not begin")

        async def makes(event: object) -> None: ...

        loop.call_soon_threadsafe(blocks_the_loop)
        assert entered.wait(WAIT)
        jobs = [lab.start(hook), lab.start(makes)]
        lab.executors.cancel(jobs[0].id, "superseded")
        block.set()
        ends = {end.job.id: end.error for end in (lab.ended(), lab.ended())}
        assert isinstance(ends[jobs[0].id], HookCancelledError)
        assert ends[jobs[1].id] is None
        lab.executors.close(WAIT)


def test_an_application_that_cancels_all_tasks_of_its_loop_loses_no_end() -> None:
    """As asyncio.run does at its end: tasks that have begun, and tasks that have not."""
    reports: list[Run] = []
    lab_of: list[Lab] = []

    async def hangs(event: object) -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        lab = Lab(asyncio.get_running_loop())
        lab_of.append(lab)
        begun = asyncio.Event()

        async def hangs_too(event: object) -> None:
            begun.set()
            await hangs(event)

        lab.start(hangs_too)
        await begun.wait()
        lab.start(hangs)
        await asyncio.sleep(0)  # the task is made, and takes no step any more

    asyncio.run(main())
    lab = lab_of[0]
    lab.executors.check()
    reports = [lab.ended(), lab.ended()]
    assert all(report.error is not None for report in reports)
    assert lab.executors.close(WAIT) == ()
    gc.collect()


def test_a_loop_that_is_closed_fails_its_hooks_and_those_that_come_after() -> None:
    loop = asyncio.new_event_loop()  # never runs: as an application that has left its loop
    lab = Lab(loop)

    async def hook(event: object) -> None: ...

    def later(event: object) -> Awaitable[None]:
        return hook(event)

    lab.start(hook)
    lab.start(later)
    done = threading.Event()
    lab.start(lambda e: done.set())
    assert done.wait(WAIT)
    assert lab.ended().error is None
    loop.close()
    lab.executors.check()
    lab.start(hook)
    errors = [lab.ended().error for _ in range(3)]
    assert all(isinstance(error, HookLoopError) for error in errors), errors
    assert lab.executors.close(WAIT) == ()
    assert lab.reports.empty()


def test_what_waits_for_a_stopped_loop_can_be_taken_back() -> None:
    loop = asyncio.new_event_loop()
    lab = Lab(loop)
    ran: list[object] = []

    async def hook(event: object) -> None:
        ran.append(event)

    job = lab.start(hook)
    lab.executors.cancel(job.id, "timeout")
    assert isinstance(lab.ended().error, HookCancelledError)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert not ran
    assert lab.reports.empty()


def test_close_tells_all_to_end_and_names_those_that_do_not() -> None:
    lab = Lab()
    entered, release = threading.Event(), threading.Event()

    def hangs(event: object) -> None:
        entered.set()
        assert release.wait(WAIT)

    async def sleeps(event: object) -> None:
        await asyncio.get_running_loop().create_future()

    job = lab.start(hangs)
    lab.start(sleeps)
    assert entered.wait(WAIT)
    still = lab.executors.close(0.1)
    assert len(still) == 1
    assert still[0].endswith("hangs")
    assert isinstance(lab.ended().error, HookCancelledError)
    release.set()
    assert well(lab.ended(), job)
    assert isinstance(lab.run(hangs), HookCancelledError), "what comes later does not run"
    names = {thread.name for thread in threading.enumerate()}
    assert "clusterkit-hook-loop" not in names


def test_close_in_a_function_does_not_wait_for_itself() -> None:
    lab = Lab()
    seen: list[object] = []

    def stops(event: object) -> None:
        seen.append(in_hook())
        seen.append(lab.executors.close(WAIT))
        seen.append(hook_context().cancelled)

    assert not in_hook()
    assert lab.run(stops) is None
    inside, still, cancelled = seen
    assert inside is True
    assert isinstance(still, tuple)
    assert len(still) == 1
    assert cancelled is False


@pytest.mark.parametrize("in_thread", [False, True])
def test_close_in_a_coroutine_does_not_wait_for_itself(in_thread: bool) -> None:
    lab = Lab()
    seen: list[object] = []
    loops: list[threading.Thread] = []

    async def stops(event: object) -> None:
        loops.append(threading.current_thread())
        if in_thread:
            seen.append(await asyncio.to_thread(lab.executors.close, WAIT))
        else:
            seen.append(lab.executors.close(WAIT))
        await asyncio.sleep(0)
        seen.append("went on")

    assert lab.run(stops) is None
    assert seen[1:] == ["went on"]
    loops[0].join(WAIT)
    assert not loops[0].is_alive(), "the private loop ends with the run that stopped it"


def test_in_hook_is_about_the_run_and_not_about_what_it_left_behind(lab: Lab) -> None:
    ended = threading.Event()
    seen: list[bool] = []
    done = threading.Event()

    async def later() -> None:
        await asyncio.to_thread(ended.wait, WAIT)
        seen.append(in_hook())
        done.set()

    tasks: list[asyncio.Task[None]] = []

    async def hook(event: object) -> None:
        seen.append(in_hook())
        tasks.append(asyncio.create_task(later()))

    assert lab.run(hook) is None
    ended.set()
    assert done.wait(WAIT)
    assert seen == [True, False]


def test_where_a_hook_stands_can_be_told(lab: Lab) -> None:
    entered, release = threading.Event(), threading.Event()

    def here_it_waits(event: object) -> None:
        entered.set()
        assert release.wait(WAIT)

    async def deep() -> None:
        entered.set()
        await asyncio.get_running_loop().create_future()

    async def here_too(event: object) -> None:
        await deep()

    job = lab.start(here_it_waits)
    assert entered.wait(WAIT)
    assert "here_it_waits" in lab.executors.where(job.id)
    release.set()
    lab.ended()
    assert lab.executors.where(job.id) == ""
    entered.clear()
    job = lab.start(here_too)
    assert entered.wait(WAIT)
    assert "here_too" in lab.executors.where(job.id)
    lab.executors.cancel(job.id, "done")
    lab.ended()
