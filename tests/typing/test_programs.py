"""The six programs of ``programs/`` type-check against the package, as a user's code would.

They are checked by ``mypy --strict`` with no configuration but its defaults. So that a pass means
something, a program that is wrong in every line must be refused in every line.
"""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
from pathlib import Path

import pytest

import clusterkit

PROGRAMS = sorted((Path(__file__).parent / "programs").glob("*.py"))

WRONG = """\
from clusterkit import ClusterKit, Hooks, NodeJoinEvent, PartitionChangeEvent
from clusterkit import sync
ck = ClusterKit(address="h:1")
hooks = Hooks()
ClusterKit(partitons=3)  # wrong
ClusterKit(partitions="3")  # wrong
ClusterKit(on_conflict="ask")  # wrong
ck.guard(b"a key")  # wrong
ck.partition_for(3)  # wrong
ck.cluster.revision = 5  # wrong
with ck: pass  # wrong
async def f() -> None:
    async with sync.ClusterKit(): pass  # wrong
@hooks.on_node_join  # wrong
def joined(e: PartitionChangeEvent) -> None: ...
@hooks.on_node_join(mine=True, retires=3)  # wrong
def joined_again(e: NodeJoinEvent) -> None: ...
@hooks.on_rebalance_complete  # wrong
def completed(e: NodeJoinEvent) -> None: ...
"""


def mypy(cwd: Path, *programs: Path) -> subprocess.CompletedProcess[str]:
    environ = {name: text for name, text in os.environ.items() if not name.startswith("MYPY")}
    root = Path(clusterkit.__file__ or "").parents[1]
    if str(root) not in [*site.getsitepackages(), site.getusersitepackages()]:
        environ["MYPYPATH"] = str(root)  # a working tree, installed as editable or not at all
    return subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file="),
            # Only the programs are judged here; the package is checked by `make lint`.
            *("--follow-imports=silent", "--cache-dir", str(cwd / "cache"), "--no-error-summary"),
            *("--hide-error-context", "--no-pretty", "--no-color-output"),
            *map(str, programs),
        ],
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(clusterkit.__file__ or "").parent / "py.typed").is_file()


@pytest.mark.timeout(300)
def test_the_programs_type_check(tmp_path: Path) -> None:
    assert len(PROGRAMS) == 6
    done = mypy(tmp_path, *PROGRAMS)
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


@pytest.mark.timeout(300)
def test_a_wrong_program_does_not(tmp_path: Path) -> None:
    program = tmp_path / "wrong.py"
    program.write_text(WRONG)
    done = mypy(tmp_path, program)
    found = {int(line) for line in re.findall(r"wrong\.py:(\d+): error", done.stdout)}
    wrong = {n for n, line in enumerate(WRONG.splitlines(), start=1) if line.endswith("# wrong")}
    assert found == wrong, done.stdout + done.stderr
