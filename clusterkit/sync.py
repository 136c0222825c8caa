"""The face for threads: ``with ClusterKit(...) as ck``. For asyncio see :mod:`clusterkit`."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from ._base import Attempt, KitBase, seconds_of
from .hooks import Duration

__all__ = ["ClusterKit"]


class ClusterKit(KitBase):
    """A member of a cluster, for programs of threads.

    ``def`` hooks run on worker threads; ``async def`` hooks on a private event loop. A kit can be
    started again after ``stop()``. It may be made before a fork, and not be used across one. A
    program that ends without ``stop()`` leaves the cluster all the same, and runs no more hooks.
    """

    @classmethod
    def _facing(cls, other: KitBase) -> ClusterKit:
        """This face of another kit."""
        face = cls.__new__(cls)
        face.__dict__ = other.__dict__  # one kit: the same hooks, the same run, now and later
        return face

    if not TYPE_CHECKING:  # for mypy it stays an error to write `async with`

        async def __aenter__(self):
            raise TypeError(
                "this kit is the one for threads: write `with`, or take clusterkit.ClusterKit, "
                "the one for asyncio"
            )

        async def __aexit__(self, *_):
            """Never reached, but looked up first."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        t: type[BaseException] | None,
        e: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Joins the cluster; returns when lookups answer. Never waits for hooks.

        Raises:
            OptionError: An option cannot work.
            ConfigMismatchError: The cluster was made with other settings.
            NodeIdConflictError: The node id is in use.
            StoreError: etcd cannot be asked.
            KitStateError: The kit is started already.
        """
        self._begin(None, Attempt())

    def stop(self, *, timeout: Duration | None = None) -> None:
        """Leaves the cluster and ends every thread. Again, or without a start, it does nothing.

        The node is fenced first, then its leave is recorded, then running hooks are told to end
        and waited for, up to ``timeout`` seconds (``drain_timeout`` unless given). Called inside a
        hook it only asks for the stop, since it would else wait for its own caller.
        """
        run = self._end(timeout)
        if run is not None:
            run.join()

    def wait_ready(self, timeout: Duration | None = None) -> None:
        """Waits until ``readiness().ready``: joined, not fenced, the initial copies done.

        Raises:
            WaitTimeoutError: It did not become ready in time; the text says what is missing.
            KitStateError: The kit has stopped, or was never started.
        """
        future = self._when_ready()
        try:
            future.result(None if timeout is None else seconds_of(timeout))
        except TimeoutError:
            future.cancel()
            raise self._not_ready(timeout) from None

    def wait_converged(self, timeout: Duration | None = None) -> None:
        """Waits until every node's hooks have succeeded for the present assignment.

        Then all copies are made, on all nodes, and nothing moves. It stands on the receipts that
        the nodes write, so it says no more than this node has seen.

        Raises:
            WaitTimeoutError: Not in time; the text names the nodes that are behind.
            KitStateError: The kit has stopped, or was never started.
        """
        future = self._when_converged()
        try:
            future.result(None if timeout is None else seconds_of(timeout))
        except TimeoutError:
            future.cancel()
            raise self._not_converged(timeout) from None

    def wait_stopped(self, timeout: Duration | None = None) -> bool:
        """Waits until the kit has stopped, whoever asked for it; False if it has not in time."""
        try:
            self._running().runner.join(None if timeout is None else seconds_of(timeout))
        except TimeoutError:
            return False
        return True

    def rebalance(self, reason: str = "") -> int:
        """Asks every node to deliver again what its hooks are owed.

        Returns:
            The revision of the request: a node whose view has it has seen it.

        Raises:
            StoreError: etcd cannot be asked.
        """
        return self._running().runner.request_rebalance(reason)

    def rejoin(self) -> None:
        """Joins again after an administrator removed this node, or another process took its id.

        It is a new stay: every node sees ``on_node_rejoin``, and the data of its partitions come
        again. Returns when lookups answer as those of a member. By itself a node that was put out
        never comes back; a lease that was merely lost needs no call.

        Raises:
            KitStateError: The kit is not in the state ``removed``; the text says what to do.
            NodeIdConflictError: Another process has the node id.
            StoreError: etcd cannot be asked; the node is still out.
        """
        self._running().runner.rejoin()
