"""The programs that users would write, run for real; told where etcd is by their environment.

They are kept as they were designed, in ``tests/typing/programs``.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from clusterkit import ClusterKit, OptionError
from clusterkit.core.keys import Keys
from clusterkit.testing.embedded import free_port

from .support import PARTITIONS, REPOSITORY, SECONDS, Cluster, Recorder, eventually

PROGRAMS = REPOSITORY / "tests" / "typing" / "programs"


def load(name: str) -> Any:
    """Imports a program anew."""
    spec = importlib.util.spec_from_file_location(f"program_{name}", PROGRAMS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def environment(cluster: Cluster, **more: str) -> dict[str, str]:
    return {
        "CLUSTERKIT_ENDPOINTS": str(cluster.defaults["endpoints"]),
        "CLUSTERKIT_PREFIX": cluster.defaults["prefix"],
        "CLUSTERKIT_SETTLE_TIME": "50ms",
        "CLUSTERKIT_LEASE_TTL": "2",
        **more,
    }


@contextmanager
def running(
    cluster: Cluster, *command: str, stderr: Path, **more: str
) -> Iterator[subprocess.Popen[str]]:
    with stderr.open("w") as err:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(REPOSITORY),
                "PYTHONUNBUFFERED": "1",
                **environment(cluster, **more),
            },
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def ready_nodes(cluster: Cluster, name: str) -> set[str]:
    """The nodes that have said in etcd that all of their hooks have succeeded."""
    keys = Keys.of(cluster.defaults["prefix"], name)
    found = [keys.parse(kv.key) for kv in cluster.read(keys.root).kvs]
    return {k.node_id for k in found if k is not None and k.kind == "applied"}


def members(cluster: Cluster, name: str) -> set[str]:
    keys = Keys.of(cluster.defaults["prefix"], name)
    found = [keys.parse(kv.key) for kv in cluster.read(keys.nodes).kvs]
    return {k.node_id for k in found if k is not None}


def test_worker(threads_cluster: Cluster, tmp_path: Path) -> None:
    """Work follows ownership: it begins with it, and has ended when the process leaves."""
    log = tmp_path / "stderr"
    with running(
        threads_cluster, str(PROGRAMS / "worker.py"), stderr=log, CLUSTERKIT_NODE_ID="w1"
    ) as process:
        assert process.stdout is not None
        worked: set[str] = set()
        while len(worked) < 16:
            # Its threads print at the same time, so lines run into each other.
            line = process.stdout.readline()
            assert line, log.read_text()
            worked |= set(re.findall(r"partition-(?:1[0-5]|[0-9])(?![0-9])", line))
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0, log.read_text()
        assert members(threads_cluster, "jobs") == set()
        # The embedded etcd is old, which is all that there is to say.
        assert [line for line in log.read_text().splitlines() if "upgrade etcd" not in line] == []


def test_quorum(threads_cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "stderr"
    with running(
        threads_cluster, str(PROGRAMS / "quorum.py"), stderr=log, CLUSTERKIT_NODE_ID="q1"
    ) as process:
        eventually(lambda: ready_nodes(threads_cluster, "kv") == {"q1"})
        assert members(threads_cluster, "kv") == {"q1"}
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) != 0  # Python's own answer to Ctrl-C
        assert log.read_text().strip().endswith("KeyboardInterrupt")
        assert members(threads_cluster, "kv") == set()  # it has left, and did not expire


def test_fastapi_app(threads_cluster: Cluster, tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "stderr"
    command = ["-m", "uvicorn", "fastapi_app:app", "--app-dir", str(PROGRAMS)]
    with (
        running(
            threads_cluster,
            *command,
            *("--port", str(port), "--log-level", "warning"),
            stderr=log,
            CLUSTERKIT_NODE_ID="web",
            CLUSTERKIT_ADDRESS=f"127.0.0.1:{port}",
            CLUSTERKIT_SERVICES=f"http=127.0.0.1:{port}",
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as http,
    ):

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return http.get("/ready").status_code == 200
            except httpx.TransportError:
                return False

        eventually(ready)
        assert http.get("/ready").json() == {"ok": True}
        answer = http.get("/k/some-key")
        assert answer.status_code == 200
        assert answer.json()["epoch"] > 0

        # A second node, which this test runs itself: some keys are its own then.
        options = threads_cluster.defaults
        options["cluster"], options["partitions"], options["replication_factor"] = "kv", 64, 3
        peer = threads_cluster.node("peer", services={"http": f"127.0.0.1:{port}"})
        eventually(lambda: set(peer.kit.cluster.nodes) == {"web", "peer"})
        theirs = next(
            key for key in map(str, range(1000)) if peer.kit.is_primary(peer.kit.partition_for(key))
        )
        eventually(lambda: http.get(f"/k/{theirs}").status_code == 421)
        assert http.get(f"/k/{theirs}").json() == {"detail": "peer.test:8000"}
        process.send_signal(signal.SIGINT)
        process.wait(SECONDS)
        eventually(lambda: set(peer.kit.cluster.nodes) == {"peer"})
        assert "Traceback" not in log.read_text().replace("KeyboardInterrupt", "")


def test_metrics_hooks(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    program = load("metrics_hooks")
    recorder = Recorder()
    member = cluster.member("a", hooks=program.hooks)
    member.kit.include(recorder)
    member.start()
    recorder.rebalanced("node_join", "a")
    member.rebalance()
    recorder.rebalanced("manual", "a")
    eventually(lambda: program.m.n == 2 and program.m.total.total_seconds() > 0)
    member.stop()
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["node_join", "manual"]
    assert all(float(line.split()[1]) >= 0 for line in said)


def test_breaker(etcd_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(etcd_endpoint, "asyncio")
    try:
        for name, value in environment(
            cluster,
            CLUSTERKIT_CLUSTER="c",
            CLUSTERKIT_NODE_ID="a",
            CLUSTERKIT_ADDRESS="a.test:1",
            CLUSTERKIT_PARTITIONS=str(PARTITIONS),
        ).items():
            monkeypatch.setenv(name, value)
        program = load("breaker")
        assert isinstance(program.ck, ClusterKit)
        program.b.failures = 7
        cluster.loop.run(program.ck.start())
        try:
            peer = cluster.process("b").joined()
            peer.kill()
            eventually(lambda: program.b.open)  # one of two is no majority
            assert program.b.failures == 7
            cluster.process("b").joined()
            eventually(lambda: not program.b.open)
            assert program.b.failures == 0
        finally:
            cluster.loop.run(program.ck.stop())
    finally:
        cluster.close()


def test_cron_waits_for_a_later_release(
    threads_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(threads_cluster).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match="'exclusive' is not available in this release") as caught:
        load("cron")
    assert caught.value.option == "ownership"
