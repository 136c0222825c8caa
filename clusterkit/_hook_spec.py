"""One registered hook, with its filters and limits; what cannot work is refused."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from functools import partial
from typing import Any, Final, Literal, TypeAlias, TypedDict, get_args

from .errors import HookRegistrationError
from .events import ChangeReason

Duration: TypeAlias = float | timedelta
"""A length of time: a number of seconds, or a ``timedelta``."""

HookKind: TypeAlias = Literal[
    "partition_change",
    "partition_role",
    "node_join",
    "node_rejoin",
    "node_leave",
    "rebalance_start",
    "rebalance_complete",
    "cluster_health_change",
    "partition_drop",
    "partition_lost",
    "fenced",
    "unfenced",
    "hook_error",
]


class Default(Enum):
    """The type of ``DEFAULT``, which stands for the kit's own setting."""

    DEFAULT = "default"


DEFAULT: Final = Default.DEFAULT


@dataclass(frozen=True, slots=True, eq=False)
class HookSpec:
    """One registered hook. Two specs are never equal, even of the same function.

    Attributes:
        kind: The kind of event.
        fn: The application's function.
        name: The name in logs, errors and metrics: the function's module and qualified name
            unless another was given.
        order: Grows with each registration in the process.
        mine: Only events whose target (or node) is this node.
        partitions: Only events of these partitions; None for all.
        reasons: Only changes for these reasons; None for all.
        timeout: Seconds, None for no limit, or ``DEFAULT`` for the kit's setting.
        retries: How often it is run again after it failed.
        retry_on: The errors after which it is.
    """

    kind: HookKind
    fn: Callable[..., object]
    name: str
    order: int
    mine: bool = False
    partitions: frozenset[str] | None = None
    reasons: frozenset[ChangeReason] | None = None
    timeout: float | Default | None = DEFAULT
    retries: int = 0
    retry_on: tuple[type[Exception], ...] = (Exception,)


class HookOptions(TypedDict, total=False):
    """The options of every ``on_...`` method.

    Attributes:
        timeout: How long one run may take before it is reported and told to end; None for no
            limit. Unless given, the kit's ``hook_timeout``, or for partition changes its
            ``migration_timeout``. A run that was out of time is not retried.
        retries: How often the hook is run again after it raised, with growing pauses.
        retry_on: The errors that a retry may help against; every ``Exception`` unless given.
        name: Its name in logs, errors and metrics.
        late: Allows the registration while the kit runs. The hook is first told of the present
            state, by events that are marked ``hook_context().replayed``: of every member as a
            join, of every holder of a partition as a change that needs data, of this node's
            roles, of the health, of a fencing that lasts. A replay that fails is reported, and
            not owed. Before the start it changes nothing.
    """

    timeout: Duration | None
    retries: int
    retry_on: tuple[type[Exception], ...]
    name: str
    late: bool


def name_of(fn: object) -> str:
    while isinstance(fn, partial):
        fn = fn.func
    named: Any = fn if hasattr(fn, "__qualname__") else type(fn)
    module = getattr(named, "__module__", None)
    return f"{module}.{named.__qualname__}" if module else str(named.__qualname__)


class Check:
    """Refuses what cannot work, with an error that names the hook and the remedy."""

    def __init__(self, kind: HookKind, name: str) -> None:
        self.kind = kind
        self.where = f"hook {name!r} for on_{kind}"
        self.call = "(event, duration)" if kind == "rebalance_complete" else "(event)"

    def function(self, fn: object) -> None:
        if not callable(fn):
            raise HookRegistrationError(
                f"{self.where}: {fn!r} cannot be called; register a function, a method or a "
                f"callable object that takes {self.call}"
            )
        inner: object = fn
        while isinstance(inner, partial):
            inner = inner.func
        if any(
            test(candidate)
            for test in (inspect.isgeneratorfunction, inspect.isasyncgenfunction)
            for candidate in (inner, getattr(inner, "__call__", None))  # noqa: B004
        ):
            raise HookRegistrationError(
                f"{self.where}: it is a generator, whose body a call does not run; "
                "take out the yield"
            )
        try:
            signature = inspect.signature(fn)
        except (TypeError, ValueError):
            return  # some built-in functions do not tell
        try:
            signature.bind(*self.call.split(","))
        except TypeError as error:
            raise HookRegistrationError(
                f"{self.where}: it is called as fn{self.call}, and cannot be: {error}"
            ) from None

    def timeout(self, value: Duration | Default | None) -> float | Default | None:
        if value is None or isinstance(value, Default):
            return value
        seconds: Any = value.total_seconds() if isinstance(value, timedelta) else value
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise self._bad("timeout", value, "a number of seconds, a timedelta or None")
        if not 0 < seconds < math.inf:
            raise self._bad("timeout", value, "more than 0 seconds; None is for no limit")
        return float(seconds)

    def retries(self, value: int) -> int:
        given: Any = value
        if isinstance(given, bool) or not isinstance(given, int) or given < 0:
            raise self._bad("retries", value, "a whole number, 0 or more")
        return value

    def retry_on(self, value: tuple[type[Exception], ...]) -> tuple[type[Exception], ...]:
        given: object = value
        types = given if isinstance(given, tuple) else (given,)
        if not all(isinstance(one, type) and issubclass(one, Exception) for one in types):
            raise self._bad("retry_on", value, "a tuple of exception classes")
        return types

    def names(self, option: str, value: Collection[str] | None) -> frozenset[str] | None:
        if value is None:
            return None
        # A text is a collection of texts too, of its letters: certainly not what was meant.
        if isinstance(value, str) or not all(isinstance(one, str) for one in value):
            raise self._bad(option, value, "a collection of texts, such as {'partition-0'}")
        return frozenset(value)

    def reasons(self, value: Collection[ChangeReason] | None) -> frozenset[ChangeReason] | None:
        self.names("reasons", value)
        known = get_args(ChangeReason)
        if value is not None and not set(value) <= set(known):
            raise self._bad("reasons", value, f"some of {', '.join(known)}")
        return None if value is None else frozenset(value)

    def _bad(self, option: str, value: object, right: str) -> HookRegistrationError:
        return HookRegistrationError(f"{self.where}: {option}={value!r} must be {right}")
