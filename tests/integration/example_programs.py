"""What the tests of ``examples/`` share: a program that runs as a node, and a client of it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from clusterkit.testing.embedded import free_port
from tests.support.processes import pause

from .support import REPOSITORY

SECONDS = 60.0
"""For what must happen; a busy machine is no failure."""


class Program:
    """One node that runs an example as a user would: a module, told all by variables."""

    def __init__(
        self, module: str, node_id: str, settings: dict[str, str], home: Path, **variables: object
    ) -> None:
        self.module, self.node_id, self.home = module, node_id, home
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.log = home / f"{node_id}.log"
        self.process: subprocess.Popen[bytes] | None = None
        # A user's own settings must not reach it.
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("CLUSTERKIT_")}
        self.environment |= settings
        self.environment |= {
            "PYTHONPATH": str(REPOSITORY),
            "CLUSTERKIT_NODE_ID": node_id,
            "CLUSTERKIT_ADDRESS": self.address,
        }
        self.environment |= {name: str(value) for name, value in variables.items()}

    def start(self, **more: object) -> Program:
        given = {name: str(value) for name, value in more.items()}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module],
                env=self.environment | given,
                stdout=log,
                stderr=log,
                cwd=self.home,
            )
        return self

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def pause(self) -> None:
        assert self.process is not None
        pause(self.process)

    def wake(self) -> None:
        self.send(signal.SIGCONT)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends it; a server of uvicorn ends by the very signal, after it has cleaned up."""
        assert self.process is not None
        self.send(number)
        assert self.process.wait(SECONDS) in (0, -number), self.text

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def has_open(self, file: Path) -> int:
        """How often it has a file open."""
        assert self.process is not None
        found = 0
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(OSError):  # closed in the meantime
                found += link.readlink() == file
        return found

    @property
    def text(self) -> str:
        return self.log.read_text()

    def found(self, pattern: str) -> list[Any]:
        """What the pattern, or its group, matches in the log so far."""
        return re.findall(pattern, self.text)

    def says(self, pattern: str, times: int = 1) -> list[Any]:
        """Waits until it is in the log, that often."""

        def said() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.text
            return len(self.found(pattern)) >= times

        until(said, lambda: f"{self.node_id} said no {times} of {pattern!r}:\n{self.text}")
        return self.found(pattern)

    def ask(
        self,
        method: str,
        path: str,
        body: str = "",
        headers: dict[str, str] | None = None,
        seconds: float = 10,
    ) -> tuple[int, Any]:
        """One request; status 0 if nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            text = answer.read()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(text) if is_json else text.decode()
        except (OSError, http.client.HTTPException) as error:
            return 0, repr(error)
        finally:
            connection.close()

    def answers(
        self,
        wanted: tuple[int, Any],
        method: str,
        path: str,
        body: str = "",
        headers: dict[str, str] | None = None,
    ) -> Any:
        """Asks until this is the answer, or begins with this status and ``...``; the document."""
        seen: list[tuple[int, Any]] = []

        def answered() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.text
            seen[:] = [self.ask(method, path, body, headers)]
            return seen[0] == wanted or (seen[0][0], ...) == wanted

        until(answered, lambda: f"{self.node_id}: {method} {path} is still {seen}\n{self.text}")
        return seen[0][1]


def until(predicate: Callable[[], bool], told: Callable[[], str]) -> None:
    """Asks again until it is so; ``told`` is what the failure says."""
    deadline = time.monotonic() + SECONDS
    while not predicate():
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)


def settled(*programs: Program) -> None:
    """All are ready, have all their copies, and see each other and nobody else."""
    members = sorted(program.node_id for program in programs)
    for program in programs:
        program.answers((200, {"members": members, "copies_to_fetch": 0}), "GET", "/ready")


Make = Callable[..., list[Program]]
"""Makes programs that have not been started: of one example, with these node ids."""


@contextmanager
def making(endpoint: str, home: Path, **settings: object) -> Iterator[Make]:
    """A cluster of its own for the programs of a test, which all end with it."""
    defaults = {
        "CLUSTERKIT_ENDPOINTS": endpoint,
        "CLUSTERKIT_PREFIX": f"/examples/{uuid.uuid4().hex}",
        "CLUSTERKIT_SETTLE_TIME": "50ms",
        "CLUSTERKIT_LEASE_TTL": "3",
    }
    defaults |= {f"CLUSTERKIT_{name.upper()}": str(value) for name, value in settings.items()}
    with ExitStack() as ends:

        def make(example: str, *node_ids: str, **variables: object) -> list[Program]:
            module = f"examples.{example}"
            made = [Program(module, node_id, defaults, home, **variables) for node_id in node_ids]
            for program in made:
                ends.callback(program.clean_up)
            return made

        yield make
