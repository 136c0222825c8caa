"""What a kit's metrics say of hooks that succeed, fail, hang and are told to end."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

from prometheus_client import CollectorRegistry, generate_latest

from clusterkit import NodeJoinEvent, PartitionChangeEvent
from clusterkit.admin.prometheus import PrometheusMetrics

from .support import SECONDS, Cluster, agree, eventually


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    """The sum over all lines of a metric that have these labels."""
    total = 0.0
    for line in generate_latest(registry).decode().splitlines():
        found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        has = found is not None and (found[1] or "")
        if found is not None and all(f'{k}="{v}"' in str(has) for k, v in labels.items()):
            total += float(found[2])
    return total


def test_hooks_are_counted_by_outcome_and_measured(cluster: Cluster) -> None:
    registry = CollectorRegistry()
    release = threading.Event()
    member = cluster.member("a", metrics=PrometheusMetrics(registry), partitions=4)

    @member.kit.on_node_join(name="fine")
    def fine(event: NodeJoinEvent) -> None: ...

    @member.kit.on_node_join(name="broken")
    async def broken(event: NodeJoinEvent) -> None:
        raise ValueError("broken")

    @member.kit.on_node_join(name="hangs", timeout=0.2)
    def hangs(event: NodeJoinEvent) -> None:
        assert release.wait(SECONDS)

    @member.kit.on_partition_change(name="copy")
    def copy(event: PartitionChangeEvent) -> None: ...

    def runs(hook: str, outcome: str) -> Callable[[], float]:
        name = "clusterkit_hook_duration_seconds_count"
        return lambda: value(registry, name, hook=hook, outcome=outcome, node="a")

    member.start()
    eventually(runs("fine", "ok"))
    eventually(runs("broken", "error"))
    eventually(runs("hangs", "timeout"))
    assert value(registry, "clusterkit_hooks_stuck") == 1
    assert member.kit.stats().hooks_stuck == 1
    release.set()
    eventually(lambda: value(registry, "clusterkit_hooks_stuck") == 0)
    eventually(lambda: runs("copy", "ok")() == 4)
    assert runs("hangs", "ok")() == 0, "it was counted as what it is, once"
    assert value(registry, "clusterkit_hook_duration_seconds_sum", hook="fine") < SECONDS
    agree([member])
    eventually(lambda: value(registry, "clusterkit_rebalances_total") == 1)
    assert value(registry, "clusterkit_partitions", role="primary") == 4
    assert 0 < value(registry, "clusterkit_fencing_seconds") <= 10
    assert value(registry, "clusterkit_partition_changes_owed") == 0
    member.stop()
    assert value(registry, "clusterkit_nodes") == 0
    before = runs("copy", "ok")()
    member.start()
    member.wait_ready()
    eventually(lambda: runs("copy", "ok")() == before + 4)


def test_what_waits_is_counted_and_grows_old(cluster: Cluster) -> None:
    release = threading.Event()
    member = cluster.member("a", partitions=8, max_concurrent_hooks=3)

    @member.kit.on_partition_change
    def copy(event: PartitionChangeEvent) -> None:
        assert release.wait(SECONDS)

    member.start()
    stats = member.kit.stats
    eventually(lambda: stats().hooks_running == 1 and stats().hooks_queued == 7)
    first = stats().hook_queue_age
    eventually(lambda: stats().hook_queue_age > first)
    assert stats().owed == 8
    assert (stats().nodes, stats().primaries, stats().replicas) == (1, 8, 0)
    release.set()
    agree([member])
    assert not stats().hook_queue_age
