"""A proxy between a node and etcd, to cut the node off while etcd goes on."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

_END_SECONDS = 40.0


class Proxy:
    """A TCP proxy of 127.0.0.1 that can cut its clients off, without a word to them.

    ``cut`` lets connections stand and carries nothing; ``mend`` drops those, as a firewall would
    that has forgotten them, and serves new ones.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._is_cut = False
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._start(self._accept)

    @property
    def endpoint(self) -> str:
        port: int = self._listener.getsockname()[1]
        return f"127.0.0.1:{port}"

    def cut(self) -> None:
        with self._lock:
            self._is_cut = True

    def mend(self) -> None:
        with self._lock:
            self._drop()  # first: after a gap nothing may follow
            self._is_cut = False

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._drop()
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_END_SECONDS)
        self._listener.close()

    def _drop(self) -> None:
        for found in self._sockets:
            with contextlib.suppress(OSError):
                found.shutdown(socket.SHUT_RDWR)

    def _start(self, target: Callable[..., None], *args: socket.socket) -> None:
        thread = threading.Thread(target=target, args=args, name="proxy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            with self._lock:
                if self._closed:
                    client.close()
                    server.close()
                    return
                self._sockets |= {client, server}
            self._start(self._serve, client, server)

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        back = threading.Thread(target=self._pump, args=(server, client), name="proxy", daemon=True)
        back.start()
        self._pump(client, server)
        back.join()
        with self._lock:
            self._sockets -= {client, server}
        client.close()
        server.close()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if not self._is_cut:
                    sink.sendall(data)
        # Either side's end is the end of both.
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
