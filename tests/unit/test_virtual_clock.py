"""The virtual clock, and the real one beside it."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest

from clusterkit.engine.clock import SystemClock
from clusterkit.ports import Clock
from clusterkit.testing.clock import VirtualClock


def test_both_are_clocks_and_their_wall_time_is_utc() -> None:
    clocks: list[Clock] = [SystemClock(), VirtualClock()]
    assert [clock.now().tzinfo for clock in clocks] == [UTC, UTC]


def test_the_system_clock_goes_with_the_machines() -> None:
    clock = SystemClock()
    before = datetime.now(UTC)
    assert before <= clock.now() <= datetime.now(UTC)
    assert clock.monotonic() <= clock.monotonic()


def test_the_system_clock_counts_the_time_that_the_machine_sleeps() -> None:
    source = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # the former on Linux only
    before = time.clock_gettime(source)
    assert before <= SystemClock().monotonic() <= time.clock_gettime(source)


def test_time_stands_still_until_it_is_moved() -> None:
    start = datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    clock = VirtualClock(start)
    assert (clock.monotonic(), clock.now()) == (0.0, start)
    clock.advance(1.5)
    assert (clock.monotonic(), clock.now()) == (1.5, start + timedelta(seconds=1.5))
    assert clock.now().tzinfo is UTC


def test_a_start_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="timezone-aware"):
        VirtualClock(datetime(2030, 1, 1))  # noqa: DTZ001 (that is what the test is about)


def test_time_does_not_go_back() -> None:
    clock = VirtualClock()
    with pytest.raises(ValueError, match="cannot go back"):
        clock.advance(-1)
    assert clock.monotonic() == 0.0


def test_timers_fire_in_order_each_at_its_time() -> None:
    clock = VirtualClock()
    fired: list[tuple[str, float]] = []

    def timer(name: str, seconds: float) -> None:
        clock.call_later(seconds, lambda: fired.append((name, clock.monotonic())))

    timer("c", 3)
    timer("a", 1)
    timer("b1", 2)
    timer("b2", 2)
    timer("late", 5)
    clock.advance(0.5)
    assert fired == []
    clock.advance(2.5)
    assert fired == [("a", 1), ("b1", 2), ("b2", 2), ("c", 3)]
    clock.advance(10)
    assert fired[-1] == ("late", 5)
    assert clock.monotonic() == 13


def test_a_timer_may_set_timers_that_fire_in_the_same_advance() -> None:
    clock = VirtualClock()
    fired: list[float] = []

    def again() -> None:
        fired.append(clock.monotonic())
        clock.call_later(1, again)

    clock.call_later(1, again)
    clock.advance(3.5)
    assert fired == [1, 2, 3]


def test_a_timer_in_the_past_fires_in_the_next_advance_without_turning_time_back() -> None:
    clock = VirtualClock()
    clock.advance(5)
    fired: list[float] = []
    clock.call_at(1, lambda: fired.append(clock.monotonic()))
    clock.advance(0)
    assert fired == [5]


def test_an_error_of_a_timer_reaches_the_caller_and_the_rest_fires_later() -> None:
    clock = VirtualClock()
    fired: list[str] = []
    clock.call_at(1, lambda: 1 / 0)
    clock.call_at(2, lambda: fired.append("next"))
    with pytest.raises(ZeroDivisionError):
        clock.advance(5)
    assert (clock.monotonic(), fired) == (1, [])
    clock.advance(1)
    assert fired == ["next"]


def test_a_timer_may_not_advance_the_clock() -> None:
    clock = VirtualClock()
    clock.call_at(1, lambda: clock.advance(1))
    with pytest.raises(RuntimeError, match="already running"):
        clock.advance(1)


def test_other_threads_see_the_time() -> None:
    clock = VirtualClock()
    clock.advance(7)
    seen: list[float] = []
    thread = threading.Thread(target=lambda: seen.append(clock.monotonic()))
    thread.start()
    thread.join(10)
    assert seen == [7]
