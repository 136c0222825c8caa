"""The thread that keeps the times of health checks, with checks of every kind."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from clusterkit.engine.checks import Checks, HealthCheck
from tests.support.bench import eventually, our_threads

CITY: contextvars.ContextVar[str] = contextvars.ContextVar("city", default="")


class Bench:
    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        CITY.set("Oslo")
        self.checks = Checks(self.told.append, loop=None, context=contextvars.copy_context())
        CITY.set("")
        self.checks.start()

    def add(
        self, name: str, fn: Callable[[], object], interval: float = 0.02, timeout: float = 5.0
    ) -> None:
        self.checks.add(HealthCheck(name, fn, interval, timeout))


@pytest.fixture
def bench() -> Iterator[Bench]:
    before = our_threads()
    made = Bench()
    yield made
    made.checks.close(5.0)
    eventually(lambda: our_threads() <= before, "no thread is left")


def fails() -> None:
    raise SystemExit("a check that gives up")


async def fails_async() -> None:
    raise ZeroDivisionError


async def says_false() -> bool:
    return False


@pytest.mark.parametrize(
    "fn", [fails, fails_async, says_false, lambda: False, lambda: says_false()]
)
def test_what_raises_or_returns_false_fails(bench: Bench, fn: Callable[[], object]) -> None:
    bench.add("it", fn)
    eventually(lambda: bench.told == [("it",)], "it fails")


def test_what_else_is_returned_passes(bench: Bench) -> None:
    runs: list[object] = []

    def returning(result: object) -> object:
        runs.append(result)
        return result

    results = (None, 0, True, "")
    for result in results:
        bench.add(repr(result), partial(returning, result))
    eventually(lambda: all(runs.count(result) > 2 for result in results), "all run")
    assert bench.told == []


def test_only_changes_are_told_and_recovery_is_one(bench: Bench) -> None:
    well = threading.Event()
    runs: list[bool] = []

    def check() -> bool:
        runs.append(well.is_set())
        return runs[-1]

    bench.add("b", check)
    bench.add("a", check)
    eventually(lambda: ("a", "b") in bench.told, "both fail")
    eventually(lambda: runs.count(False) > 8, "and go on failing")
    well.set()
    eventually(lambda: bench.told[-1] == (), "both pass")
    assert len(bench.told) <= 4


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_what_hangs_fails_alone_and_is_not_run_twice(bench: Bench, kind: str) -> None:
    release = threading.Event()
    began: list[str] = []
    ended: list[str] = []
    others: list[str] = []

    def hangs() -> None:
        began.append("one more")
        release.wait(10)

    async def hangs_async() -> None:
        began.append("one more")
        try:
            await asyncio.sleep(0 if release.is_set() else 60)
        finally:
            ended.append("it was told")

    bench.add("hangs", hangs if kind == "def" else hangs_async, timeout=0.1)
    bench.add("other", lambda: others.append("run"))
    eventually(lambda: bench.told == [("hangs",)], "it is out of time")
    before = len(others)
    eventually(lambda: len(others) > before + 5, "the other goes on")
    if kind == "def":
        assert began == ["one more"]
    else:
        eventually(lambda: ended, "a coroutine is cancelled")
        assert len(began) - len(ended) <= 1
    release.set()
    eventually(lambda: bench.told[-1] == (), "it passes when it is itself again")


def test_checks_run_in_the_context_of_the_start(bench: Bench) -> None:
    seen: list[str] = []

    async def look() -> None:
        seen.append(CITY.get())

    bench.add("one", lambda: seen.append(CITY.get()))
    bench.add("two", look)
    eventually(lambda: len(seen) > 3, "both ran")
    assert set(seen) == {"Oslo"}


def test_without_checks_there_is_no_thread_and_none_runs_before_the_start() -> None:
    before = our_threads()
    ran: list[str] = []
    checks = Checks(lambda failing: None, loop=None, context=contextvars.copy_context())
    checks.add(HealthCheck("x", lambda: ran.append("x"), 0.01, 1.0))
    checks.close(1.0)
    checks.start()
    assert our_threads() <= before
    idle = Checks(lambda failing: None, loop=None, context=contextvars.copy_context())
    idle.start()
    assert our_threads() <= before
    idle.close(1.0)
    assert ran == []


def test_a_loop_that_is_closed_is_a_failure() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    told: list[tuple[str, ...]] = []
    checks = Checks(told.append, loop=loop, context=contextvars.copy_context())
    checks.add(HealthCheck("x", says_false, 0.01, 1.0))
    checks.start()
    eventually(lambda: told == [("x",)], "it fails")
    checks.close(1.0)
