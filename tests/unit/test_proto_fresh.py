"""The generated modules are what ``proto/generate.py`` makes of the .proto files today."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def check(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(root / "proto" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )


# The first run of all makes the environment of the pinned protoc.
@pytest.mark.repository
@pytest.mark.timeout(300)
def test_the_generated_modules_are_fresh_and_staleness_is_noticed(tmp_path: Path) -> None:
    fresh = check(ROOT)
    assert fresh.returncode == 0, fresh.stdout + fresh.stderr

    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "proto", copy / "proto")
    for package in ("clusterkit/etcd/_pb", "clusterkit/_pb"):
        if (ROOT / package).is_dir():
            shutil.copytree(ROOT / package, copy / package)
    (copy / "build").mkdir()
    (copy / "build" / "proto-venv").symlink_to(ROOT / "build" / "proto-venv")
    assert check(copy).returncode == 0
    proto = copy / "proto" / "etcd" / "rpc.proto"
    proto.write_text(proto.read_text() + "\nmessage Added { int64 field = 1; }\n")
    stale = check(copy)
    assert stale.returncode == 1
    assert "clusterkit/etcd/_pb/rpc_pb2.py\n" in stale.stdout
    assert "clusterkit/etcd/_pb/rpc_pb2.pyi\n" in stale.stdout
