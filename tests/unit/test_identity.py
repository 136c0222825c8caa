"""Which process is which."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from clusterkit.core.records import Process
from clusterkit.engine import identity
from clusterkit.engine.identity import is_running_here, this_process


def test_this_process_runs() -> None:
    here = this_process()
    assert here.pid == os.getpid()
    assert here.host
    assert is_running_here(here)
    assert this_process() == here


def test_another_process_runs_until_it_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        other = replace(this_process(), pid=child.pid, started=identity._started(child.pid))
        assert is_running_here(other)
    assert not is_running_here(other)


@pytest.mark.parametrize(
    "change",
    [
        {"host": "elsewhere"},
        {"boot_id": "another boot"},
        {"pid_namespace": "pid:[1]"},
        {"pid": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_cannot_be_seen_from_here_does_not_certainly_run(change: dict[str, object]) -> None:
    assert not is_running_here(replace(this_process(), **change))  # type: ignore[arg-type]  # fields of mixed types
    assert not is_running_here(Process())


def test_a_pid_that_is_used_again_is_another_process() -> None:
    here = this_process()
    if here.started:  # else the system does not tell start times
        assert not is_running_here(replace(here, started=here.started + 1))
        assert not is_running_here(replace(here, started=0))


def test_without_start_times_the_pid_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(identity, "_started", lambda pid: 0)
    here = this_process()
    assert is_running_here(here)
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    assert not is_running_here(replace(here, pid=child.pid))


def test_a_process_of_another_user_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_started", lambda pid: 0)

    def not_yours(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", not_yours)
    assert is_running_here(this_process())


def test_a_name_with_brackets_and_blanks_does_not_confuse_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields = " ".join(str(n) for n in range(4, 53))
    monkeypatch.setattr(identity, "_read", lambda path: f"42 (a) b) (c) S {fields}")
    assert identity._started(42) == 22
    monkeypatch.setattr(identity, "_read", lambda path: "")
    assert identity._started(42) == 0
