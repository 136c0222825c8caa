"""The pytest plugin, as pytest finds it in a user's project: by its entry point."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture
def user(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    # Not in this process: gRPC and protobuf cannot be imported twice.
    monkeypatch.setattr(pytester, "_method", "subprocess")
    return pytester


def test_it_is_found_by_its_entry_point() -> None:
    (found,) = entry_points(group="pytest11", name="clusterkit")
    assert found.value == "clusterkit.testing.pytest_plugin"


def test_the_fixtures_run_clusters(user: pytest.Pytester) -> None:
    user.makepyfile(
        """
        import threading

        from clusterkit import PartitionChangeEvent
        from clusterkit.testing import ClusterFactory, EmbeddedEtcd

        seen = set()


        def test_on_etcd(local_cluster: ClusterFactory, clusterkit_etcd: EmbeddedEtcd) -> None:
            a, b, c = local_cluster(3, partitions=4)
            assert len(a.partitions()) == 4
            assert sorted(c.cluster.nodes) == ["node-1", "node-2", "node-3"]
            seen.add(clusterkit_etcd.endpoint)


        def test_again_on_the_same_etcd_and_a_fresh_prefix(local_cluster, clusterkit_etcd) -> None:
            (a,) = local_cluster(1)
            assert list(a.cluster.nodes) == ["node-1"]
            assert seen == {clusterkit_etcd.endpoint}
            other = local_cluster(2)
            other[0].cut_off()
            other.wait_converged()
            assert len(a.cluster.nodes) == 1 and len(other) == 2


        def test_in_memory(memory_cluster: ClusterFactory) -> None:
            fetched: list[PartitionChangeEvent] = []
            cluster = memory_cluster(setup=lambda kit: kit.on_partition_change(fetched.append))
            assert len(cluster) == 3 and fetched
            cluster[0].crash()
            cluster.advance(15)
            cluster.wait_converged()
            assert len(cluster[1].cluster.nodes) == 2


        def test_empty(memory_cluster: ClusterFactory) -> None:
            cluster = memory_cluster(0, partitions=2)
            with cluster.kit("mine") as kit:
                assert len(kit.partitions()) == 2


        def test_nothing_is_left() -> None:
            assert [t.name for t in threading.enumerate() if t.name.startswith("clusterkit")] == []
        """
    )
    result = user.runpytest("-p", "no:xdist", "-p", "no:cacheprovider", "-W", "error")
    result.assert_outcomes(passed=5)


def test_without_its_fixtures_nothing_is_loaded(user: pytest.Pytester) -> None:
    user.makepyfile(
        """
        import sys


        def test_it(request) -> None:
            assert request.config.pluginmanager.has_plugin("clusterkit")
            assert not {"grpc", "pydantic", "google.protobuf"} & set(sys.modules)
            ours = {name for name in sys.modules if name.startswith("clusterkit.")}
            assert ours == {
                "clusterkit._version", "clusterkit.testing", "clusterkit.testing.pytest_plugin"
            }
        """
    )
    # schemathesis, another plugin that lies here, loads what it likes.
    result = user.runpytest("-p", "no:schemathesis", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)


def test_it_can_be_left_out(user: pytest.Pytester) -> None:
    user.makepyfile("def test_it(local_cluster): ...")
    result = user.runpytest("-p", "no:clusterkit")
    result.assert_outcomes(errors=1)


def test_the_library_does_not_need_pytest() -> None:
    program = """
import sys
sys.modules["pytest"] = None
import clusterkit.testing
from clusterkit.testing import EmbeddedEtcd, FaultPlan, LocalCluster, memory_kit
import clusterkit.cli, clusterkit.kit
"""
    subprocess.run([sys.executable, "-c", program], check=True)
