"""Metrics for Prometheus: ``ClusterKit(metrics=PrometheusMetrics())``. Extra ``admin``.

Names and units follow Prometheus' conventions; ``docs/metrics.md`` lists them. What happens is
counted as it happens; gauges are read from the kit when somebody scrapes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..hooks import HookKind
from ..metrics import HookOutcome
from ..model import Stats

_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
_KIT = ("cluster", "node")

_GAUGES: Sequence[tuple[str, str, Callable[[Stats], float]]] = (
    ("nodes", "Members of the cluster, in this node's view.", lambda s: s.nodes),
    (
        "unhealthy_nodes",
        "Nodes that should be well and are not, in this node's view.",
        lambda s: s.unhealthy_nodes,
    ),
    ("view_revision", "The newest revision of etcd in this node's view.", lambda s: s.revision),
    (
        "fencing_seconds",
        "Seconds for which this node's lease is certainly alive; 0 while fenced.",
        lambda s: s.fencing_in.total_seconds(),
    ),
    (
        "view_age_seconds",
        "Seconds since this node's view last changed.",
        lambda s: s.view_age.total_seconds(),
    ),
    ("cluster_partitions", "Partitions that the cluster has.", lambda s: s.partitions),
    ("unowned_partitions", "Partitions that no node holds.", lambda s: s.unowned),
    ("hooks_running", "Hooks that run.", lambda s: s.hooks_running),
    ("hooks_queued", "Hooks that wait for their turn.", lambda s: s.hooks_queued),
    (
        "hook_queue_age_seconds",
        "How long the oldest waiting hook has waited.",
        lambda s: s.hook_queue_age.total_seconds(),
    ),
    ("hooks_stuck", "Hooks that are out of time and have not ended.", lambda s: s.hooks_stuck),
    (
        "partition_changes_owed",
        "Partition changes whose hooks have not all succeeded yet.",
        lambda s: s.owed,
    ),
)
_COUNTS: Sequence[tuple[str, str, Callable[[Stats], float]]] = (
    ("watch_restarts", "How often the watch on etcd broke.", lambda s: s.watch_restarts),
    (
        "view_divergences",
        "How often the view was not what etcd has: a defect of ClusterKit.",
        lambda s: s.divergences,
    ),
)


class PrometheusMetrics:
    """Collects the metrics of any number of kits in one registry, told apart by their labels.

    Make one for a process and give it to each kit: two of them in one registry would have the same
    names, which prometheus_client refuses with a ``ValueError``. What was counted stays when a kit
    stops, and goes on when it is started again.

    Args:
        registry: Where the metrics are to be; prometheus_client's own unless given.
        buckets: The upper bounds of the histogram of hooks, in seconds.
    """

    def __init__(
        self,
        registry: CollectorRegistry = REGISTRY,
        *,
        buckets: Sequence[float] = _BUCKETS,
    ) -> None:
        self._hooks = Histogram(
            "clusterkit_hook_duration_seconds",
            "How long runs of hooks took, by outcome: ok, error, timeout or cancelled.",
            (*_KIT, "kind", "hook", "outcome"),
            buckets=buckets,
            registry=registry,
        )
        self._rebalances = Counter(
            "clusterkit_rebalances",
            "Rebalances that have ended.",
            _KIT,
            registry=registry,
        )
        self._rebalance_seconds = Counter(
            "clusterkit_rebalance_seconds",
            "Seconds that rebalances took, added up.",
            _KIT,
            registry=registry,
        )
        self._gauges = _Gauges()
        registry.register(self._gauges)

    def attach(self, cluster: str, node_id: str, stats: Callable[[], Stats]) -> _Sink:
        """See :class:`clusterkit.Metrics`."""
        kit = cluster, node_id
        close = self._gauges.add(kit, stats)
        return _Sink(
            self._hooks,
            self._rebalances.labels(*kit),
            self._rebalance_seconds.labels(*kit),
            kit,
            close,
        )


class _Sink:
    """One run of one kit; the labels of each hook are looked up once."""

    def __init__(
        self,
        hooks: Histogram,
        rebalances: Counter,
        rebalance_seconds: Counter,
        kit: tuple[str, str],
        close: Callable[[], None],
    ) -> None:
        self._hooks = hooks
        self._rebalances = rebalances
        self._rebalance_seconds = rebalance_seconds
        self._kit = kit
        self._made: dict[tuple[HookKind, str, HookOutcome], Histogram] = {}
        self.close = close

    def hook_ended(self, kind: HookKind, hook: str, outcome: HookOutcome, seconds: float) -> None:
        key = kind, hook, outcome
        child = self._made.get(key)
        if child is None:
            child = self._made[key] = self._hooks.labels(*self._kit, *key)
        child.observe(seconds)

    def rebalance_ended(self, seconds: float) -> None:
        self._rebalances.inc()
        self._rebalance_seconds.inc(seconds)


class _Gauges(Collector):
    """What is so, asked of the kits that run when somebody scrapes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[tuple[str, str], Callable[[], Stats]] = {}
        # Of runs that are over, so that what only grows never falls.
        self._past: dict[tuple[str, str], list[float]] = {}

    def add(self, kit: tuple[str, str], stats: Callable[[], Stats]) -> Callable[[], None]:
        with self._lock:
            self._running[kit] = stats

        def close() -> None:
            last = stats()
            with self._lock:
                if self._running.get(kit) is stats:
                    del self._running[kit]
                past = self._past.setdefault(kit, [0.0] * len(_COUNTS))
                for place, (_, _, of) in enumerate(_COUNTS):
                    past[place] += of(last)

        return close

    def describe(self) -> Iterator[Metric]:
        """Without this the registry would scrape a kit to learn the names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            running = dict(self._running)
            counts = {kit: list(past) for kit, past in self._past.items()}
        found = {kit: stats() for kit, stats in running.items()}
        for name, text, of in _GAUGES:
            gauge = GaugeMetricFamily(f"clusterkit_{name}", text, labels=_KIT)
            for kit, now in found.items():
                gauge.add_metric(kit, of(now))
            yield gauge
        partitions = GaugeMetricFamily(
            "clusterkit_partitions",
            "Partitions that this node holds, by role.",
            labels=(*_KIT, "role"),
        )
        states = GaugeMetricFamily(
            "clusterkit_nodes_by_state",
            "Members and nodes that are missed, by state: active, draining or unhealthy.",
            labels=(*_KIT, "state"),
        )
        keep_alive = GaugeMetricFamily(
            "clusterkit_keep_alive_seconds",
            "How long etcd took to answer the newest keep-alive.",
            labels=_KIT,
        )
        for kit, now in found.items():
            partitions.add_metric((*kit, "primary"), now.primaries)
            partitions.add_metric((*kit, "replica"), now.replicas)
            states.add_metric((*kit, "active"), now.active_nodes)
            states.add_metric((*kit, "draining"), now.draining_nodes)
            states.add_metric((*kit, "unhealthy"), now.unhealthy_nodes)
            if now.keep_alive is not None:
                keep_alive.add_metric(kit, now.keep_alive.total_seconds())
        yield from (partitions, states, keep_alive)
        for place, (name, text, of) in enumerate(_COUNTS):
            counter = CounterMetricFamily(f"clusterkit_{name}", text, labels=_KIT)
            for kit in {**counts, **found}:
                past = counts.get(kit, [0.0] * len(_COUNTS))[place]
                counter.add_metric(kit, past + (of(found[kit]) if kit in found else 0.0))
            yield counter
