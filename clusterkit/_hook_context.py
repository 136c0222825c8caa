"""What a running hook may ask about its own run, and how it is told to end."""

from __future__ import annotations

from contextvars import ContextVar
from datetime import datetime
from typing import Protocol

from .errors import ClusterKitError


class HookCancelledError(ClusterKitError):
    """Raised by ``HookContext.raise_if_cancelled``: the hook's work is not wanted any more."""


class HookContextError(ClusterKitError, RuntimeError):
    """``hook_context()`` was called by code that no hook is running."""


class HookContext:
    """What a running hook may ask about its own run; see :func:`hook_context`.

    Attributes:
        event_id: The event's id, the same on every retry and every second delivery: the key to
            make the hook's work idempotent with.
        attempt: 1 on the first run of this hook for this event, 2 on its first retry, and so on.
        replayed: True if the event was delivered before, or describes what was there already.
        deadline: When the hook's time is up (UTC); None if it has no time-out.
    """

    __slots__ = ("_cancelled", "attempt", "deadline", "event_id", "replayed")

    def __init__(
        self,
        *,
        event_id: str,
        attempt: int,
        replayed: bool,
        deadline: datetime | None,
    ) -> None:
        self.event_id = event_id
        self.attempt = attempt
        self.replayed = replayed
        self.deadline = deadline
        # Written once, by the engine; a plain attribute is enough for a flag that only rises.
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether the hook should end soon: superseded, out of time, or the kit is stopping.

        ``async`` hooks are cancelled as tasks besides; a thread can only be asked.
        """
        return self._cancelled

    def raise_if_cancelled(self) -> None:
        """Leaves the hook if it should end.

        Raises:
            HookCancelledError: ``cancelled`` is True.
        """
        if self._cancelled:
            raise HookCancelledError(
                f"the hook for event {self.event_id} was told to end: its event was superseded, "
                "its time was up, or the kit is stopping"
            )


class _Running(Protocol):
    """A run of a hook."""

    def hook_context(self) -> HookContext: ...


_current: ContextVar[_Running] = ContextVar("clusterkit_hook")


def hook_context() -> HookContext:
    """The context of the hook that calls this, directly or from a function or task that it started.

    Raises:
        HookContextError: No hook is running here.
    """
    try:
        run = _current.get()
    except LookupError:
        raise HookContextError(
            "hook_context() was called outside of a hook; call it in a function that is "
            "registered with on_partition_change or another on_... method (a thread that a hook "
            "starts does not inherit it: pass the HookContext on)"
        ) from None
    return run.hook_context()
