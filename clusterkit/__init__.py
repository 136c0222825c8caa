"""ClusterKit: membership, partition ownership and rebalance hooks for stateful services, on etcd.

A process that embeds it registers a leased key in etcd, sees every other process come and go, knows
which node owns which key, and is told by hooks what it must copy, and from whom.

Guaranteed: two nodes at the same revision have the same assignment; every live node sees every
event, at least once, in the order of revisions; one epoch of a partition has one owner; a node that
cannot prove that its lease is alive stops acting as an owner before another can take over, on an
etcd of 3.4.31, 3.5.13 or newer and with bounded clock drift.

Not guaranteed: exactly-once hooks; that the data is copied (your hook does that); that no two
processes ever *believe* to own a partition: only storage that refuses an epoch smaller than one it
has seen makes a paused process harmless. Clocks of different machines are not compared for anything
but ``offline_duration``.

This is the face for asyncio. For threads: ``from clusterkit.sync import ClusterKit``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .config import TLS, Duration, Options, OptionsDict
    from .errors import (
        ClusterKitError,
        CompactedError,
        ConfigMismatchError,
        FencedError,
        HookRegistrationError,
        KitStateError,
        NodeIdConflictError,
        NotOwnerError,
        OptionError,
        OwnershipError,
        StaleViewError,
        StoreAuthError,
        StoreError,
        StoreTimeoutError,
        StoreUnavailableError,
        UnknownPartitionError,
        WaitTimeoutError,
    )
    from .events import (
        ClusterHealthEvent,
        Event,
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
    from .hooks import HookCancelledError, HookContext, HookContextError, Hooks, hook_context
    from .kit import ClusterKit
    from .metrics import HookOutcome, Metrics, MetricsSink
    from .model import (
        ClusterHealth,
        ClusterView,
        Guard,
        Key,
        KitState,
        Node,
        OwedMove,
        Partition,
        PartitionRef,
        Readiness,
        Stats,
    )
    from .planning import NodeLoad, Plan, PlannedMove, PlannedNode

__all__ = [
    "TLS",
    "ClusterHealth",
    "ClusterHealthEvent",
    "ClusterKit",
    "ClusterKitError",
    "ClusterView",
    "CompactedError",
    "ConfigMismatchError",
    "Duration",
    "Event",
    "FencedError",
    "FencedEvent",
    "Guard",
    "HookCancelledError",
    "HookContext",
    "HookContextError",
    "HookErrorEvent",
    "HookOutcome",
    "HookRegistrationError",
    "Hooks",
    "Key",
    "KitState",
    "KitStateError",
    "Metrics",
    "MetricsSink",
    "Node",
    "NodeIdConflictError",
    "NodeJoinEvent",
    "NodeLeaveEvent",
    "NodeLoad",
    "NodeRejoinEvent",
    "NotOwnerError",
    "OptionError",
    "Options",
    "OptionsDict",
    "OwedMove",
    "OwnershipError",
    "Partition",
    "PartitionChangeEvent",
    "PartitionDropEvent",
    "PartitionLostEvent",
    "PartitionRef",
    "PartitionRoleEvent",
    "Plan",
    "PlannedMove",
    "PlannedNode",
    "Readiness",
    "RebalanceEvent",
    "StaleViewError",
    "Stats",
    "StoreAuthError",
    "StoreError",
    "StoreTimeoutError",
    "StoreUnavailableError",
    "UnfencedEvent",
    "UnknownPartitionError",
    "WaitTimeoutError",
    "__version__",
    "hook_context",
]

# Each name is loaded when it is first asked for: a module that has hooks to register, or an event
# to look at, need not wait for gRPC, pydantic and the engine.
_HOMES = {
    name: home
    for home, names in {
        "config": "TLS Duration Options OptionsDict",
        "errors": """
            ClusterKitError CompactedError ConfigMismatchError FencedError
            HookRegistrationError KitStateError NodeIdConflictError NotOwnerError
            OptionError OwnershipError StaleViewError StoreAuthError StoreError
            StoreTimeoutError StoreUnavailableError UnknownPartitionError
            WaitTimeoutError
        """,
        "events": """
            ClusterHealthEvent Event FencedEvent HookErrorEvent NodeJoinEvent
            NodeLeaveEvent NodeRejoinEvent PartitionChangeEvent PartitionDropEvent
            PartitionLostEvent PartitionRoleEvent RebalanceEvent UnfencedEvent
        """,
        "hooks": "HookCancelledError HookContext HookContextError Hooks hook_context",
        "kit": "ClusterKit",
        "metrics": "HookOutcome Metrics MetricsSink",
        "model": """
            ClusterHealth ClusterView Guard Key KitState Node OwedMove Partition
            PartitionRef Readiness Stats
        """,
        "planning": "NodeLoad Plan PlannedMove PlannedNode",
    }.items()
    for name in names.split()
}
_MODULES = frozenset({"sync", *_HOMES.values()})


if not TYPE_CHECKING:  # else no checker would find a name that is misspelt

    def __getattr__(name: str) -> object:
        if (home := _HOMES.get(name)) is not None:
            found: object = getattr(import_module(f".{home}", __name__), name)
            globals()[name] = found  # so that this is asked for it once only
            return found
        if name in _MODULES:
            return import_module(f".{name}", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
