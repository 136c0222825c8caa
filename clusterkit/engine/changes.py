"""The lanes of partition changes: one change of a partition after another, hook after hook.

One change occupies the lane of its partition from its first hook until it is settled and nothing
of it runs any more; the others of that partition wait behind it.
"""

from __future__ import annotations

from .jobs import Action, CancelJob, ChangeDropped, ChangeSettled, HookTimeoutError
from .slots import Slots, job_of
from .work import BACKOFF, OVER, QUEUED, READY, RUNNING, Change, Rebalance


class ChangeLanes:
    """The lanes of all partitions. What is settled is told by an action.

    Args:
        slots: Where changes go that may run.
        finished: Takes each rebalance of which no change is open any more.
    """

    def __init__(self, slots: Slots, finished: list[Rebalance]) -> None:
        self._slots = slots
        self._finished = finished
        self._occupants: dict[str, Change] = {}

    def enter(self, change: Change, out: list[Action]) -> None:
        """A change comes into the lane of its partition."""
        occupant = self._occupants.get(change.partition_id)
        if occupant is None:
            self._occupants[change.partition_id] = change
            self._slots.ready(change)
        elif occupant.stuck:
            self._fail_behind(occupant, change, out)
        else:
            occupant.behind = [*occupant.behind, change]

    def over(self, change: Change, error: BaseException | None, out: list[Action]) -> None:
        """A run has ended, and is not repeated: with this error, or well."""
        if error is not None and change.error is None:
            change.error = error
        unfinished = change.index + 1 < len(change.specs)
        if unfinished and not change.cancelled:
            self._slots.queued += 1
            self._next_hook(change)
            return
        failed = unfinished or change.error is not None
        self._settle(change, out, superseded=change.cancelled and failed)
        self._free(change)

    def out_of_time(self, change: Change, out: list[Action]) -> None:
        """A run is out of time: its change has failed, and waits for its real end."""
        if change.error is None:
            job = job_of(change)
            change.error = HookTimeoutError(
                f"hook {job.spec.name!r} ran longer than the {job.timeout:g} seconds it may"
            )
        if change.index + 1 == len(change.specs) or change.cancelled:
            self._settle(change, out, superseded=change.cancelled)
        else:
            self._slots.queued += 1

    def zombie_ended(self, change: Change) -> None:
        """A run that was out of time has really ended: what waits behind it may come."""
        if change.settled:
            self._free(change)
        else:
            self._next_hook(change)

    def stuck(self, zombie: Change, out: list[Action]) -> None:
        """A zombie has not ended in time: whatever waits behind it fails."""
        zombie.stuck = True
        behind, zombie.behind = zombie.behind, ()
        for change in (zombie, *behind):
            if not change.settled:
                self._fail_behind(zombie, change, out)

    def drop(self, change: Change, out: list[Action]) -> None:
        """Takes back a change that is queued; if it runs it is told to end."""
        state = change.state
        if state is RUNNING:
            change.cancelled = True
            out.append(CancelJob(job_of(change).id, "superseded"))
            return
        self._slots.queued -= 1
        if change.attempts:
            self._settle(change, out, superseded=True)
        else:
            out.append(ChangeDropped(change.event))
            self._close(change)
        if state is READY or state is BACKOFF:
            self._slots.call_off(change)
            self._free(change)

    def _next_hook(self, change: Change) -> None:
        change.index += 1
        change.spec = change.specs[change.index]
        change.attempt = 1
        self._slots.ready(change)

    def _free(self, change: Change) -> None:
        """A change leaves its lane to the next that is not settled yet."""
        change.state = OVER
        if not change.behind:
            del self._occupants[change.partition_id]
            return
        for position, following in enumerate(change.behind):
            if not following.settled:
                following.behind = [*change.behind[position + 1 :]]
                self._occupants[change.partition_id] = following
                self._slots.ready(following)
                return
        del self._occupants[change.partition_id]

    def _fail_behind(self, zombie: Change, change: Change, out: list[Action]) -> None:
        if change.error is None:
            change.error = HookTimeoutError(
                f"hook {zombie.spec.name!r} for {change.partition_id} is out of time and has not "
                "ended yet, so no other can run for this partition"
            )
        self._slots.queued -= 1
        self._settle(change, out)

    def _settle(self, change: Change, out: list[Action], *, superseded: bool = False) -> None:
        if not change.rebalance.replay:
            ok = change.error is None and not superseded
            settled = ChangeSettled(change.event, ok, change.error, change.attempts, superseded)
            out.append(settled)
        self._close(change)

    def _close(self, change: Change) -> None:
        change.settled = True
        rebalance = change.rebalance
        rebalance.open -= 1
        if rebalance.open == 0:
            self._finished.append(rebalance)


def is_queued(change: Change) -> bool:
    """Whether a change has still to be told of, and no hook of it runs."""
    return not change.settled and change.state in QUEUED
