"""What becomes of a kit when its process forks, is signalled, ends, or is stopped by the kernel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clusterkit import NodeLeaveEvent
from clusterkit.testing import EmbeddedEtcd
from tests.support.processes import pause

from .support import REPOSITORY, SECONDS, Cluster, Recorder, agree, eventually

PROGRAM = str(Path(__file__).with_name("process_program.py"))
# The embedded etcd is old, and gRPC says of every fork in a running kit's process that it does
# nothing about it.
_EXPECTED = ("upgrade etcd", "fork_posix.cc")


class Program:
    """A running case, whose words are read line by line."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def says(self, words: str) -> None:
        said = self.line()
        assert said == words, (said, self._log.read_text())

    def ends(self, code: int, *, seconds: float = SECONDS) -> str:
        """Waits for its end; what it said on stderr beyond what is expected."""
        begun = time.monotonic()
        found = self.process.wait(SECONDS)
        took = time.monotonic() - begun
        assert found == code, (found, self._log.read_text())
        assert took < seconds
        lines = self._log.read_text().splitlines()
        return "\n".join(li for li in lines if not any(e in li for e in _EXPECTED))


@contextmanager
def running(cluster: Cluster, tmp_path: Path, case: str, **env: str) -> Iterator[Program]:
    options = {
        **cluster.defaults,
        "node_id": "program",
        "address": "program.test:1",
        "lease_ttl": 2,
        "replication_factor": 1,
    }
    log = tmp_path / "stderr"
    with log.open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", PROGRAM, case, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **env},
        )
    try:
        yield Program(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def members(cluster: Cluster) -> set[str]:
    found = [cluster.keys.parse(kv.key) for kv in cluster.read(cluster.keys.nodes).kvs]
    return {k.node_id for k in found if k is not None}


@pytest.mark.parametrize("support", ["", "0"])
def test_a_fork_leaves_the_parent_alone(
    threads_cluster: Cluster, tmp_path: Path, support: str
) -> None:
    """With gRPC's default and without its fork support.

    With GRPC_ENABLE_FORK_SUPPORT=1 it is the child that can hang, in a handler of grpcio's own
    (1.85), before the fork returns there; the parent goes on.
    """
    env = {"GRPC_ENABLE_FORK_SUPPORT": support} if support else {}
    with running(threads_cluster, tmp_path, "fork", **env) as program:
        program.says("ok")
        assert program.ends(0) == ""


@pytest.mark.parametrize(
    "case",
    [
        "fork_and_start_another",
        "multiprocessing_fork",
        "multiprocessing_spawn",
        "stop_twice",
        "uvloop_hooks",
    ],
)
def test_a_program(threads_cluster: Cluster, tmp_path: Path, case: str) -> None:
    with running(threads_cluster, tmp_path, case) as program:
        program.says("ok")
        assert program.ends(0) == ""
    assert members(threads_cluster) == set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_request_stop_in_a_signal_handler(
    threads_cluster: Cluster, tmp_path: Path, number: signal.Signals
) -> None:
    with running(threads_cluster, tmp_path, "request_stop_on_signals") as program:
        program.says("ready")
        program.process.send_signal(number)
        program.says("ok")
        assert program.ends(0) == ""
    assert members(threads_cluster) == set()


@pytest.mark.parametrize("case", ["interrupted", "asyncio_interrupted", "uvloop_interrupted"])
def test_ctrl_c_inside_with_leaves(threads_cluster: Cluster, tmp_path: Path, case: str) -> None:
    with running(threads_cluster, tmp_path, case) as program:
        program.says("ready")
        program.process.send_signal(signal.SIGINT)
        said = program.ends(-signal.SIGINT)
        assert said.splitlines()[-1] == "KeyboardInterrupt"
        assert "defect" not in said
        assert "never awaited" not in said
    assert members(threads_cluster) == set()


@pytest.mark.parametrize(
    "case, code",
    [
        ("no_stop", 0),
        ("no_stop_with_hooks", 0),
        ("request_stop_and_end", 0),
        ("sys_exit", 7),
        ("daemon_thread", 0),
    ],
)
def test_the_end_of_a_program_is_a_leave(
    threads_cluster: Cluster, tmp_path: Path, case: str, code: int
) -> None:
    """Nobody waits for a lease to expire, and the end is prompt and silent."""
    recorder = Recorder()
    peer = threads_cluster.node("peer", hooks=recorder, replication_factor=1)
    agree([peer])
    with running(threads_cluster, tmp_path, case) as program:
        program.says("ready")
        assert program.ends(code, seconds=5) == ""
    assert recorder.one(NodeLeaveEvent).reason == "graceful_shutdown"


def test_an_exception_that_nobody_catches_is_a_leave_too(
    threads_cluster: Cluster, tmp_path: Path
) -> None:
    with running(threads_cluster, tmp_path, "uncaught") as program:
        program.says("ready")
        said = program.ends(1, seconds=5)
        assert said.splitlines()[-1] == "ZeroDivisionError: of the application's own"
        assert said.count("Traceback") == 1
    assert members(threads_cluster) == set()


def test_sigterm_without_a_handler_is_an_expiry(threads_cluster: Cluster, tmp_path: Path) -> None:
    """The library installs no handler, and Python ends at once by default."""
    recorder = Recorder()
    peer = threads_cluster.node("peer", hooks=recorder, replication_factor=1)
    agree([peer])
    with running(threads_cluster, tmp_path, "interrupted") as program:
        program.says("ready")
        program.process.send_signal(signal.SIGTERM)
        assert program.ends(-signal.SIGTERM, seconds=2) == ""
    assert recorder.one(NodeLeaveEvent).reason == "health_check_failure"


def test_an_end_without_etcd_is_prompt_too(
    own_etcd: EmbeddedEtcd, own_cluster: Cluster, tmp_path: Path
) -> None:
    with running(own_cluster, tmp_path, "no_stop_on_word") as program:
        program.says("ready")
        own_etcd.pause()
        try:
            assert program.process.stdin is not None
            program.process.stdin.close()
            program.ends(0, seconds=6)
        finally:
            own_etcd.resume()


def test_a_stopped_process_does_not_answer_from_the_past(
    threads_cluster: Cluster, tmp_path: Path
) -> None:
    """SIGSTOP past the TTL: the first answer afterwards is False, until a new join."""
    recorder = Recorder()
    with running(threads_cluster, tmp_path, "watch_ownership") as program:
        owned, before, _ = program.line().split()
        assert owned == "True"
        peer = threads_cluster.node("peer", hooks=recorder, replication_factor=1)
        agree([peer])
        pause(program.process)
        assert recorder.one(NodeLeaveEvent).reason == "health_check_failure"
        woken = time.monotonic()
        program.process.send_signal(signal.SIGCONT)
        after: list[tuple[str, str]] = []
        while not after or after[-1][0] != "True" or after[-1][1] == before:
            words = program.line().split()
            assert words
            if float(words[-1]) < woken:
                continue
            after.append((words[0], words[1] if len(words) == 3 else ""))
            if after[-1][0] == "False" and peer.kit.is_primary("partition-0"):
                eventually(lambda: "program" in peer.kit.cluster.nodes)
                if peer.kit.is_primary("partition-0"):
                    break  # the partition is another's in the new cluster
        assert after
        assert after[0][0] == "False"
        assert all(lease != before for owned, lease in after if owned == "True")
