"""The processes of the nodes, and what the runner knows of the life of each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.support.processes import pause

from .proxies import Proxy
from .records import Record, Recorder, Tail, now

T = TypeVar("T")
REPOSITORY = Path(__file__).parents[2]
_STEP_SECONDS = 0.02


def until(predicate: Callable[[], T | None], seconds: float) -> T | None:
    """What the predicate returned when it was first true; None if it never was in time."""
    deadline = now() + seconds
    while not (found := predicate()):
        if now() > deadline:
            return None
        time.sleep(_STEP_SECONDS)
    return found


class Life:
    """One process of a node, from its start to its end.

    The runner's own record of it says what was done to it, and when: ``go``, ``kill``, ``stop``.
    """

    def __init__(
        self,
        node_id: str,
        number: int,
        folder: Path,
        proxy: Proxy,
        storage_port: int,
        options: dict[str, object],
        broken: str | None,
        log: Recorder,
    ) -> None:
        self.node_id = node_id
        self.name = f"{node_id}.{number}"
        self.proxy = proxy
        self._log = log
        self._tail = Tail(folder / f"node-{self.name}.jsonl")
        told = {
            "life": self.name,
            "record": str(folder / f"node-{self.name}.jsonl"),
            "storage": storage_port,
            "broken": broken,
            "options": {
                **options,
                "node_id": node_id,
                "address": f"{node_id}.test:8000",
                "endpoints": proxy.endpoints,
            },
        }
        with (folder / f"node-{self.name}.err").open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.node", json.dumps(told)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=err,
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )
        self.stopped = False  # by SIGSTOP

    def has(self, kind: str, since: float = 0.0, /, **fields: object) -> bool:
        """Whether it recorded such a thing since then."""
        return any(
            r["t"] >= since and all(r.get(f) == v for f, v in fields.items())
            for r in reversed(self._tail.of(kind))
        )

    def newest(self, kind: str) -> Record | None:
        return next(reversed(self._tail.of(kind)), None)

    def count(self, kind: str, /, **fields: object) -> int:
        return sum(all(r.get(f) == v for f, v in fields.items()) for r in self._tail.of(kind))

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def go(self) -> None:
        """Lets it join."""
        self._say("go")

    def leave(self) -> None:
        """Asks it to leave; it may take a while."""
        self._say("stop")

    def pause(self) -> None:
        pause(self._process)
        self.stopped = True

    def resume(self) -> None:
        if self.stopped and self.running:
            self._process.send_signal(signal.SIGCONT)
        self.stopped = False

    def kill(self) -> None:
        """SIGKILL, if it still runs, and lets go of everything; idempotent."""
        if self.running:
            self._log("done", what="kill", life=self.name, node=self.node_id)
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self.proxy.close()
        self.stopped = False

    def _say(self, word: str) -> None:
        self._log("done", what=word, life=self.name, node=self.node_id)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended by itself, which the validators will see
