"""A TCP proxy on loopback that can stop forwarding without closing anything."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class Proxies:
    """Many proxies to one endpoint, on one event loop in a thread of its own."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.rpartition(":")
        self._target = (host, int(port))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._proxies: list[Proxy] = []

    def new(self) -> Proxy:
        proxy = Proxy(self._target, self._loop)
        self._proxies.append(proxy)
        asyncio.run_coroutine_threadsafe(proxy.serve(), self._loop).result(5.0)
        return proxy

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._loop.close()

    async def _end(self) -> None:
        for proxy in self._proxies:
            proxy.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Proxy:
    """One of them; while it is cut, bytes and new connections go nowhere."""

    def __init__(self, target: tuple[str, int], loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.endpoint = ""

    async def serve(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.endpoint = f"{host}:{port}"

    def close(self) -> None:
        """Takes no more connections. Call it on the loop."""
        self._server.close()

    def cut(self) -> None:
        """Forwards nothing more; what was cut through stays open."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def heal(self) -> None:
        """Drops the connections of before, and forwards again."""
        self._loop.call_soon_threadsafe(self._heal)

    def _heal(self) -> None:
        for writer in self._writers:
            writer.close()
        self._open.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._open.wait()
            onward_reader, onward = await asyncio.open_connection(*self._target)
            self._writers.add(onward)
            try:
                await asyncio.gather(self._pump(reader, onward), self._pump(onward_reader, writer))
            finally:
                self._writers.discard(onward)
                onward.close()
        except OSError:
            pass  # the other side hung up
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not self._open.is_set():
                    await self._open.wait()
                    break  # what was held back is lost, as its connection is
                writer.write(data)
                await writer.drain()
        writer.close()
