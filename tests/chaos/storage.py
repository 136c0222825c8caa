"""A storage that does what the documentation asks of one: it refuses an epoch that is too small.

It runs in the runner's process, so no stopped node can hold anything up. It records every write in
the order in which it decided.
"""

from __future__ import annotations

import json
import socketserver
import threading
from pathlib import Path

from .records import Recorder


class Storage:
    """Serves on a free port of 127.0.0.1 until ``close``."""

    def __init__(self, path: Path) -> None:
        self._record = Recorder(path)
        self._lock = threading.Lock()
        self._greatest: dict[int, int] = {}
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                try:
                    for line in self.rfile:
                        self.wfile.write(b"ok\n" if outer.write(**json.loads(line)) else b"no\n")
                except OSError:
                    pass  # the node was killed

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def write(self, node: str, life: str, p: int, e: int) -> bool:
        """Whether the write was accepted."""
        with self._lock:
            ok = e >= self._greatest.get(p, 0)
            if ok:
                self._greatest[p] = e
            self._record("storage", node=node, life=life, p=p, e=e, ok=ok)
            return ok

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
