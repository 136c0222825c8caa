"""The demo as a program sees it, its control, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import clusterkit

COMMAND = [sys.executable, "-c", "from clusterkit.cli import main; main()", "demo"]
PATIENCE_SECONDS = 90.0
HOOKS = {
    "on_partition_change",
    "on_node_join",
    "on_node_rejoin",
    "on_node_leave",
    "on_rebalance_start",
    "on_rebalance_complete",
    "on_cluster_health_change",
}

pytestmark = pytest.mark.timeout(120)


def _environment() -> dict[str, str]:
    # A user's own settings must not reach the demo's cluster.
    return {
        **os.environ,
        "PYTHONPATH": str(Path(clusterkit.__file__).parents[1]),
        "CLUSTERKIT_CLUSTER": "production",
        "CLUSTERKIT_ENDPOINTS": "127.0.0.1:1",
    }


def _demo(*arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    done = subprocess.run(
        [*COMMAND, "--json", *arguments],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_no_key_is_lost_and_every_hook_is_seen() -> None:
    code, lines, errors = _demo("--keys", "300")
    *records, summary = lines
    assert summary["event"] == "summary"
    assert summary["violations"] == []
    assert (code, errors) == (0, "")
    assert (summary["keys_written"], summary["keys_lost"]) == (300, 0)
    assert set(summary["hooks_seen"]) == HOOKS
    assert summary["partitions_moved"] > 0
    assert summary["bytes_moved"] > 0
    assert 0 < summary["seconds"] < 60

    for record in records:
        assert {"event", "seen_by", "revision", "event_id"} <= record.keys()
    leaves = {(r["node"], r["reason"]) for r in records if r["event"] == "node_leave"}
    assert leaves == {("node-2", "health_check_failure"), ("node-3", "graceful_shutdown")}
    backs = {r["node"] for r in records if r["event"] == "node_rejoin"}
    assert backs == {"node-2"}
    steps = [r["step"] for r in records if r["event"] == "step"]
    assert steps == ["start", "write", "join", "kill", "rejoin", "stop", "rebalance"]
    done = [r for r in records if r["event"] == "step_done"]
    assert [(r["keys_read"], r["keys_lost"]) for r in done[1:]] == [(300, 0)] * 6


def test_the_same_change_has_the_same_id_on_every_node() -> None:
    _, lines, _ = _demo("--keys", "20")
    for node, reason in (("node-2", "health_check_failure"), ("node-3", "graceful_shutdown")):
        leaves = [
            line
            for line in lines
            if line["event"] == "node_leave"
            and line["node"] == node
            and line["seen_by"] != node  # one that stops may or may not hear of itself
        ]
        assert len(leaves) == 4
        assert {leave["reason"] for leave in leaves} == {reason}
        assert len({leave["event_id"] for leave in leaves}) == 1


def test_the_control_loses_keys_and_says_so() -> None:
    code, lines, _ = _demo("--without-hooks", "--keys", "300")
    summary = lines[-1]
    assert summary["event"] == "summary"
    assert summary["without_hooks"] is True
    assert summary["keys_lost"] > 0
    assert code == 0


def test_for_people_the_last_line_has_the_figures() -> None:
    done = subprocess.run(
        [*COMMAND, "--keys", "50"],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith("keys written 50, keys lost 0, partitions moved ")
    assert "hooks seen 7 of 7" in last


@pytest.mark.parametrize(
    "how, code",
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_however_it_ends_no_process_stays(how: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        [*COMMAND, "--json"], env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as demo:
        try:
            assert demo.stdout is not None
            assert demo.stderr is not None
            for line in demo.stdout:
                if json.loads(line).get("step") == "join":
                    break
            children = _children(demo.pid)
            assert len(children) >= 5  # etcd and four nodes
            demo.send_signal(how)
            rest = demo.stdout.read().splitlines()
            assert demo.wait(PATIENCE_SECONDS) == code
            assert demo.stderr.read() == b""
        finally:
            demo.kill()
    assert all(json.loads(line)["event"] != "summary" for line in rest)
    deadline = time.monotonic() + 10
    while running := [pid for pid in children if _is_running(pid)]:
        assert time.monotonic() < deadline, f"still running: {running}"


def _children(pid: int) -> list[int]:
    table = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    )
    pairs = [line.split() for line in table.stdout.splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == pid]


def _is_running(pid: int) -> bool:
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    # In a container nobody may wait for orphans; those that are only waited for have ended.
    return bool(state.stdout.strip()) and not state.stdout.strip().startswith("Z")
