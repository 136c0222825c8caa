"""A TCP proxy between one node and etcd, which can cut the connections or swallow what they carry.

All proxies run on one event loop on a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Serve: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_CHUNK = 65_536
_CALL_SECONDS = 10.0


class Loop:
    """The thread and the loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="chaos-proxies")
        self._thread.start()

    def close(self) -> None:
        async def rest() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(rest(), self.loop).result(_CALL_SECONDS)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_CALL_SECONDS)
        self.loop.close()


class Proxy:
    """One node's way to every member: ``endpoints`` in the order of ``targets``.

    ::

        OPEN ──cut()──► CUT (connections end, new ones end at once)      ──heal()──► OPEN
        OPEN ──swallow()──► DEAF (connections stand, nothing comes through) ──heal()──► OPEN
    """

    def __init__(self, loop: Loop, targets: Sequence[str]) -> None:
        self._loop = loop.loop
        self._cut = False
        self._open = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._servers: list[asyncio.Server] = []
        self.endpoints: list[str] = self._do(self._listen(targets))

    def cut(self) -> None:
        """Ends all connections and lets no new ones through."""

        async def cut() -> None:
            self._cut = True
            for writer in list(self._writers):
                writer.transport.abort()

        self._do(cut())

    def swallow(self) -> None:
        """Lets nothing through: neither an answer nor an end. It comes late, after ``heal``."""

        async def swallow() -> None:
            self._open.clear()

        self._do(swallow())

    def heal(self) -> None:
        async def heal() -> None:
            self._cut = False
            self._open.set()

        self._do(heal())

    def close(self) -> None:
        """Ends everything; idempotent."""

        async def close() -> None:
            for server in self._servers:
                server.close()
            for writer in list(self._writers):
                writer.transport.abort()

        self._do(close())

    def _do(self, coroutine: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_CALL_SECONDS)

    async def _listen(self, targets: Sequence[str]) -> list[str]:
        self._open.set()
        endpoints: list[str] = []
        for target in targets:
            server = await asyncio.start_server(self._serving(target), "127.0.0.1", 0)
            self._servers.append(server)
            endpoints.append(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        return endpoints

    def _serving(self, target: str) -> Serve:
        host, _, port = target.rpartition(":")

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.add(writer)
            there: asyncio.StreamWriter | None = None
            try:
                await self._open.wait()
                if self._cut:
                    return
                back, there = await asyncio.open_connection(host, int(port))
                self._writers.add(there)
                pumps = [
                    asyncio.create_task(self._pump(reader, there)),
                    asyncio.create_task(self._pump(back, writer)),
                ]
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.gather(*pumps, return_exceptions=True)
            except (OSError, asyncio.CancelledError):
                pass  # the member is down, or the run is over
            finally:
                for end in (writer, there):
                    if end is not None:
                        self._writers.discard(end)
                        end.transport.abort()

        return serve

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
