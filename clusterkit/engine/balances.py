"""The counts of the newest assignment, for whoever asks: counted once, on whatever thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from ..core.placement import Row
from ..core.spread import Balance, balance_after, balance_of


class Balances:
    """Remembers the counts of the newest assignment that was asked for. Safe for threads."""

    def __init__(self) -> None:
        nothing: Sequence[Row] = ()
        self._last = nothing, balance_of(nothing)
        self._counting = threading.Lock()

    def of(self, rows: Sequence[Row]) -> Balance:
        """The counts of these rows, which are never changed: the same object has the same ones."""
        counted, balance = self._last
        if counted is rows:
            return balance
        with self._counting:  # waiting for another thread's count is quicker than a second one
            counted, balance = self._last
            if counted is not rows:
                balance = balance_after(balance, counted, rows)
                self._last = rows, balance
        return balance
