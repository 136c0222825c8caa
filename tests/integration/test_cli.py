"""The command against a real etcd: what it prints where, its exit codes, and no traceback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

import pytest

import clusterkit
from clusterkit.sync import ClusterKit
from clusterkit.testing.embedded import EmbeddedEtcd

COMMAND = [sys.executable, "-c", "from clusterkit.cli import main; main()"]
PATIENCE_SECONDS = 20.0


def _environment(**more: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("CLUSTERKIT_")}
    return {**kept, "PYTHONPATH": str(Path(clusterkit.__file__).parents[1]), **more}


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=_environment(**environment),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


class Running:
    """A command in the foreground of nobody; its lines come with a deadline."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.out = self._lines(process.stdout)
        self.err = self._lines(process.stderr)

    def _lines(self, stream: IO[str] | None) -> SimpleQueue[str]:
        lines: SimpleQueue[str] = SimpleQueue()
        assert stream is not None

        def read() -> None:
            for line in stream:
                lines.put(line.rstrip("\n"))

        threading.Thread(target=read, daemon=True).start()
        return lines

    def wait_gone(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)


@contextlib.contextmanager
def _running(*arguments: str) -> Iterator[Running]:
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Running(process)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _rest(lines: SimpleQueue[str]) -> list[str]:
    found = []
    with contextlib.suppress(Empty):
        while True:
            found.append(lines.get(timeout=0.2))
    return found


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with EmbeddedEtcd() as etcd:
        yield etcd.endpoint


@contextlib.contextmanager
def _node(endpoint: str, cluster: str, node_id: str, port: int) -> Iterator[ClusterKit]:
    with ClusterKit(
        cluster=cluster,
        endpoints=endpoint,
        node_id=node_id,
        address=f"127.0.0.1:{port}",
        partitions=8,
        replication_factor=2,
        environ={},
    ) as kit:
        yield kit


@pytest.fixture(scope="module")
def pair(endpoint: str) -> Iterator[str]:
    """A cluster of two nodes; its name."""
    with _node(endpoint, "pair", "a", 4001), _node(endpoint, "pair", "b", 4002):
        yield "pair"


def test_nodes(endpoint: str, pair: str) -> None:
    done = _run("nodes", "--endpoints", endpoint, "--cluster", pair, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["cluster"] == "pair"
    assert {node["id"]: node["address"] for node in document["nodes"]} == {
        "a": "127.0.0.1:4001",
        "b": "127.0.0.1:4002",
    }
    assert sum(node["primary_of"] for node in document["nodes"]) == 8

    done = _run("nodes", CLUSTERKIT_ENDPOINTS=endpoint, CLUSTERKIT_CLUSTER=pair)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pair: 2 nodes" in done.stdout
    assert "127.0.0.1:4002" in done.stdout


def test_partitions(endpoint: str, pair: str) -> None:
    where = ("--endpoints", endpoint, "--cluster", pair)
    done = _run("partitions", *where, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["replication_factor"] == 2
    assert [p["id"] for p in document["partitions"]] == [f"partition-{n}" for n in range(8)]
    assert all({p["primary"], *p["replicas"]} == {"a", "b"} for p in document["partitions"])

    done = _run("partitions", *where, "--node", "b")
    assert (done.returncode, done.stderr) == (0, "")
    assert "pair: 8 partitions of b" in done.stdout

    done = _run("partitions", *where, "--node", "c")
    assert (done.returncode, done.stdout) == (1, "")
    assert "'c' is no node of the cluster 'pair'; its nodes are: a, b" in done.stderr


def test_watch(endpoint: str) -> None:
    with (
        _node(endpoint, "watched", "a", 4001),
        _running("watch", "--endpoints", endpoint, "--cluster", "watched", "--json") as watch,
    ):
        assert "watching the cluster 'watched'" in watch.err.get(timeout=PATIENCE_SECONDS)
        with _node(endpoint, "watched", "b", 4002):
            seen = _until(watch, "rebalance_complete")
        seen += _until(watch, "rebalance_complete")
        watch.process.send_signal(signal.SIGINT)
        assert watch.wait_gone() == 130
        assert _rest(watch.err) == []
    kinds = [record["event"] for record in seen]
    assert kinds[0] == "node_join"
    assert (seen[0]["node"], seen[0]["seen_by"]) == ("b", "watch")
    leave = next(record for record in seen if record["event"] == "node_leave")
    assert (leave["node"], leave["reason"]) == ("b", "graceful_shutdown")
    # Changes of every node, not of one's own: a watcher has none.
    assert {record.get("copy_to_node") for record in seen} == {None, "a", "b"}
    for record in seen:
        assert {"event", "seen_by", "revision", "event_id", "timestamp"} <= record.keys()


def _until(watch: Running, kind: str) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    while not seen or seen[-1]["event"] != kind:
        seen.append(json.loads(watch.out.get(timeout=PATIENCE_SECONDS)))
    return seen


def test_watch_for_people(endpoint: str) -> None:
    with (
        _node(endpoint, "seen", "a", 4001),
        _running("watch", "--endpoints", endpoint, "--cluster", "seen") as watch,
    ):
        watch.err.get(timeout=PATIENCE_SECONDS)
        with _node(endpoint, "seen", "b", 4002):
            assert "b joined (2 in the cluster)" in watch.out.get(timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize("how, code", [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_etcd_serves_until_it_is_told_to_stop(how: signal.Signals, code: int) -> None:
    with _running("etcd", "--port", "0") as etcd:
        endpoint = etcd.out.get(timeout=PATIENCE_SECONDS)
        with _node(endpoint, "here", "a", 4001):
            assert _run("nodes", "--endpoints", endpoint, "--cluster", "here").returncode == 0
        etcd.process.send_signal(how)
        assert etcd.wait_gone() == code
        assert _rest(etcd.err) == ["etcd serves until Ctrl-C"]
    host, _, port = endpoint.rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=1)


def test_etcd_keeps_its_data(tmp_path: Path) -> None:
    for turn in range(2):
        with _running("etcd", "--port", "0", "--data-dir", str(tmp_path / "data")) as etcd:
            endpoint = etcd.out.get(timeout=PATIENCE_SECONDS)
            found = _run("nodes", "--endpoints", endpoint, "--cluster", "kept").returncode
            assert found == (1 if turn == 0 else 0)  # the cluster, not its nodes, outlives them
            with _node(endpoint, "kept", "a", 4001):
                pass
            etcd.process.send_signal(signal.SIGTERM)
            assert etcd.wait_gone() == 0


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = _run("etcd", "--port", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert str(port) in done.stderr
    assert "--port 0" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["nodes", "--endpoints", "nowhere"], "endpoints='nowhere'"),
        (["nodes", "--endpoints", ""], "endpoints=''"),
        (["nodes", "--cluster", "a/b"], "cluster='a/b'"),
        (["watch", "--prefix", ""], "prefix=''"),
        (["partitions", "--tls-cert", "only.pem"], "cert"),
        (["nodes", "--tls-ca", "/no/such/file.pem"], "/no/such/file.pem"),
        (["nodes", "--no-such-option"], "No such option"),
        (["demo", "--keys", "0"], "--keys"),
        (["demo", "--partitions", "many"], "--partitions"),
        (["etcd", "--port", "65536"], "--port"),
        (["no-such-command"], "No such command"),
    ],
)
def test_wrong_usage(arguments: list[str], says: str) -> None:
    done = _run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unreachable_etcd_is_one_line_within_the_timeout() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers here
        where = f"127.0.0.1:{closed.getsockname()[1]}"
        for command in ("nodes", "partitions", "watch"):
            began = time.monotonic()
            _run(command, "--help")
            starting = time.monotonic() - began  # most of it all on a busy machine
            began = time.monotonic()
            done = _run(command, "--endpoints", where, CLUSTERKIT_CONNECT_TIMEOUT="1")
            assert time.monotonic() - began < 4 + 3 * starting
            assert (done.returncode, done.stdout) == (1, "")
            assert where in done.stderr
            assert len(done.stderr.splitlines()) == 1


def test_a_cluster_that_does_not_exist(endpoint: str) -> None:
    for command in ("nodes", "partitions"):
        done = _run(command, "--endpoints", endpoint, "--cluster", "nobody-made-this", "--json")
        assert (done.returncode, done.stdout) == (1, "")
        assert "nobody-made-this" in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_says_how_to_get_it(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; {COMMAND[2]}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'clusterkit[cli]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_names_every_command() -> None:
    done = _run("--help")
    assert done.returncode == 0
    for command in ("etcd", "nodes", "partitions", "watch", "demo"):
        assert command in done.stdout
