"""Fixtures of the integration tests: a cluster of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from clusterkit.testing import EmbeddedEtcd

from .support import Cluster, Face, eventually, kit_threads


@pytest.fixture(params=["threads", "asyncio"])
def face(request: pytest.FixtureRequest) -> Face:
    """Both faces, one after the other."""
    face: Face = request.param
    return face


@pytest.fixture
def cluster(etcd_endpoint: str, face: Face) -> Iterator[Cluster]:
    """A cluster whose members have one face, for tests that hold for both."""
    with closing(Cluster(etcd_endpoint, face)) as cluster:
        yield cluster
    eventually(lambda: not kit_threads())


@pytest.fixture
def threads_cluster(etcd_endpoint: str) -> Iterator[Cluster]:
    """A cluster for tests of what lies behind both faces."""
    with closing(Cluster(etcd_endpoint)) as cluster:
        yield cluster
    eventually(lambda: not kit_threads())


@pytest.fixture
def own_etcd() -> Iterator[EmbeddedEtcd]:
    """An etcd that the test may stop."""
    with EmbeddedEtcd() as etcd:
        yield etcd


@pytest.fixture
def own_cluster(own_etcd: EmbeddedEtcd) -> Iterator[Cluster]:
    """A cluster on an etcd that the test may stop, with the shortest TTL."""
    with closing(Cluster(own_etcd.endpoint)) as cluster:
        cluster.defaults["lease_ttl"] = 2
        cluster.defaults["connect_timeout"] = 2
        yield cluster
    eventually(lambda: not kit_threads())
