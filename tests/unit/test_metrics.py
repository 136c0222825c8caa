"""Measurements: what is handed to whom, and that nobody can hurt the engine with it."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from clusterkit.admin.prometheus import PrometheusMetrics
from clusterkit.engine.executors import Executors
from clusterkit.engine.jobs import HookTimedOut, Job, RebalanceCompleted
from clusterkit.engine.measure import Measure
from clusterkit.engine.runs import Run
from clusterkit.hooks import HookKind, Hooks
from clusterkit.metrics import HookOutcome, Metrics
from clusterkit.model import Stats
from tests.unit.test_dispatcher import fenced, passage

NOTHING = Stats(0, 0, 0, 0, 0, 0)


class Recording:
    """A sink that remembers, or one that always raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.told: list[tuple[object, ...]] = []
        self._error = error

    def hook_ended(self, kind: HookKind, hook: str, outcome: HookOutcome, seconds: float) -> None:
        self._take(kind, hook, outcome, seconds)

    def rebalance_ended(self, seconds: float) -> None:
        self._take("rebalance", seconds)

    def close(self) -> None:
        self._take("closed")

    def _take(self, *what: object) -> None:
        self.told.append(what)
        if self._error is not None:
            raise self._error


def job(timeout: float | None = 30.0) -> Job:
    hooks = Hooks()
    hooks.on_fenced(name="h")(lambda e: None)
    event = fenced()
    return Job(1, hooks._specs()[0], event, (event,), 1, timeout, replayed=False)


def a_run(outcome: HookOutcome | None, seconds: float) -> Run:
    """A run that has ended."""
    context = contextvars.copy_context()
    run = Run(job(), Executors(lambda ends: None, loop=None, context=context), context, 0.0)
    run.outcome, run.seconds = outcome, seconds
    return run


def tell_all(measure: Measure) -> None:
    ended = a_run("ok", 0.5)
    measure.open()
    measure.hooks_ended([ended])
    measure.hooks_ended([a_run(None, 0.5)])  # counted before, as out of time
    measure.timed_out(HookTimedOut(job(2.0)))
    measure.rebalance_ended(RebalanceCompleted(passage(), 3.0, superseded=False))
    measure.close()
    measure.hooks_ended([ended])  # too late


def test_everything_is_handed_over_once_and_nothing_after_the_end() -> None:
    sink = Recording()
    tell_all(Measure(lambda: sink))
    assert sink.told == [
        ("fenced", "h", "ok", 0.5),
        ("fenced", "h", "timeout", 2.0),
        ("rebalance", 3.0),
        ("closed",),
    ]


def test_without_a_collector_nothing_is_done() -> None:
    tell_all(Measure())


def test_a_sink_that_raises_hurts_nobody_and_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sink = Recording(ValueError("broken"))
    tell_all(Measure(lambda: sink))
    assert len(sink.told) == 4
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


def test_each_of_several_sinks_is_told_whatever_the_others_do() -> None:
    broken, fine, late = Recording(ValueError("broken")), Recording(), Recording()
    measure = Measure(lambda: broken, lambda: fine)
    measure.open()
    measure.hooks_ended([a_run("ok", 0.5)])
    measure.add(late)
    measure.rebalance_ended(RebalanceCompleted(passage(), 3.0, superseded=False))
    measure.close()
    assert fine.told == broken.told == [("fenced", "h", "ok", 0.5), *late.told]
    assert late.told == [("rebalance", 3.0), ("closed",)]


def test_a_collector_that_cannot_begin_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def attach() -> Recording:
        raise ValueError("no room")

    tell_all(Measure(attach))
    assert len(caplog.records) == 1


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def read(registry: CollectorRegistry) -> Callable[[str], float | None]:
    """A metric by the text that stands before its value."""
    lines = dict(
        line.rsplit(" ", 1) for line in generate_latest(registry).decode().splitlines() if line
    )
    return lambda name: float(lines[name]) if name in lines else None


def test_prometheus_counts_hooks_and_reads_gauges_when_asked(registry: CollectorRegistry) -> None:
    metrics = PrometheusMetrics(registry)
    assert isinstance(metrics, Metrics)
    asked: list[int] = []

    def stats() -> Stats:
        asked.append(1)
        return replace(
            NOTHING, hooks_queued=4, hook_queue_age=timedelta(seconds=1.5), primaries=3, replicas=2
        )

    sink = metrics.attach("c", "n", stats)
    sink.hook_ended("node_join", "app.join", "ok", 0.02)
    sink.hook_ended("node_join", "app.join", "ok", 0.02)
    sink.hook_ended("node_join", "app.join", "error", 7.0)
    sink.rebalance_ended(2.0)
    assert not asked
    found = read(registry)
    assert len(asked) == 1
    hook = 'cluster="c",hook="app.join",kind="node_join",node="n",outcome'
    name = "clusterkit_hook_duration_seconds"
    assert found(f'{name}_count{{{hook}="ok"}}') == 2
    assert found(f'{name}_sum{{{hook}="error"}}') == 7
    kit = 'cluster="c",node="n"'
    assert found(f"clusterkit_rebalances_total{{{kit}}}") == 1
    assert found(f"clusterkit_rebalance_seconds_total{{{kit}}}") == 2
    assert found(f"clusterkit_hooks_queued{{{kit}}}") == 4
    assert found(f"clusterkit_hook_queue_age_seconds{{{kit}}}") == 1.5
    assert found(f'clusterkit_partitions{{{kit},role="primary"}}') == 3
    assert found(f'clusterkit_partitions{{{kit},role="replica"}}') == 2


def test_two_kits_do_not_collide_and_counts_outlive_a_run(registry: CollectorRegistry) -> None:
    metrics = PrometheusMetrics(registry)
    first = metrics.attach("c", "a", lambda: replace(NOTHING, watch_restarts=2))
    metrics.attach("c", "b", lambda: replace(NOTHING, nodes=9))
    restarts = 'clusterkit_watch_restarts_total{cluster="c",node="a"}'
    assert read(registry)(restarts) == 2
    assert read(registry)('clusterkit_nodes{cluster="c",node="b"}') == 9
    first.close()
    assert read(registry)(restarts) == 2
    assert read(registry)('clusterkit_nodes{cluster="c",node="a"}') is None
    metrics.attach("c", "a", lambda: replace(NOTHING, watch_restarts=1))
    assert read(registry)(restarts) == 3
