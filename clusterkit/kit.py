"""The face for asyncio: ``async with ClusterKit(...) as ck``; for threads: ``clusterkit.sync``."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Self

from . import sync
from ._base import Attempt, KitBase, seconds_of
from .hooks import Duration

__all__ = ["ClusterKit"]


class ClusterKit(KitBase):
    """A member of a cluster, for asyncio programs.

    ``async def`` hooks run on the loop that entered the kit, ``def`` hooks on worker threads. The
    keep-alives run on a thread of their own, so a blocked loop delays its own hooks and nothing
    else. A kit can be started again after ``stop()``. It may be made before a fork, and not be used
    across one. A program that ends without ``stop()`` leaves the cluster all the same, and runs no
    more hooks.
    """

    if not TYPE_CHECKING:  # for mypy it stays an error to write `with`

        def __enter__(self):
            raise TypeError(
                "this kit is the one for asyncio: write `async with`, or take "
                "clusterkit.sync.ClusterKit, the one for threads"
            )

        def __exit__(self, *_):
            """Never reached, but looked up first."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        t: type[BaseException] | None,
        e: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Joins the cluster; returns when lookups answer. Never waits for hooks.

        Cancelled in between, it stops again what it has started.

        Raises:
            OptionError: An option cannot work.
            ConfigMismatchError: The cluster was made with other settings.
            NodeIdConflictError: The node id is in use.
            StoreError: etcd cannot be asked.
            KitStateError: The kit is started already.
        """
        attempt = Attempt()
        starting = asyncio.ensure_future(
            asyncio.to_thread(self._begin, asyncio.get_running_loop(), attempt)
        )
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            attempt.give_up()
            # The thread ends by itself; its error, if it has one, is of no interest any more.
            starting.add_done_callback(lambda f: f.cancelled() or f.exception())
            raise

    async def stop(self, *, timeout: Duration | None = None) -> None:
        """Leaves the cluster and ends every thread. Again, or without a start, it does nothing.

        The node is fenced first, then its leave is recorded, then running hooks are told to end
        and waited for, up to ``timeout`` seconds (``drain_timeout`` unless given). Called inside a
        hook it only asks for the stop, since it would else wait for its own caller.
        """
        run = self._end(timeout)
        if run is not None:
            await asyncio.shield(asyncio.wrap_future(run.ended))
            run.join()

    async def wait_ready(self, timeout: Duration | None = None) -> None:
        """Waits until ``readiness().ready``: joined, not fenced, the initial copies done.

        Raises:
            WaitTimeoutError: It did not become ready in time; the text says what is missing.
            KitStateError: The kit has stopped, or was never started.
        """
        try:
            async with asyncio.timeout(None if timeout is None else seconds_of(timeout)):
                await asyncio.wrap_future(self._when_ready())
        except TimeoutError:
            raise self._not_ready(timeout) from None

    async def wait_converged(self, timeout: Duration | None = None) -> None:
        """Waits until every node's hooks have succeeded for the present assignment.

        Then all copies are made, on all nodes, and nothing moves. It stands on the receipts that
        the nodes write, so it says no more than this node has seen.

        Raises:
            WaitTimeoutError: Not in time; the text names the nodes that are behind.
            KitStateError: The kit has stopped, or was never started.
        """
        try:
            async with asyncio.timeout(None if timeout is None else seconds_of(timeout)):
                await asyncio.wrap_future(self._when_converged())
        except TimeoutError:
            raise self._not_converged(timeout) from None

    async def wait_stopped(self) -> None:
        """Waits until the kit has stopped, whoever asked for it.

        Raises:
            KitStateError: The kit was never started.
        """
        run = self._running().runner
        await asyncio.shield(asyncio.wrap_future(run.ended))
        run.join()

    async def rebalance(self, reason: str = "") -> int:
        """Asks every node to deliver again what its hooks are owed.

        Returns:
            The revision of the request: a node whose view has it has seen it.

        Raises:
            StoreError: etcd cannot be asked.
        """
        return await asyncio.to_thread(self._running().runner.request_rebalance, reason)

    async def rejoin(self) -> None:
        """Joins again after an administrator removed this node, or another process took its id.

        It is a new stay: every node sees ``on_node_rejoin``, and the data of its partitions come
        again. Returns when lookups answer as those of a member. By itself a node that was put out
        never comes back; a lease that was merely lost needs no call.

        Raises:
            KitStateError: The kit is not in the state ``removed``; the text says what to do.
            NodeIdConflictError: Another process has the node id.
            StoreError: etcd cannot be asked; the node is still out.
        """
        await asyncio.to_thread(self._running().runner.rejoin)

    @property
    def blocking(self) -> sync.ClusterKit:
        """The same kit with the face for threads: the same run, the same hooks.

        For code in worker threads. Its methods block, so none may be called on the event loop.
        """
        return sync.ClusterKit._facing(self)
