"""Hooks: how an application registers functions for events, and what it sees inside of one.

:class:`Hooks` is the registry. Its ``on_...`` methods come last: there is one for each kind of
event, all alike. What a running hook may ask is :class:`HookContext`; one registered hook, with its
filters and limits, is a :class:`HookSpec`.

When hooks run, in which order and how often, is decided by ``clusterkit.engine.dispatcher``.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from typing import TypeVar, Unpack, overload

from ._hook_context import HookCancelledError, HookContext, HookContextError, hook_context
from ._hook_spec import (
    DEFAULT,
    Check,
    Default,
    Duration,
    HookKind,
    HookOptions,
    HookSpec,
    name_of,
)
from .errors import HookRegistrationError
from .events import (
    ChangeReason,
    ClusterHealthEvent,
    FencedEvent,
    HookErrorEvent,
    NodeJoinEvent,
    NodeLeaveEvent,
    NodeRejoinEvent,
    PartitionChangeEvent,
    PartitionDropEvent,
    PartitionLostEvent,
    PartitionRoleEvent,
    RebalanceEvent,
    UnfencedEvent,
)

__all__ = [
    "Duration",
    "HookCancelledError",
    "HookContext",
    "HookContextError",
    "HookKind",
    "HookOptions",
    "HookSpec",
    "Hooks",
    "hook_context",
]

# A bound TypeVar for each signature, so that a decorated function keeps its own exact type.
_PC = TypeVar("_PC", bound=Callable[[PartitionChangeEvent], object])
_PR = TypeVar("_PR", bound=Callable[[PartitionRoleEvent], object])
_NJ = TypeVar("_NJ", bound=Callable[[NodeJoinEvent], object])
_NR = TypeVar("_NR", bound=Callable[[NodeRejoinEvent], object])
_NL = TypeVar("_NL", bound=Callable[[NodeLeaveEvent], object])
_RS = TypeVar("_RS", bound=Callable[[RebalanceEvent], object])
_RC = TypeVar("_RC", bound=Callable[[RebalanceEvent, timedelta], object])
_CH = TypeVar("_CH", bound=Callable[[ClusterHealthEvent], object])
_PD = TypeVar("_PD", bound=Callable[[PartitionDropEvent], object])
_PL = TypeVar("_PL", bound=Callable[[PartitionLostEvent], object])
_FE = TypeVar("_FE", bound=Callable[[FencedEvent], object])
_UF = TypeVar("_UF", bound=Callable[[UnfencedEvent], object])
_HE = TypeVar("_HE", bound=Callable[[HookErrorEvent], object])
_F = TypeVar("_F", bound=Callable[..., object])

_order = itertools.count()
# One lock for all registries, since one call may walk through several that include each other.
_lock = threading.RLock()


class Hooks:
    """A registry of hooks. A kit is one; one without a kit is for modules imported before it.

    ::

        hooks = Hooks()

        @hooks.on_partition_change(mine=True, retries=3)
        async def fetch(event: PartitionChangeEvent) -> None: ...

        kit = ClusterKit(hooks=hooks)

    Every ``on_...`` method works as a decorator with and without arguments, and as a call, and
    returns the function itself. A hook may be a function, a method, a partial or any callable; if
    it is ``async`` or returns an awaitable, it is awaited. Hooks of the same event run in the
    order in which they were registered, whatever registry they were registered with.

    All of them raise ``HookRegistrationError`` if the kit has started already, or if what is
    registered cannot be a hook. All methods may be called from any thread.
    """

    def __init__(self) -> None:
        self.__hooks: list[HookSpec] = []
        self.__included: list[Hooks] = []
        # Who has started with this registry, and why nothing may change: kits may share one.
        self.__seals: weakref.WeakKeyDictionary[Hooks, str] = weakref.WeakKeyDictionary()

    def include(self, other: Hooks, /) -> None:
        """Takes over the hooks of another registry, also those registered with it later.

        To include one twice, or in a circle, does no harm: each hook counts once.

        Raises:
            HookRegistrationError: A kit has started with this registry, or it is not a registry.
        """
        if not isinstance(other, Hooks):
            raise HookRegistrationError(
                f"include() takes a Hooks registry, not {other!r}; register a function with the "
                "on_... method of its kind"
            )
        with _lock:
            self.__refuse_if_sealed("a registry was included")
            if other is not self and other not in self.__included:
                self.__included.append(other)

    def remove_hook(self, fn: Callable[..., object], /) -> bool:
        """Takes a function out again, of every kind that it was registered for with this registry.

        Returns:
            Whether it was registered.

        Raises:
            HookRegistrationError: A kit has started with this registry.
        """
        with _lock:
            left = [spec for spec in self.__hooks if spec.fn != fn]
            if len(left) == len(self.__hooks):
                return False
            self.__refuse_if_sealed(f"hook {name_of(fn)!r} was removed")
            self.__hooks = left
            return True

    # -- for the engine ---------------------------------------------------------------------

    def _specs(self) -> tuple[HookSpec, ...]:
        """All hooks, those of included registries too, in the order of their registration."""
        with _lock:
            found = [spec for registry in self.__reachable() for spec in registry.__hooks]
        return tuple(sorted(found, key=lambda spec: spec.order))

    def _seal(self, reason: str) -> None:
        """Forbids changes here and in all included registries until ``_unseal``."""
        with _lock:
            for registry in self.__reachable():
                registry.__seals[self] = reason

    def _unseal(self) -> None:
        """Allows changes again, as far as no other kit forbids them."""
        with _lock:
            for registry in self.__reachable():
                registry.__seals.pop(self, None)

    def __reachable(self) -> Iterator[Hooks]:
        seen: set[int] = set()
        pending = [self]
        while pending:
            registry = pending.pop()
            if id(registry) not in seen:
                seen.add(id(registry))
                yield registry
                pending.extend(registry.__included)

    def __refuse_if_sealed(self, what: str) -> None:
        for reason in self.__seals.values():
            raise HookRegistrationError(
                f"{what} too late: {reason}. Register hooks before start(): decorate with the kit "
                "before it is started, or with a `Hooks()` registry that is passed as "
                "ClusterKit(hooks=...), in a module that is imported before the start. A hook "
                "that must come later is registered with late=True, and is then told of the "
                "present state first"
            )

    def _added_late(self, spec: HookSpec) -> None:
        """A registry that has started with this one, or is it, has got a hook with ``late``."""

    def _add(
        self,
        kind: HookKind,
        fn: _F | None,
        *,
        mine: bool = False,
        partitions: Collection[str] | None = None,
        reasons: Collection[ChangeReason] | None = None,
        timeout: Duration | Default | None = DEFAULT,
        retries: int = 0,
        retry_on: tuple[type[Exception], ...] = (Exception,),
        name: str | None = None,
        late: bool = False,
    ) -> _F | Callable[[_F], _F]:
        """Registers ``fn``; without one, a decorator that will."""

        def register(fn: _F) -> _F:
            label = name or name_of(fn)
            check = Check(kind, label)
            check.function(fn)
            spec = HookSpec(
                kind=kind,
                fn=fn,
                name=label,
                order=next(_order),
                mine=bool(mine),
                partitions=check.names("partitions", partitions),
                reasons=check.reasons(reasons),
                timeout=check.timeout(timeout),
                retries=check.retries(retries),
                retry_on=check.retry_on(retry_on),
            )
            with _lock:
                if not late:
                    self.__refuse_if_sealed(f"hook {label!r} for on_{kind} was registered")
                self.__hooks.append(spec)
                started = list(self.__seals)
            for kit in started:
                kit._added_late(spec)
            return fn

        return register if fn is None else register(fn)

    # -- one method for each kind of event --------------------------------------------------

    @overload
    def on_partition_change(self, fn: _PC, /) -> _PC: ...
    @overload
    def on_partition_change(
        self,
        fn: None = None,
        /,
        *,
        mine: bool = False,
        partitions: Collection[str] | None = None,
        reasons: Collection[ChangeReason] | None = None,
        **options: Unpack[HookOptions],
    ) -> Callable[[_PC], _PC]: ...
    def on_partition_change(
        self,
        fn: _PC | None = None,
        /,
        *,
        mine: bool = False,
        partitions: Collection[str] | None = None,
        reasons: Collection[ChangeReason] | None = None,
        **options: Unpack[HookOptions],
    ) -> _PC | Callable[[_PC], _PC]:
        """A node becomes a holder of a partition, or its primary.

        Args:
            fn: The hook.
            mine: Only changes whose target is this node.
            partitions: Only these partitions, by id.
            reasons: Only changes for these reasons.
            **options: See ``HookOptions``.
        """
        return self._add(
            "partition_change", fn, mine=mine, partitions=partitions, reasons=reasons, **options
        )

    @overload
    def on_node_join(self, fn: _NJ, /) -> _NJ: ...
    @overload
    def on_node_join(
        self, fn: None = None, /, *, mine: bool = False, **options: Unpack[HookOptions]
    ) -> Callable[[_NJ], _NJ]: ...
    def on_node_join(
        self, fn: _NJ | None = None, /, *, mine: bool = False, **options: Unpack[HookOptions]
    ) -> _NJ | Callable[[_NJ], _NJ]:
        """A node that the cluster does not know has joined; with ``mine``, only this node."""
        return self._add("node_join", fn, mine=mine, **options)

    @overload
    def on_node_rejoin(self, fn: _NR, /) -> _NR: ...
    @overload
    def on_node_rejoin(
        self, fn: None = None, /, *, mine: bool = False, **options: Unpack[HookOptions]
    ) -> Callable[[_NR], _NR]: ...
    def on_node_rejoin(
        self, fn: _NR | None = None, /, *, mine: bool = False, **options: Unpack[HookOptions]
    ) -> _NR | Callable[[_NR], _NR]:
        """A node is back; with ``mine``, only this node. It finishes before any partition moves."""
        return self._add("node_rejoin", fn, mine=mine, **options)

    @overload
    def on_node_leave(self, fn: _NL, /) -> _NL: ...
    @overload
    def on_node_leave(
        self, fn: None = None, /, *, mine: bool = False, **options: Unpack[HookOptions]
    ) -> Callable[[_NL], _NL]: ...
    def on_node_leave(
        self, fn: _NL | None = None, /, *, mine: bool = False, **options: Unpack[HookOptions]
    ) -> _NL | Callable[[_NL], _NL]:
        """A node has left; with ``mine``, only this node."""
        return self._add("node_leave", fn, mine=mine, **options)

    @overload
    def on_rebalance_start(self, fn: _RS, /) -> _RS: ...
    @overload
    def on_rebalance_start(
        self, fn: None = None, /, **options: Unpack[HookOptions]
    ) -> Callable[[_RS], _RS]: ...
    def on_rebalance_start(
        self, fn: _RS | None = None, /, **options: Unpack[HookOptions]
    ) -> _RS | Callable[[_RS], _RS]:
        """This node begins to pass from one assignment to the next."""
        return self._add("rebalance_start", fn, **options)

    @overload
    def on_rebalance_complete(self, fn: _RC, /) -> _RC: ...
    @overload
    def on_rebalance_complete(
        self, fn: None = None, /, **options: Unpack[HookOptions]
    ) -> Callable[[_RC], _RC]: ...
    def on_rebalance_complete(
        self, fn: _RC | None = None, /, **options: Unpack[HookOptions]
    ) -> _RC | Callable[[_RC], _RC]:
        """That passage is over: called with the event of its start, and how long it took."""
        return self._add("rebalance_complete", fn, **options)

    @overload
    def on_cluster_health_change(self, fn: _CH, /) -> _CH: ...
    @overload
    def on_cluster_health_change(
        self, fn: None = None, /, **options: Unpack[HookOptions]
    ) -> Callable[[_CH], _CH]: ...
    def on_cluster_health_change(
        self, fn: _CH | None = None, /, **options: Unpack[HookOptions]
    ) -> _CH | Callable[[_CH], _CH]:
        """The cluster's status, or the set of its unhealthy nodes, changed."""
        return self._add("cluster_health_change", fn, **options)

    @overload
    def on_partition_role(self, fn: _PR, /) -> _PR: ...
    @overload
    def on_partition_role(
        self, fn: None = None, /, **options: Unpack[HookOptions]
    ) -> Callable[[_PR], _PR]: ...
    def on_partition_role(
        self, fn: _PR | None = None, /, **options: Unpack[HookOptions]
    ) -> _PR | Callable[[_PR], _PR]:
        """This node's role for a partition changed: for work that follows ownership."""
        return self._add("partition_role", fn, **options)

    @overload
    def on_partition_drop(self, fn: _PD, /) -> _PD: ...
    @overload
    def on_partition_drop(
        self, fn: None = None, /, **options: Unpack[HookOptions]
    ) -> Callable[[_PD], _PD]: ...
    def on_partition_drop(
        self, fn: _PD | None = None, /, **options: Unpack[HookOptions]
    ) -> _PD | Callable[[_PD], _PD]:
        """This node, no longer a holder of a partition, may delete its copy."""
        return self._add("partition_drop", fn, **options)

    @overload
    def on_partition_lost(self, fn: _PL, /) -> _PL: ...
    @overload
    def on_partition_lost(
        self, fn: None = None, /, **options: Unpack[HookOptions]
    ) -> Callable[[_PL], _PL]: ...
    def on_partition_lost(
        self, fn: _PL | None = None, /, **options: Unpack[HookOptions]
    ) -> _PL | Callable[[_PL], _PL]:
        """No live node has a partition's data any more."""
        return self._add("partition_lost", fn, **options)

    @overload
    def on_fenced(self, fn: _FE, /) -> _FE: ...
    @overload
    def on_fenced(
        self, fn: None = None, /, **options: Unpack[HookOptions]
    ) -> Callable[[_FE], _FE]: ...
    def on_fenced(
        self, fn: _FE | None = None, /, **options: Unpack[HookOptions]
    ) -> _FE | Callable[[_FE], _FE]:
        """This node can no longer prove that its lease is alive, and owns nothing."""
        return self._add("fenced", fn, **options)

    @overload
    def on_unfenced(self, fn: _UF, /) -> _UF: ...
    @overload
    def on_unfenced(
        self, fn: None = None, /, **options: Unpack[HookOptions]
    ) -> Callable[[_UF], _UF]: ...
    def on_unfenced(
        self, fn: _UF | None = None, /, **options: Unpack[HookOptions]
    ) -> _UF | Callable[[_UF], _UF]:
        """This node may own partitions again."""
        return self._add("unfenced", fn, **options)

    @overload
    def on_hook_error(self, fn: _HE, /) -> _HE: ...
    @overload
    def on_hook_error(
        self, fn: None = None, /, **options: Unpack[HookOptions]
    ) -> Callable[[_HE], _HE]: ...
    def on_hook_error(
        self, fn: _HE | None = None, /, **options: Unpack[HookOptions]
    ) -> _HE | Callable[[_HE], _HE]:
        """Another hook raised, or ran out of time. What this one raises is only logged."""
        return self._add("hook_error", fn, **options)
