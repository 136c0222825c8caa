"""Writes that go on while partitions move: what a copy must not undo."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import count
from types import TracebackType
from typing import Final, Self

from .client import Client

BATCH: Final = 10
PAUSE_SECONDS: Final = 0.02


class Traffic:
    """Inside its block, writes new values under the given keys, over and over.

    Leaving the block waits for the last writes and raises what went wrong with any of them.

    Attributes:
        written: How many writes were acknowledged.
    """

    def __init__(self, client: Client, keys: Sequence[str], tag: str) -> None:
        self.written = 0
        self._client = client
        self._keys = keys
        self._tag = tag
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="demo-traffic", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if error is not None:
            return  # whoever ends the demo also closes the client, which ends the thread
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for turn in count():
                for at in range(0, len(self._keys), BATCH):
                    # The first round is always finished: the step is to have had writes at all.
                    if turn and self._stop.is_set():
                        return
                    batch = self._keys[at : at + BATCH]
                    self.written += self._client.write(batch, f"{self._tag}, turn {turn}")
                    self._stop.wait(PAUSE_SECONDS)
                if self._stop.is_set():
                    return
        except Exception as error:
            self._error = error
