"""Now and then, whether the view is what etcd has: it always should be, and a defect is told so.

Every few minutes the whole prefix is read and compared with the state. The state may be behind the
reading, or ahead of it, since revisions arrive meanwhile. So keys that the watch changed after the
reading was asked for are left out, and what differs in the others is judged by revisions:

* the reading has it from a revision that the state has applied: the state is wrong, for certain;
* from a later one: it is on its way, or lost. It is read again soon, then less and less often, and
  if the very same difference is still there though the watch has long brought nothing at all, the
  watch has lost it. One that brings something is behind, by minutes where the processor is short,
  and passes the revision in question sooner or later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..core.divergence import differences
from ..core.keys import Keys
from ..core.membership import State
from ..ports import RangeResult, WatchEvent
from .departures import score

EVERY_SECONDS = 300.0
AGAIN_SECONDS = 5.0
PATIENCE_SECONDS = 20.0
"""How long a watch may bring nothing: longer than one on a server that has frozen takes to be moved
to another."""


@dataclass(frozen=True, slots=True)
class ReadView:
    """Read the whole prefix, and hand the reading back under this number."""

    number: int


class Comparison:
    """When to compare, and what a comparison means. Owned by one thread."""

    def __init__(self, keys: Keys, node_id: str) -> None:
        self._keys = keys
        self._node_id = node_id
        self._every, self._again, self._patience = EVERY_SECONDS, AGAIN_SECONDS, PATIENCE_SECONDS
        self._number = 0
        self._due: float | None = None
        self._changed: set[bytes] | None = None  # since the reading was asked for; None: none was
        # What may be lost, and how long the watch has brought nothing since it was first suspected.
        self._suspects: dict[tuple[bytes, int], float] = {}
        self._heard = False  # whether the watch has brought anything since the last comparison
        self._pause = self._again  # before what is suspected is looked at again

    def begin(self, now: float) -> None:
        """From now on there is something to compare."""
        self._later(now)

    def wake_at(self) -> float | None:
        """When ``due`` is to be asked next."""
        return self._due

    def due(self, now: float) -> list[ReadView]:
        """The reading that is wanted now, if any. One that fails is just not handed back."""
        if self._due is None or now < self._due:
            return []
        self._later(now)
        self._changed = set()
        return [ReadView(self._number)]

    def changed(self, events: Iterable[WatchEvent]) -> None:
        """The watch has changed these keys."""
        self._heard = True
        if self._changed is not None:
            self._changed.update(event.kv.key for event in events)

    def reread(self) -> None:
        """The state was replaced: whatever was to be compared with it is void."""
        self._changed = None
        self._suspects.clear()

    def judge(self, state: State, read: RangeResult, number: int, now: float) -> tuple[bytes, ...]:
        """The keys in which the state is wrong; to be repaired by a reading in its place."""
        if self._changed is None or number != self._number:
            return ()
        changed, self._changed = self._changed, None
        # The pause, and not the time: a process that was frozen has heard nothing, but not waited.
        before = {} if self._heard else {s: t + self._pause for s, t in self._suspects.items()}
        found = {
            (key, put_at): before.get((key, put_at), 0.0)
            for key, put_at in differences(self._keys, state, read).items()
            if key not in changed
        }
        wrong = tuple(
            key
            for (key, put_at), silent in found.items()
            if (put_at or read.revision) <= state.revision or silent >= self._patience
        )
        # To read everything again and again is the last thing that a node needs which is behind.
        self._pause = min(self._pause * 2, self._every) if self._suspects else self._again
        self._heard = False
        self._suspects = {} if wrong else found
        if self._suspects:
            self._due = now + self._pause
        return wrong

    def _later(self, now: float) -> None:
        # Jitter, without chance: each node and each time another, from three to five quarters.
        self._number += 1
        share = score(str(self._number), self._node_id) / 2**64
        self._due = now + self._every * (0.75 + share / 2)
