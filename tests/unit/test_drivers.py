"""Coroutine hooks that share a task while none of them waits: none can tell."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from queue import SimpleQueue

from clusterkit.engine.executors import Executors
from clusterkit.engine.jobs import Job
from clusterkit.engine.runs import Run
from clusterkit.events import FencedEvent
from clusterkit.hooks import HookCancelledError, Hooks, hook_context

WAIT = 20.0
Hook = Callable[[FencedEvent], Awaitable[None]]
colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")
ids = itertools.count(1)


def jobs(*fns: Hook) -> list[Job]:
    event = FencedEvent(reason="x", timestamp=datetime.now(UTC), revision=7, event_id="fenced-7")
    hooks = Hooks()
    for fn in fns:
        hooks.on_fenced(fn)
    return [Job(next(ids), spec, event, (event,), 1, None, False) for spec in hooks._specs()]


class Lab:
    """Executors on the loop of the test."""

    def __init__(self) -> None:
        self.ends: dict[int, Run] = {}
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.executors = Executors(
            self._report, loop=self._loop, context=contextvars.copy_context()
        )

    def _report(self, ends: list[Run]) -> None:
        self.ends |= {end.job.id: end for end in ends}
        self._loop.call_soon_threadsafe(self._changed.set)

    async def all_ended(self, started: list[Job]) -> list[BaseException | None]:
        async with asyncio.timeout(WAIT):
            while not all(job.id in self.ends for job in started):
                self._changed.clear()
                await self._changed.wait()
        return [self.ends[job.id].error for job in started]

    async def run(self, *fns: Hook) -> list[BaseException | None]:
        started = jobs(*fns)
        self.executors.start(started)
        return await self.all_ended(started)


def test_each_has_a_context_of_its_own() -> None:
    seen: list[tuple[str, str]] = []

    async def paints(event: FencedEvent) -> None:
        seen.append((colour.get(), hook_context().event_id))
        colour.set("red")

    async def main() -> None:
        assert await Lab().run(*[paints] * 20) == [None] * 20

    asyncio.run(main())
    assert seen == [("none", "fenced-7")] * 20


def test_one_that_fails_or_leaves_the_interpreter_touches_no_other() -> None:
    async def well(event: FencedEvent) -> None: ...

    async def raises(event: FencedEvent) -> None:
        raise ValueError

    async def exits(event: FencedEvent) -> None:
        raise SystemExit

    async def main() -> None:
        errors = await Lab().run(well, raises, well, exits, well)
        assert [type(error) for error in errors] == [
            type(None),
            ValueError,
            type(None),
            SystemExit,
            type(None),
        ]

    asyncio.run(main())


def test_those_that_wait_have_tasks_of_their_own_from_their_first_step() -> None:
    tasks: dict[str, list[asyncio.Task[object] | None]] = {}

    async def main() -> None:
        gate = asyncio.Event()
        waiting = asyncio.Event()

        def waits(name: str) -> Hook:
            async def hook(event: FencedEvent) -> None:
                colour.set(name)
                steps = tasks.setdefault(name, [])
                steps.append(asyncio.current_task())
                if len(tasks) == 3:
                    waiting.set()
                await gate.wait()
                steps.append(asyncio.current_task())
                await asyncio.sleep(0)
                steps.append(asyncio.current_task())
                assert colour.get() == name

            return hook

        lab = Lab()
        for _ in range(2):  # the second time they are known to wait
            tasks.clear()
            gate.clear()
            waiting.clear()
            started = jobs(*map(waits, "abc"))
            lab.executors.start(started)
            async with asyncio.timeout(WAIT):
                await waiting.wait()
            gate.set()
            assert await lab.all_ended(started) == [None] * 3
            assert all(len(set(steps)) == 1 and len(steps) == 3 for steps in tasks.values())
            assert len({steps[0] for steps in tasks.values()}) == 3

    asyncio.run(main())


def test_the_task_of_one_that_waits_bears_its_name() -> None:
    async def main() -> None:
        names: list[str] = []

        async def well(event: FencedEvent) -> None: ...

        async def waits(event: FencedEvent) -> None:
            await asyncio.sleep(0)
            task = asyncio.current_task()
            assert task is not None
            names.append(task.get_name())

        assert await Lab().run(well, waits) == [None] * 2
        assert [name.rpartition(".")[2] for name in names] == ["waits"]

    asyncio.run(main())


def test_a_time_out_that_begins_in_the_first_step_ends_that_hook_alone() -> None:
    async def main() -> None:
        async def too_long(event: FencedEvent) -> None:
            async with asyncio.timeout(0.001):
                await asyncio.get_running_loop().create_future()

        async def groups(event: FencedEvent) -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0))

        errors = await Lab().run(groups, too_long, groups)
        assert [type(error) for error in errors] == [type(None), TimeoutError, type(None)]

    asyncio.run(main())


def test_one_that_cancels_its_own_task_cancels_no_other() -> None:
    async def main() -> None:
        async def cancels(event: FencedEvent) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

        async def waits(event: FencedEvent) -> None:
            await asyncio.sleep(0)

        async def well(event: FencedEvent) -> None: ...

        assert await Lab().run(well, cancels, well, waits, well) == [None] * 5

    asyncio.run(main())


def test_what_is_told_to_end_before_its_turn_does_not_begin() -> None:
    began: list[str] = []

    async def main() -> None:
        lab = Lab()

        async def first(event: FencedEvent) -> None:
            lab.executors.cancel(started[1].id, "superseded")

        async def second(event: FencedEvent) -> None:
            began.append("second")

        started = jobs(first, second)
        lab.executors.start(started)
        errors = await lab.all_ended(started)
        assert errors[0] is None
        assert isinstance(errors[1], HookCancelledError)

    asyncio.run(main())
    assert began == []


def test_many_that_work_long_let_others_on_the_loop_have_their_turn() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        turns: list[int] = []
        done: list[int] = []

        async def works(event: FencedEvent) -> None:
            until = loop.time() + 0.002
            while loop.time() < until:
                pass
            done.append(1)

        def turn() -> None:
            turns.append(len(done))
            if len(done) < 20:
                loop.call_soon(turn)

        loop.call_soon(turn)
        assert await Lab().run(*[works] * 20) == [None] * 20
        assert any(0 < seen < 20 for seen in turns)

    asyncio.run(main())


def test_a_hook_that_holds_up_the_loop_does_not_hold_up_the_ends_before_it() -> None:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    reports: SimpleQueue[list[Run]] = SimpleQueue()
    executors = Executors(reports.put, loop=loop, context=contextvars.copy_context())
    entered, released = threading.Event(), threading.Event()

    async def well(event: FencedEvent) -> None: ...

    async def blocks(event: FencedEvent) -> None:
        entered.set()
        released.wait(WAIT)

    started = jobs(well, blocks)
    executors.start(started)
    assert entered.wait(WAIT)
    executors.check()
    assert [end.job for end in reports.get(timeout=WAIT)] == started[:1]
    released.set()
    assert [end.job for end in reports.get(timeout=WAIT)] == started[1:]
    assert executors.close(WAIT) == ()
    loop.call_soon_threadsafe(loop.stop)
    thread.join(WAIT)
    loop.close()
