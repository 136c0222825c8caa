"""Kits that serve HTTP by themselves, on a real etcd."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing

import httpx
import pytest

from clusterkit import KitState, OptionError, StoreError
from clusterkit.testing import EmbeddedEtcd

from .support import PARTITIONS, REPOSITORY, SECONDS, Cluster, eventually, kit_threads


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def get(port: int, path: str, **headers: str) -> httpx.Response:
    url = f"http://127.0.0.1:{port}{path}"
    return httpx.get(url, headers=headers, timeout=SECONDS, trust_env=False)


def test_every_member_tells_the_same_cluster(cluster: Cluster) -> None:
    ports = {"a": free_port(), "b": free_port()}
    members = [cluster.node(name, admin=f"127.0.0.1:{port}") for name, port in ports.items()]
    for member in members:
        member.wait_converged()
        member.wait_ready()
    eventually(lambda: len({m.kit.cluster.revision for m in members}) == 1)
    rows = [get(port, "/partitions").json()["partitions"] for port in ports.values()]
    assert rows[0] == rows[1]
    assert [row["id"] for row in rows[0]] == [f"partition-{i}" for i in range(PARTITIONS)]
    for name, port in ports.items():
        assert get(port, "/ready").status_code == get(port, "/health").status_code == 200
        assert get(port, "/cluster").json()["node"] == name
        assert [n["id"] for n in get(port, "/nodes").json()["nodes"]] == ["a", "b"]
        text = get(port, "/metrics").text
        assert re.search(rf'^clusterkit_nodes{{cluster="c",node="{name}"}} 2.0$', text, re.M)
    tag = get(ports["a"], "/nodes").headers["etag"]
    members[1].stop()
    with pytest.raises(httpx.ConnectError):
        get(ports["b"], "/health")
    eventually(lambda: get(ports["a"], "/nodes").json()["total"] == 1)
    assert get(ports["a"], "/nodes", **{"If-None-Match": tag}).status_code == 200


def test_a_stop_ends_the_thread_and_frees_the_port_for_the_next_start(cluster: Cluster) -> None:
    port = free_port()
    member = cluster.node("a", admin=f":{port}")
    assert "clusterkit-admin" in kit_threads()
    with httpx.Client(trust_env=False) as client:  # a connection that is kept open
        assert client.get(f"http://127.0.0.1:{port}/health").status_code == 200
        member.stop()
    assert not kit_threads()
    member.start()
    assert get(port, "/health").status_code == 200


def test_a_port_that_is_taken_is_told_before_anything_is_joined(cluster: Cluster) -> None:
    port = free_port()
    first = cluster.node("a", admin=f":{port}")
    other = cluster.member("b", admin=f":{port}")
    with pytest.raises(OptionError, match=f"admin='127.0.0.1:{port}' cannot work.*in use"):
        other.start()
    assert other.kit.state is KitState.STOPPED
    assert list(first.kit.cluster.nodes) == ["a"]
    assert get(port, "/cluster").json()["node"] == "a", "the first is not disturbed"
    first.stop()
    other.start()
    assert get(port, "/cluster").json()["node"] == "b"


def test_with_etcd_down_it_is_not_ready_and_still_answers(own_etcd: EmbeddedEtcd) -> None:
    port = free_port()
    with closing(Cluster(own_etcd.endpoint)) as cluster:
        member = cluster.node("a", admin=f":{port}", lease_ttl=2, connect_timeout=2)
        member.wait_ready()
        assert get(port, "/ready").status_code == 200
        own_etcd.stop()
        found = eventually(
            lambda: answer if (answer := get(port, "/ready")).status_code == 503 else None
        )
        assert found.json()["reasons"] == ["fenced: the lease cannot be proven to be alive"]
        assert get(port, "/health").status_code == 200, "no reason to restart the process"
        eventually(lambda: get(port, "/health/detailed").json()["status"] == "critical")
        assert get(port, "/partitions").json()["total"] == PARTITIONS
        member.stop(0)


def test_a_start_without_etcd_frees_the_port(cluster: Cluster) -> None:
    port = free_port()
    member = cluster.member(
        "a", admin=f":{port}", endpoints=f"127.0.0.1:{free_port()}", connect_timeout=0.2
    )
    for _ in range(2):
        with pytest.raises(StoreError):
            member.start()
        assert not kit_threads()
        with pytest.raises(httpx.ConnectError):
            get(port, "/health")


FORKS = """
import os, sys
from clusterkit.sync import ClusterKit
with ClusterKit(lease_ttl=2) as ck:
    app = ck.asgi()
    child = os.fork()
    if child == 0:
        sys.stdin.read()  # until the parent's end, and the test's
        os._exit(0)
print("stopped", flush=True)
sys.stdin.read()
os.waitpid(child, 0)
"""


def program(cluster: Cluster, source: str, port: int) -> subprocess.Popen[str]:
    """A process whose kit has all its options from variables."""
    given = {**cluster.defaults, "node_id": "a", "address": "a.test:1", "admin": f":{port}"}
    variables = {f"CLUSTERKIT_{k.upper()}": str(v) for k, v in given.items() if k != "environ"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables, "PYTHONPATH": str(REPOSITORY)},
    )


def test_a_forked_child_does_not_keep_the_port(threads_cluster: Cluster) -> None:
    port = free_port()
    process = program(threads_cluster, FORKS, port)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "stopped\n"
        with socket.socket() as again:  # the child lives, and the port is free
            again.bind(("127.0.0.1", port))
            again.listen()
        process.stdin.close()
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


SIGNALLED = """
import signal
from clusterkit.sync import ClusterKit
ck = ClusterKit()
signal.signal(signal.SIGTERM, lambda *_: ck.request_stop())
with ck:
    print("joined", flush=True)
    ck.wait_stopped()
print("left", flush=True)
"""


def test_signals_stay_the_applications(threads_cluster: Cluster) -> None:
    port = free_port()
    process = program(threads_cluster, SIGNALLED, port)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "joined\n"
        eventually(lambda: get(port, "/ready").status_code == 200)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "left\n"
        assert process.wait(SECONDS) == 0
        assert time.monotonic() - began < SECONDS
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
