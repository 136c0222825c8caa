"""Where both sides report the ends of hooks to: the same object, for the same cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta

from prometheus_client import CollectorRegistry

from clusterkit import HookOutcome, MetricsSink, Stats
from clusterkit.admin.prometheus import PrometheusMetrics
from clusterkit.hooks import HookKind


class Counting:
    """The plainest sink that still tells hooks apart: it counts, and adds up the seconds."""

    def __init__(self) -> None:
        self.ends: Counter[tuple[HookKind, str, HookOutcome]] = Counter()
        self.seconds = 0.0

    def attach(self, cluster: str, node_id: str, stats: Callable[[], Stats]) -> MetricsSink:
        return self

    def hook_ended(self, kind: HookKind, hook: str, outcome: HookOutcome, seconds: float) -> None:
        self.ends[kind, hook, outcome] += 1
        self.seconds += seconds

    def rebalance_ended(self, seconds: float) -> None:
        self.seconds += seconds

    def close(self) -> None:
        pass

    def ok(self) -> int:
        """How many partition changes ended well."""
        return sum(n for (kind, _, outcome), n in self.ends.items() if _is_good(kind, outcome))


class Prometheus:
    """The kit's own metrics for Prometheus, in a registry that goes with this object."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._metrics = PrometheusMetrics(self._registry)

    def attach(self, cluster: str, node_id: str, stats: Callable[[], Stats]) -> MetricsSink:
        return self._metrics.attach(cluster, node_id, stats)

    def ok(self) -> int:
        """How many partition changes ended well."""
        return round(
            sum(
                sample.value
                for family in self._registry.collect()
                for sample in family.samples
                if sample.name == "clusterkit_hook_duration_seconds_count"
                and sample.labels["kind"] == "partition_change"
                and sample.labels["outcome"] == "ok"
            )
        )


Sink = Counting | Prometheus
SINKS: dict[str, Callable[[], Sink]] = {"counting": Counting, "Prometheus": Prometheus}


def _is_good(kind: HookKind, outcome: HookOutcome) -> bool:
    return kind == "partition_change" and outcome == "ok"


def no_stats() -> Stats:
    """The figures of a kit that is not there."""
    zero = timedelta(0)
    return Stats(
        revision=0,
        rebalances=0,
        hooks_running=0,
        hooks_queued=0,
        hook_failures=0,
        watch_restarts=0,
        divergences=0,
        hook_queue_age=zero,
        hooks_stuck=0,
        owed=0,
        nodes=0,
        unhealthy_nodes=0,
        primaries=0,
        replicas=0,
        fencing_in=zero,
    )
