"""``clusterkit etcd``: the embedded server in the foreground."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Final

from clusterkit.errors import ClusterKitError
from clusterkit.testing.embedded import EmbeddedEtcd

POLL_SECONDS: Final = 0.5


def serve(port: int, data_dir: Path | None) -> None:
    """Runs etcd until Ctrl-C or SIGTERM; prints its endpoint, and nothing else, when it serves.

    Args:
        port: The port for clients; 0 for a free one.
        data_dir: Where it keeps its data; None for a directory that is removed afterwards.

    Raises:
        ClusterKitError: There is no etcd to run, it does not start, or it ends by itself.
    """
    terminated = threading.Event()
    signal.signal(signal.SIGTERM, lambda signum, frame: terminated.set())
    _refuse_taken(port)
    with EmbeddedEtcd(data_dir, client_port=port or None) as etcd:
        print(etcd.endpoint, flush=True)
        print("etcd serves until Ctrl-C", file=sys.stderr)
        while not terminated.wait(POLL_SECONDS):
            # WNOWAIT leaves the end of the process to its owner, who waits for it too.
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, etcd.pid, flags) is not None:
                raise ClusterKitError(f"etcd at {etcd.endpoint} ended by itself")


def _refuse_taken(port: int) -> None:
    """Says in one line what etcd would say in twenty."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError as error:
            raise ClusterKitError(
                f"port {port} of 127.0.0.1 cannot be used: {error.strerror}; "
                "give another with --port, or --port 0 for any that is free"
            ) from error
