"""Calls of a store that go wrong: they fail, hang, or are carried out with the answer lost.

A :class:`FaultPlan` says which, by the name of the call and by count; a :class:`FaultyStore` is any
store with a plan in front of it::

    plan = FaultPlan()
    store = FaultyStore(MemoryStore(), plan)
    plan.fail("txn", after=1)           # not the next transaction, but the one behind it
    plan.lose_answer("txn")             # then one that is applied, and looks as if it was not
    plan.hang("keep_alive", times=None) # each renewal of the lease, until clear()
    plan.cut_off()                      # nothing gets through, until heal()

The kits of :class:`clusterkit.testing.LocalCluster` have one each, as ``kit.faults``.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias, TypeVar

from clusterkit.engine.clock import SystemClock
from clusterkit.errors import StoreError, StoreTimeoutError, StoreUnavailableError
from clusterkit.ports import (
    Clock,
    LeaseGrant,
    RangeResult,
    Store,
    Txn,
    TxnResult,
    Watch,
    WatchBatch,
)

from .clock import VirtualClock

__all__ = ["AnsweredCall", "Call", "FaultPlan", "FaultyStore"]

AnsweredCall: TypeAlias = Literal["range", "txn", "grant", "revoke", "keep_alive", "server_version"]
"""The calls that have an answer, and a time in which it must come."""

Call: TypeAlias = AnsweredCall | Literal["watch"]
"""The calls of a store, by the names that they have in :class:`clusterkit.ports.Store`."""

T = TypeVar("T")


@dataclass(eq=False)
class _Fault:
    kind: Literal["fail", "hang", "lose"]
    left: int | None  # how many calls it still meets; None for all
    after: int  # how many calls it lets pass first
    error: StoreError | None


class FaultPlan:
    """What is to go wrong with the calls of one node. Safe for threads.

    Of the faults for a call the one that was added first comes first; when it has met its number of
    calls the next one's turn comes. ``after`` counts calls from then on.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._faults: dict[Call, list[_Fault]] = {}
        self._calls: Counter[Call] = Counter()
        self._cut = False
        self._hanging = 0
        self._releases = 0  # counts clear() and heal(): a call that hangs ends when it grows
        self._watches: set[_FaultyWatch] = set()

    # -- what is to go wrong -----------------------------------------------------------------

    def fail(
        self, call: Call, *, times: int | None = 1, after: int = 0, error: StoreError | None = None
    ) -> None:
        """The call fails, and nothing of it has happened.

        Args:
            call: Its name.
            times: So many calls; None for all until ``clear()``.
            after: So many calls go well first.
            error: What it raises; ``StoreUnavailableError``, retryable, unless given.

        Raises:
            ValueError: A number is out of range.
        """
        self._add(call, _Fault("fail", times, after, error))

    def hang(self, call: AnsweredCall, *, times: int | None = 1, after: int = 0) -> None:
        """The call is not carried out, and ends with ``StoreTimeoutError`` when its time is up.

        Its time is the clock's: with a :class:`VirtualClock` it passes in ``advance``, or at the
        latest as the machine's time does. ``clear()`` and ``heal()`` end it at once. See ``fail``
        for the arguments.
        """
        self._add(call, _Fault("hang", times, after, None))

    def lose_answer(
        self,
        call: AnsweredCall,
        *,
        times: int | None = 1,
        after: int = 0,
        error: StoreError | None = None,
    ) -> None:
        """The call is carried out, and fails all the same: nobody learns that it was.

        See ``fail`` for the arguments; ``error`` is a ``StoreTimeoutError`` unless given.
        """
        self._add(call, _Fault("lose", times, after, error))

    def clear(self, call: Call | None = None) -> None:
        """Forgets the faults of a call, or of all; what hangs ends. Does not end ``cut_off``."""
        with self._changed:
            if call is None:
                self._faults.clear()
            else:
                self._faults.pop(call, None)
            self._release()

    def cut_off(self) -> None:
        """From now on nothing gets through: each call fails at once, and open watches break.

        What hangs ends too. The store itself goes on, and the leases of the node run out.
        """
        with self._changed:
            self._cut = True
            self._release()
        self.break_watches()

    def heal(self) -> None:
        """Ends ``cut_off``, and what hangs. Other faults stay as they are."""
        with self._changed:
            self._cut = False
            self._release()

    def break_watches(self, error: StoreError | None = None) -> None:
        """Open watches end with this error; ``StoreUnavailableError`` unless given."""
        broken = error or StoreUnavailableError("the watch broke: a fault plan", retryable=True)
        with self._changed:
            watches = list(self._watches)
        for watch in watches:
            watch._break(broken)

    # -- what has happened -------------------------------------------------------------------

    @property
    def is_cut_off(self) -> bool:
        """Whether ``cut_off()`` holds."""
        return self._cut

    @property
    def hanging(self) -> int:
        """How many calls hang at this moment."""
        return self._hanging

    @property
    def calls(self) -> Mapping[Call, int]:
        """How often each call was made, the ones that went wrong included. A copy."""
        with self._changed:
            return dict(self._calls)

    @property
    def pending(self) -> int:
        """How many faults have not met all of their calls yet; those without a number count."""
        with self._changed:
            return sum(map(len, self._faults.values()))

    # -- for the store -----------------------------------------------------------------------

    def _add(self, call: Call, fault: _Fault) -> None:
        if fault.after < 0 or (fault.left is not None and fault.left < 1):
            raise ValueError(
                f"a fault meets at least one call, after none or more: times={fault.left}, "
                f"after={fault.after}"
            )
        with self._changed:
            self._faults.setdefault(call, []).append(fault)

    def _release(self) -> None:
        self._releases += 1
        self._changed.notify_all()

    def _meet(self, call: Call) -> _Fault | None:
        """Counts a call; what is to happen to it.

        Raises:
            StoreUnavailableError: The node is cut off.
        """
        with self._changed:
            self._calls[call] += 1
            if self._cut:
                raise StoreUnavailableError(
                    f"{call}: the node is cut off (a fault plan)", retryable=True
                )
            faults = self._faults.get(call)
            if not faults:
                return None
            fault = faults[0]
            if fault.after:
                fault.after -= 1
                return None
            if fault.left is not None:
                fault.left -= 1
                if not fault.left:
                    faults.pop(0)
            return fault

    def _carry_out(
        self, call: AnsweredCall, carry_out: Callable[[], T], timeout: float, clock: Clock
    ) -> T:
        fault = self._meet(call)
        if fault is None:
            return carry_out()
        if fault.kind == "hang":
            self._hang(timeout, clock)
            raise StoreTimeoutError(f"{call}: no answer within {timeout:g} s (a fault plan)")
        if fault.kind == "lose":
            carry_out()
            raise _again(fault.error) or StoreTimeoutError(
                f"{call}: carried out, and the answer was lost (a fault plan)"
            )
        raise _again(fault.error) or _unavailable(call)

    def _hang(self, timeout: float, clock: Clock) -> None:
        deadline = clock.monotonic() + timeout
        if isinstance(clock, VirtualClock):
            clock.call_at(deadline, self._wake)
        with self._changed:
            releases = self._releases
            self._hanging += 1
            try:
                self._changed.wait_for(
                    lambda: self._releases != releases or clock.monotonic() >= deadline, timeout
                )
            finally:
                self._hanging -= 1

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class FaultyStore:
    """A :class:`clusterkit.ports.Store` with a plan of what goes wrong in front of another one.

    Args:
        inner: The store that carries out what gets through. It is closed with this one.
        plan: What goes wrong; a plan without faults unless given. Several stores may share one.
        clock: What calls that hang go by; the machine's unless given.
    """

    def __init__(
        self, inner: Store, plan: FaultPlan | None = None, *, clock: Clock | None = None
    ) -> None:
        self.inner = inner
        self.plan = FaultPlan() if plan is None else plan
        self._clock: Clock = SystemClock() if clock is None else clock

    def range(self, prefix: bytes, *, timeout: float) -> RangeResult:
        """All keys that begin with ``prefix``, sorted."""
        return self._do("range", lambda: self.inner.range(prefix, timeout=timeout), timeout)

    def txn(self, txn: Txn, *, timeout: float) -> TxnResult:
        """Carries out a transaction."""
        return self._do("txn", lambda: self.inner.txn(txn, timeout=timeout), timeout)

    def grant(self, ttl_seconds: int, *, timeout: float) -> LeaseGrant:
        """Makes a lease."""
        return self._do("grant", lambda: self.inner.grant(ttl_seconds, timeout=timeout), timeout)

    def revoke(self, lease_id: int, *, timeout: float) -> None:
        """Ends a lease, and its keys in one revision."""
        self._do("revoke", lambda: self.inner.revoke(lease_id, timeout=timeout), timeout)

    def keep_alive(self, lease_id: int, *, timeout: float) -> int:
        """Renews a lease; its TTL in seconds, 0 if it is gone."""
        return self._do(
            "keep_alive", lambda: self.inner.keep_alive(lease_id, timeout=timeout), timeout
        )

    def server_version(self, *, timeout: float) -> str:
        """The version of the server."""
        return self._do(
            "server_version", lambda: self.inner.server_version(timeout=timeout), timeout
        )

    def watch(self, prefix: bytes, start_revision: int) -> Watch:
        """Watches a prefix from a revision on; a cut ends it."""
        fault = self.plan._meet("watch")
        if fault is not None:
            raise _again(fault.error) or _unavailable("watch")
        watch = _FaultyWatch(self.inner.watch(prefix, start_revision), self.plan)
        if self.plan.is_cut_off:  # in between
            watch._break(_unavailable("watch"))
        return watch

    def close(self) -> None:
        """Closes the inner store; what hangs ends."""
        with self.plan._changed:
            self.plan._release()
        self.inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _do(self, call: AnsweredCall, carry_out: Callable[[], T], timeout: float) -> T:
        return self.plan._carry_out(call, carry_out, timeout, self._clock)


class _FaultyWatch:
    """A watch that its plan can break."""

    def __init__(self, inner: Watch, plan: FaultPlan) -> None:
        self._inner = inner
        self._batches = iter(inner)
        self._plan = plan
        self._error: StoreError | None = None
        with plan._changed:
            plan._watches.add(self)

    def __iter__(self) -> Iterator[WatchBatch]:
        return self

    def __next__(self) -> WatchBatch:
        try:
            batch = next(self._batches)
        except StopIteration:
            self._forget()
            if self._error is not None:
                raise self._error from None
            raise
        except BaseException:
            self._forget()
            raise
        if self._error is not None:  # it came too late to be seen
            self._forget()
            raise self._error
        return batch

    def close(self) -> None:
        self._forget()
        self._inner.close()

    def _break(self, error: StoreError) -> None:
        self._error = error
        self._inner.close()

    def _forget(self) -> None:
        with self._plan._changed:
            self._plan._watches.discard(self)


def _again(error: StoreError | None) -> StoreError | None:
    # Raised many times, one object would pile up the traces of all of them.
    return None if error is None else error.with_traceback(None)


def _unavailable(call: Call) -> StoreUnavailableError:
    return StoreUnavailableError(f"{call}: cannot be reached (a fault plan)", retryable=True)
