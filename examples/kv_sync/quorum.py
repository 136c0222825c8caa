"""Writes that W holders have taken, and reads that R holders have answered, of RF.

W + R is RF + 1, so any R holders include one of any W: a read meets the newest write that was
answered, whichever holders are dead, slow or late. W is a majority unless KV_WRITES says
otherwise; R follows from it, so that the two cannot contradict each other.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from clusterkit import ClusterKit, Node, Partition

from .store import Entry, RefusedError, Store

T = TypeVar("T")


class NoQuorumError(Exception):
    """Fewer holders answered than are needed. A write may have happened, or happen still."""


class Quorum:
    """Asks the holders of a key, this node too if it is one."""

    def __init__(self, ck: ClusterKit, store: Store, http: httpx.AsyncClient) -> None:
        self.ck, self.store, self.http = ck, store, http
        self.counter = itertools.count(1)
        self.behind: set[asyncio.Task[Any]] = set()  # what goes on after its answer was given
        self.given = int(os.environ.get("KV_WRITES", "0"))

    @property
    def writes(self) -> int:
        """W. The replication factor is the cluster's: an administrator can change it."""
        factor = self.ck.cluster.replication_factor
        return min(self.given, factor) or factor // 2 + 1

    @property
    def reads(self) -> int:
        """R."""
        return self.ck.cluster.replication_factor - self.writes + 1

    async def write(self, key: str, value: str | None) -> dict[str, Any]:
        """Writes a key; this node must be its primary, so that versions have one source.

        Raises:
            OwnershipError: It is not, or cannot prove that it is alive.
            NoQuorumError: Too few holders took it. Repeat it: nobody knows what became of it.
        """
        with self.ck.guard(self.ck.partition_for(key)) as guard:
            # The epoch in it is what makes a new primary's first write newer than all of the old
            # one's, and what the holders compare: see Store.admit.
            entry = Entry(guard.epoch, next(self.counter), value)
            holders = await self.store_at_holders(guard.partition, key, entry)
            # Should all holders have been cut off together, none of them knows a newer epoch.
            guard.check()
        return {"partition": guard.partition.id, "version": entry.version, "taken_by": holders}

    async def read(self, key: str) -> Entry:
        """The newest version of a key. Any node may ask, whatever it holds itself.

        Raises:
            NoQuorumError: Too few holders answered.
        """
        partition = self.ck.partition_for(key)
        asked = {asyncio.create_task(self.get(n, partition, key)): n for n in partition.nodes}
        answers = await self.enough(asked, self.reads)
        newest = max(answers, key=lambda entry: entry.version)
        if any(answer.version != newest.version for answer in answers):
            # Read repair. It may be a write that reached one holder and was never answered. Who
            # reads after this must not get the older value again: so first W holders have it.
            await self.store_at_holders(partition, key, newest)
        else:
            self.later(self.mend(asked, partition, key, newest))
        return newest

    async def store_at_holders(self, partition: Partition, key: str, entry: Entry) -> list[str]:
        """Sends a version to all holders and waits for W of them; their ids."""
        asked = {
            asyncio.create_task(self.put(node, partition, key, entry)): node
            for node in partition.nodes
        }
        # The others get it as well, behind the answer.
        return await self.enough(asked, self.writes)

    async def mend(
        self, asked: dict[asyncio.Task[Entry], Node], partition: Partition, key: str, newest: Entry
    ) -> None:
        """Repairs the holders that answered a read late, and with an older version."""
        await asyncio.wait(asked)
        for task, node in asked.items():
            if task.exception() is None and task.result().version < newest.version:
                await self.put(node, partition, key, newest)

    async def enough(self, asked: dict[asyncio.Task[T], Node], need: int) -> list[T]:
        """The first answers, as soon as there are enough."""
        for task in asked:
            self.keep(task)
        good: list[T] = []
        refusals: list[str] = []
        pending = set(asked)
        while len(good) < need:
            if len(good) + len(pending) < need:
                told = "; ".join(refusals) or "there are no more"
                raise NoQuorumError(f"{need} of {len(asked)} holders must answer: {told}")
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is None:
                    good.append(task.result())
                elif isinstance(error, (httpx.HTTPError, RefusedError)):
                    refusals.append(f"{asked[task].id}: {error!r}")
                else:
                    raise error
        return good

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Does something behind an answer; if it fails, the next read does it."""
        self.keep(asyncio.create_task(work))

    def keep(self, task: asyncio.Task[Any]) -> None:
        """The loop itself does not keep a task alive; its error, if any, has been dealt with."""
        self.behind.add(task)
        task.add_done_callback(self.behind.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    # What one holder is asked. This node asks itself without a detour.

    async def get(self, node: Node, partition: Partition, key: str) -> Entry:
        if node.id == self.ck.node_id:
            return self.store.get(partition.id, key, partition.epoch)
        url = f"http://{node.address}/partitions/{partition.id}/{quote(key, safe='')}"
        answer = await self.http.get(url, params={"epoch": partition.epoch})
        _refuse(answer)
        return Entry(*answer.json())

    async def put(self, node: Node, partition: Partition, key: str, entry: Entry) -> str:
        if node.id == self.ck.node_id:
            counts = self.store.take(partition.id, key, entry, partition.epoch)
        else:
            url = f"http://{node.address}/partitions/{partition.id}/{quote(key, safe='')}"
            answer = await self.http.put(url, params={"epoch": partition.epoch}, json=entry)
            _refuse(answer)
            counts = answer.json()
        if not counts:
            raise RefusedError("it has it, and does not count yet: its copy is being made")
        return node.id

    async def close(self) -> None:
        """Ends what still goes on."""
        tasks: Sequence[asyncio.Task[Any]] = list(self.behind)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _refuse(answer: httpx.Response) -> None:
    if answer.status_code != 200:
        raise RefusedError(f"{answer.status_code} {answer.text}")
