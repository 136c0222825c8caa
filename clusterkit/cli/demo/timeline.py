"""Everything that the nodes said, in the order in which the driver heard it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from clusterkit.cli.records import Record


class Timeline:
    """Records from all nodes; threads add, the driver reads and waits."""

    def __init__(self, listener: Callable[[Record], object]) -> None:
        self._records: list[Record] = []
        self._news = threading.Condition()
        self._listener = listener

    def add(self, record: dict[str, Any]) -> None:
        """Takes a record; the listener is called in the order of the list."""
        with self._news:
            self._records.append(record)
            self._listener(record)
            self._news.notify_all()

    def mark(self) -> int:
        """A place in the list, to read from later."""
        with self._news:
            return len(self._records)

    def since(self, mark: int) -> list[Record]:
        """What was added after ``mark`` was taken."""
        with self._news:
            return self._records[mark:]

    def wait(self, seconds: float) -> None:
        """Waits for the next record, but no longer than ``seconds``."""
        with self._news:
            self._news.wait(seconds)
