"""``examples/workers``: a kill, a pause, a leave, and no run is missed or made twice."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from .example_programs import SECONDS, Make, making, until

pytestmark = pytest.mark.timeout(240)

PARTITIONS = 36
JOBS = 60
"""So many that each of three nodes has some: where they come to lie is by chance."""

PERIOD_SECONDS = 1.0


@pytest.fixture
def programs(etcd_endpoint: str, tmp_path: Path) -> Iterator[Make]:
    with making(etcd_endpoint, tmp_path, partitions=PARTITIONS, lease_ttl=6) as make:
        yield make


def test_workers(programs: Make, tmp_path: Path) -> None:
    database = tmp_path / "workers.db"
    n1, n2, n3 = nodes = programs(
        "workers.app",
        "n1",
        "n2",
        "n3",
        DATABASE=database,
        JOBS=JOBS,
        PERIOD_SECONDS=PERIOD_SECONDS,
    )

    def rows(query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(database, timeout=SECONDS)) as db:
            return db.execute(query).fetchall()

    def run_by(*node_ids: str) -> None:
        """Waits until all jobs are up to date again, and all these nodes have a part in it."""
        since = int(time.time() / PERIOD_SECONDS) + 1

        def so() -> bool:
            newest = rows(f"SELECT job, max(due), node FROM runs WHERE due >= {since} GROUP BY job")
            return len(newest) == JOBS and {node for _, _, node in newest} == set(node_ids)

        def told() -> str:
            newest = rows("SELECT job, max(due), node FROM runs GROUP BY job")
            return f"{node_ids} since {since}: {newest}\n{n1.text}"

        until(so, told)

    n1.start().says("partition-0: None -> primary")
    for node in (n2, n3):
        node.start().says(r"partition-\d+: \w+ -> primary")
    run_by("n1", "n2", "n3")
    n2.end(signal.SIGKILL)
    run_by("n1", "n3")
    # Paused in the middle, with the permission in its hand and nothing written, until others have
    # taken over. That this comes too late, only the database can know.
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        owned = {p for p, new in n1.found(r"(partition-\d+): \w+ -> (\w+)") if new == "primary"}
        assert owned
        until(lambda: n1.has_open(database) >= 2, lambda: n1.text)
        n1.pause()
    run_by("n3")
    n1.wake()
    n1.says("refused: the database has seen a newer epoch of partition-")
    n2.start()
    run_by("n1", "n2", "n3")
    n3.end(signal.SIGTERM)
    run_by("n1", "n2")

    # By its own account: each job ran once for each time that it was due, from its first to its
    # last, and the epochs of a job, in the order of the runs, only grow.
    seen: dict[str, list[tuple[int, int, str]]] = {}
    for job, due, who, epoch in rows("SELECT job, due, node, epoch FROM runs ORDER BY rowid"):
        seen.setdefault(job, []).append((due, epoch, who))
    assert len(seen) == JOBS
    for job, runs in seen.items():
        for (due, epoch, who), (next_due, next_epoch, next_who) in pairwise(runs):
            assert next_due == due + 1, job
            assert next_epoch > epoch or (next_epoch, next_who) == (epoch, who), job
    for node in nodes:
        assert node.found("Traceback") == []
