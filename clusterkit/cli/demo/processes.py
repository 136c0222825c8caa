"""The node processes: each is started, spoken to, and ended by its own process id."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from clusterkit.errors import ClusterKitError

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 10.0


class DemoError(ClusterKitError):
    """The demo cannot go on: a node process ended by itself, or did not do as it was told."""


class NodeProcess:
    """One child. Use as a context manager: leaving the block ends the process on every path.

    Attributes:
        id: The node id.
        address: Where it listens; known once it has started.
    """

    def __init__(
        self,
        node_id: str,
        arguments: Sequence[str],
        log: Path,
        listener: Callable[[dict[str, Any]], object],
    ) -> None:
        self.id = node_id
        self.address = ""
        self._log = log
        self._listener = listener
        self._said: set[str] = set()
        self._ended = False
        self._change = threading.Condition()
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "clusterkit.cli.demo.node",
                    "--node-id",
                    node_id,
                    *arguments,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                # Ctrl-C in a terminal reaches the whole group; only the driver is to get it.
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, name=f"demo-{node_id}", daemon=True)
        self._reader.start()

    def wait_listening(self) -> None:
        """Returns once the process listens.

        Raises:
            DemoError: It ended, or took too long.
        """
        self._wait_for("listening", START_SECONDS)

    def join(self) -> None:
        """Tells the node to join the cluster, and returns once it has.

        Raises:
            DemoError: It ended, or took too long.
        """
        self._tell("join")
        self._wait_for("joined", START_SECONDS)

    def stop(self) -> None:
        """Tells the node to leave and end, and returns once it has.

        Raises:
            DemoError: It took too long, or ended with an error.
        """
        self._tell("stop")
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise DemoError(
                f"{self.id} did not stop within {STOP_SECONDS:.0f} s{self._last_words()}"
            ) from None
        if code != 0:
            raise DemoError(f"{self.id} ended with code {code} when it stopped{self._last_words()}")

    def kill(self) -> None:
        """Ends the process with SIGKILL, as a machine that loses power would."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def check(self) -> None:
        """Raises:
        DemoError: The process has ended.
        """
        code = self._process.poll()
        if code is not None:
            raise DemoError(f"{self.id} ended by itself with code {code}{self._last_words()}")

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        with contextlib.suppress(OSError):
            # Closing flushes, which fails if the process went with words still on their way.
            if self._process.stdin is not None:
                self._process.stdin.close()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _tell(self, command: str) -> None:
        self.check()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise DemoError(f"{self.id} takes no orders: {error}{self._last_words()}") from error

    def _wait_for(self, word: str, seconds: float) -> None:
        with self._change:
            self._change.wait_for(lambda: word in self._said or self._ended, seconds)
            if word in self._said:
                return
        if self._ended:
            self._process.wait()
            self.check()
        raise DemoError(
            f"{self.id} was not {word} within {seconds:.0f} s, and still runs: the machine may be "
            f"too busy for the demo, run it again when it is not{self._last_words()}"
        )

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # killed in the middle of a line
            if record["event"] == "listening":
                self.address = record["address"]
            if record["event"] in {"listening", "joined"}:
                with self._change:
                    self._said.add(record["event"])
                    self._change.notify_all()
            else:
                self._listener(record)
        with self._change:
            self._ended = True
            self._change.notify_all()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return ": " + " | ".join(lines[-3:]) if lines else ""
