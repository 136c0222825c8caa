"""Serves a kit's HTTP application by itself: uvicorn on a thread of its own, for as long as a run.

Nothing of the process is touched but this thread: no signal handler, no log configuration, and no
log of requests, of which probes make two a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import weakref

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .._asgi import ASGIApplication
from ..errors import ClusterKitError, OptionError

logger = logging.getLogger(__name__)

_START_SECONDS = 10.0
_STOP_SECONDS = 5.0
_GRACE_SECONDS = 1  # for an answer that is being sent
_TICK_SECONDS = 1.0  # how often the date in answers moves on
_REQUEST_SECONDS = 10.0  # for a connection to bring its first request
_MOST_CONNECTIONS = 256  # probes and scrapes need a handful; the process needs its descriptors


class _Config(uvicorn.Config):
    def configure_logging(self) -> None:
        """The application's loggers, uvicorn's among them, are the application's."""


class _Protocol(H11Protocol):
    """uvicorn's, but it keeps no log, and nobody who only connects."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]  # passed on as they came
        self.access_log = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > _MOST_CONNECTIONS:
            transport.abort()
        else:
            self.loop.call_later(_REQUEST_SECONDS, self._drop_if_silent)

    def _drop_if_silent(self) -> None:
        if self.cycle is None:  # no request has been read
            self.transport.abort()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()
        self._leave = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.up.set()

    async def main_loop(self) -> None:
        # uvicorn's own looks ten times a second whether it is to end, and so ends late.
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._leave.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # asyncio loses a connection that it accepts in the very moment in which its server is
        # closed, and its socket with it: so accept no more first, and let those be that came.
        loop = asyncio.get_running_loop()
        for listening in sockets or ():
            with contextlib.suppress(NotImplementedError):  # where loops have no readers
                loop.remove_reader(listening)
        for _ in range(2):
            await asyncio.sleep(0)
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):  # who does not read its answer
            connection.transport.abort()
        await asyncio.sleep(0)

    def leave(self) -> None:
        """Ends the server, soon. From any thread."""
        self.should_exit = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed: the server has ended
                self._loop.call_soon_threadsafe(self._leave.set)


class AdminServer:
    """Serves an application at an address, from ``open`` to ``close``.

    Args:
        app: The application.
        address: ``host:port``, as the option ``admin`` has it.
    """

    def __init__(self, app: ASGIApplication, address: str) -> None:
        self._address = address
        config = _Config(
            app,
            interface="asgi3",
            http=_Protocol,
            ws="none",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        self._server = _Server(config)
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="clusterkit-admin", daemon=True)
        _open.add(self)

    def open(self) -> None:
        """Listens, and returns when requests are answered.

        Raises:
            OptionError: Nothing can listen at the address.
            ClusterKitError: The server did not come up.
        """
        self._socket = _listen(self._address)
        self._thread.start()
        if not self._server.up.wait(_START_SECONDS) or not self._server.started:
            self.close()
            raise ClusterKitError(
                f"the HTTP server at admin={self._address!r} did not come up; the log has the "
                "reason. Leave admin out to start without it"
            )
        logger.info("serving HTTP about this node at %s", self._address)

    def close(self) -> None:
        """Ends the server and its thread; the port is free afterwards."""
        if self._thread.ident is not None:
            self._server.leave()
            self._thread.join(_STOP_SECONDS)
            if self._thread.is_alive():
                logger.warning("the HTTP server at %s has not ended in time", self._address)
        self.close_socket()

    def close_socket(self) -> None:
        """Lets go of the port in this process."""
        if self._socket is not None:
            self._socket.close()

    def _run(self) -> None:
        assert self._socket is not None
        try:
            asyncio.run(self._server.serve(sockets=[self._socket]))
        except BaseException:
            logger.exception("the HTTP server at %s failed", self._address)
        finally:
            self._server.up.set()  # nobody shall wait for what is over


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":
                # Else the port of a run that has just ended is taken for another minute.
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(where)
            listening.listen()
        except BaseException:
            listening.close()
            raise
    except OSError as e:
        raise OptionError(
            f"admin={address!r} cannot work: nothing can listen there ({e.strerror or e}). Give "
            "another host:port (argument admin or CLUSTERKIT_ADMIN), end the process that has it, "
            "or leave it out and mount ck.asgi() into a server of your own.",
            option="admin",
            value=address,
        ) from e
    return listening


_open: weakref.WeakSet[AdminServer] = weakref.WeakSet()


def _after_fork() -> None:
    """A child has no thread that would answer, and must not keep the parent's port."""
    for server in list(_open):
        server.close_socket()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
