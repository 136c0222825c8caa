"""The clock of a running node."""

from __future__ import annotations

import time
from datetime import UTC, datetime

# A lease in etcd runs on while this machine is suspended, and on Linux CLOCK_MONOTONIC does not:
# a node that wakes up would believe in a lease that ended long ago. Elsewhere time.monotonic()
# is the best there is (on macOS and Windows it does count sleep, or close to it).
_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


class SystemClock:
    """The machine's time; the :class:`clusterkit.ports.Clock` of everything but tests."""

    __slots__ = ()

    def now(self) -> datetime:
        """The wall clock, timezone-aware, UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that never run backwards; on Linux they go on while the machine sleeps."""
        if _BOOTTIME is None:
            return time.monotonic()
        return time.clock_gettime(_BOOTTIME)
