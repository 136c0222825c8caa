"""The pytest plugin: a real etcd for the tests of a session, and clusters in one line each.

pytest finds it by its entry point ``clusterkit``. It is imported by every run of pytest where
ClusterKit is installed, so it imports next to nothing before a fixture is asked for; ``-p
no:clusterkit`` leaves it out altogether. Nothing else in the library imports pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol, Unpack

import pytest

if TYPE_CHECKING:
    from clusterkit.config import OptionsDict

    from .embedded import EmbeddedEtcd
    from .local import LocalCluster, LocalKit

__all__ = ["ClusterFactory", "clusterkit_etcd", "local_cluster", "memory_cluster"]


class ClusterFactory(Protocol):
    """What the fixtures ``local_cluster`` and ``memory_cluster`` are."""

    def __call__(
        self,
        n: int = 3,
        /,
        *,
        setup: Callable[[LocalKit], object] | None = None,
        **options: Unpack[OptionsDict],
    ) -> LocalCluster:
        """A new cluster of ``n`` started kits that has converged; unpack it to have the kits.

        Args:
            n: How many; 0 for an empty one, whose kits you make with its ``kit()``.
            setup: Is called with each kit before it is started, such as to register its hooks.
            **options: See :class:`clusterkit.OptionsDict`.
        """
        ...


@pytest.fixture(scope="session")
def clusterkit_etcd() -> Iterator[EmbeddedEtcd]:
    """An etcd for all tests of the session: its ``endpoint``. Needs the extra ``[embedded]``."""
    from .embedded import EmbeddedEtcd

    with EmbeddedEtcd() as etcd:
        yield etcd


@pytest.fixture
def local_cluster(clusterkit_etcd: EmbeddedEtcd) -> Iterator[ClusterFactory]:
    """``local_cluster(n)`` gives ``n`` started kits on a real etcd, under a prefix of their own."""
    yield from _factory(lambda local: local.LocalCluster(clusterkit_etcd.endpoint))


@pytest.fixture
def memory_cluster() -> Iterator[ClusterFactory]:
    """``memory_cluster(n)`` gives ``n`` started kits without etcd, on a clock that a test moves."""
    yield from _factory(lambda local: local.LocalCluster(clock=local.VirtualClock()))


def _factory(make: Callable[..., LocalCluster]) -> Iterator[ClusterFactory]:
    from . import local

    with ExitStack() as clusters:

        def start(
            n: int = 3,
            /,
            *,
            setup: Callable[[LocalKit], object] | None = None,
            **options: Unpack[OptionsDict],
        ) -> LocalCluster:
            cluster = clusters.enter_context(make(local))
            cluster._defaults.update(options)
            if n:
                cluster.start(n, setup=setup)
            return cluster

        yield start
