"""The package's names are loaded one by one, and only when they are asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import clusterkit


def test_every_public_name_is_there_and_named_by_dir() -> None:
    for name in clusterkit.__all__:
        assert getattr(clusterkit, name) is not None
    assert set(clusterkit.__all__) <= set(dir(clusterkit))
    assert set(clusterkit._HOMES) == set(clusterkit.__all__) - {"__version__"}


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'clusterkit' has no attribute 'nothing'"):
        clusterkit.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_hooks_and_events_need_neither_grpc_nor_pydantic_nor_the_engine() -> None:
    program = """
import sys
import clusterkit
from clusterkit import Hooks, PartitionChangeEvent
loaded = {name for name in sys.modules if name.split(".")[0] in ("grpc", "pydantic", "etcd3")}
assert not loaded, loaded
assert "clusterkit.engine" not in sys.modules
assert clusterkit.sync.ClusterKit.__name__ == clusterkit.ClusterKit.__name__ == "ClusterKit"
from clusterkit import *
assert Hooks is clusterkit.Hooks
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_a_kit_is_made_of_is_loaded_by_its_start() -> None:
    program = """
import sys
from clusterkit import ClusterKit, sync
kit, other = ClusterKit(), sync.ClusterKit(partitions=0)

@kit.on_node_join
def joined(event): ...

heavy = "grpc", "pydantic", "etcd3", "google.protobuf", "numpy", "starlette", "typer"
assert not set(heavy) & set(sys.modules), set(heavy) & set(sys.modules)
assert kit.readiness().ready is False
assert str(kit.state) == "new"
try:
    other.start()
except ValueError as error:
    assert "partitions" in str(error), error
else:
    raise AssertionError("the option cannot work")
kit.add_health_check("disk", lambda: True)
other.stop()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
