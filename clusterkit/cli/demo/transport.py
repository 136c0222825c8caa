"""HTTP/1.1 with the standard library, connections kept open: small, real, and fast enough."""

from __future__ import annotations

import http.client
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeAlias

Reply: TypeAlias = tuple[int, bytes]
"""A status code and a body."""

Route: TypeAlias = Callable[[str, str, bytes], Reply]
"""Answers a request, given its method, path with query, and body."""


class Peers:
    """Requests to other nodes. Each thread keeps one connection to each address."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._local = threading.local()

    def request(self, method: str, address: str, path: str, body: bytes = b"") -> Reply:
        """Sends one request, which must be harmless to repeat.

        Raises:
            OSError: The peer cannot be reached or does not answer in time.
        """
        connections: dict[str, http.client.HTTPConnection] = self._local.__dict__
        kept = connections.pop(address, None)
        if kept is not None:
            try:
                return self._send(kept, method, address, path, body)
            except OSError:
                pass  # The peer may have closed it while it was idle: once more on a new one.
        connection = http.client.HTTPConnection(address, timeout=self._timeout)
        return self._send(connection, method, address, path, body)

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        address: str,
        path: str,
        body: bytes,
    ) -> Reply:
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            reply = response.status, response.read()
        except http.client.HTTPException as error:
            connection.close()
            raise ConnectionError(f"{address} broke off its answer: {error!r}") from error
        except OSError:
            connection.close()
            raise
        self._local.__dict__[address] = connection
        return reply


class Server:
    """Serves ``route`` on a free port of the loopback interface, on threads of its own."""

    def __init__(self, route: Route) -> None:
        self._http = _Http(("127.0.0.1", 0), _handler(route))
        self.address = f"127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Takes no more requests."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    # Peers keep their connections open, so waiting for their threads would last for ever.
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A peer that broke off has ended; anything else is a defect and goes to the log."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # as given


def _handler(route: Route) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # headers and body leave in one piece

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, reply = route(self.command, self.path, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        do_GET = do_PUT = do_POST = answer  # noqa: N815 (the names that http.server looks for)

        def log_message(self, format: str, *args: object) -> None:
            """No access log: standard error is for what goes wrong."""

    return Handler
