"""For tests, yours too: whole clusters in one process, with or without etcd, and what goes wrong.

``LocalCluster`` and ``memory_kit`` run kits, ``EmbeddedEtcd`` a real server; ``MemoryStore`` is one
in memory, ``VirtualClock`` time that a test moves, ``FaultPlan`` what goes wrong between a node and
its store. With pytest the fixtures ``clusterkit_etcd``, ``local_cluster`` and ``memory_cluster``
are there as soon as ClusterKit is installed. ``docs/testing.md`` shows all of it at work.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .clock import VirtualClock
    from .embedded import EmbeddedEtcd
    from .faults import FaultPlan, FaultyStore
    from .local import AsyncLocalKit, LocalCluster, LocalKit, memory_kit
    from .memory import MemoryServer, MemoryStore
    from .pytest_plugin import ClusterFactory

__all__ = [
    "AsyncLocalKit",
    "ClusterFactory",
    "EmbeddedEtcd",
    "FaultPlan",
    "FaultyStore",
    "LocalCluster",
    "LocalKit",
    "MemoryServer",
    "MemoryStore",
    "VirtualClock",
    "memory_kit",
]

# Each is loaded when it is first asked for: the pytest plugin lies in here and is imported by every
# run of pytest, and only `ClusterFactory` needs pytest.
_HOMES = {
    "AsyncLocalKit": "local",
    "ClusterFactory": "pytest_plugin",
    "EmbeddedEtcd": "embedded",
    "FaultPlan": "faults",
    "FaultyStore": "faults",
    "LocalCluster": "local",
    "LocalKit": "local",
    "MemoryServer": "memory",
    "MemoryStore": "memory",
    "VirtualClock": "clock",
    "memory_kit": "local",
}

if not TYPE_CHECKING:  # else no checker would find a name that is misspelt

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found: object = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
