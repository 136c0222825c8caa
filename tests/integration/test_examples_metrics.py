"""``examples/metrics``: the figures of a join, a kill and a broken node."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .example_programs import Make, Program, making, settled, until

pytestmark = pytest.mark.timeout(240)

PARTITIONS = 16
FILE_BYTES = 50_000


@pytest.fixture
def programs(etcd_endpoint: str, tmp_path: Path) -> Iterator[Make]:
    with making(etcd_endpoint, tmp_path, partitions=PARTITIONS, replication_factor=2) as make:
        yield make


def figures(node: Program) -> dict[str, float]:
    status, text = node.ask("GET", "/metrics/")
    lines = text.splitlines() if status == 200 else []
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {series: float(value) for series, value in pairs}


def shows(node: Program, series: str, value: float) -> None:
    def shown() -> bool:
        return figures(node).get(series, 0) == value

    until(shown, lambda: f"{series} of {node.node_id} is not {value}: {figures(node)}\n{node.text}")


def test_metrics(programs: Make) -> None:
    n1, n2, n3 = programs("metrics.app", "n1", "n2", "n3", FILE_BYTES=FILE_BYTES)
    n1.start()
    settled(n1)
    shows(n1, "app_partitions_begun_empty_total", PARTITIONS)
    shows(n1, "app_held_bytes", PARTITIONS * FILE_BYTES)
    n2.start()
    settled(n1, n2)
    # Two nodes, two holders: the second one has copied all there is.
    shows(n2, 'app_copied_bytes_total{reason="node_join"}', PARTITIONS * FILE_BYTES)
    shows(n2, "app_copy_seconds_count", PARTITIONS)
    shows(n2, 'app_rebalances_total{trigger="node_join"}', 1)
    shows(n1, 'app_cluster_health{app_cluster_health="healthy"}', 1)
    # The kit's own are on the same page.
    shows(n1, 'clusterkit_nodes{cluster="default",node="n1"}', 2)
    ran = 'cluster="default",hook="__main__.fetch",kind="partition_change",node="n2",outcome="ok"'
    shows(n2, f"clusterkit_hook_duration_seconds_count{{{ran}}}", PARTITIONS)

    n2.end(signal.SIGKILL)
    shows(n1, 'app_leaves_total{reason="health_check_failure"}', 1)
    shows(n1, 'app_cluster_health{app_cluster_health="critical"}', 1)  # one of two
    n3.environment["BROKEN"] = "1"
    n3.start()
    owed = 'clusterkit_partition_changes_owed{cluster="default",node="n3"}'
    shows(n3, owed, PARTITIONS)
    shows(n3, "app_held_bytes", 0)
    shows(n3, "app_copy_seconds_count", 0)
    n3.end()
    shows(n1, 'app_leaves_total{reason="graceful_shutdown"}', 1)
