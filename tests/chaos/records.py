"""What the processes of a chaos run write down: one JSON object a line, in files that only grow.

Each line has ``k``, its kind, and ``t``, when it was written, by the clock that runs on while a
process is stopped. One ``write`` a line, so a line is whole or absent whenever its process dies.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from clusterkit.core.placement import Row
from clusterkit.engine.clock import SystemClock

Record: TypeAlias = dict[str, Any]

now = SystemClock().monotonic


def rows_hash(rows: Sequence[Row]) -> str:
    """A short name of an assignment: equal for equal rows."""
    return hashlib.blake2b(repr([tuple(row) for row in rows]).encode(), digest_size=8).hexdigest()


class Recorder:
    """Appends to a file, from any thread."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def __call__(self, kind: str, /, **fields: object) -> None:
        line = json.dumps({"k": kind, "t": now(), **fields}, separators=(",", ":"))
        os.write(self._fd, line.encode() + b"\n")

    def close(self) -> None:
        os.close(self._fd)


class Tail:
    """Reads such a file while it grows. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._records: list[Record] = []
        self._of: defaultdict[str, list[Record]] = defaultdict(list)

    def read(self) -> list[Record]:
        """All records so far."""
        if not self._path.exists():
            return self._records
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            record = json.loads(line)
            self._records.append(record)
            self._of[record["k"]].append(record)
        return self._records

    def of(self, kind: str) -> list[Record]:
        """All records of one kind so far."""
        self.read()
        return self._of[kind]
