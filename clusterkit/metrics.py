"""Where a kit's measurements go: one small protocol, for whatever collects metrics at your place.

``clusterkit.admin.prometheus`` implements it for Prometheus (extra ``admin``). Another collector
needs two classes::

    class Sink:
        def hook_ended(self, kind, hook, outcome, seconds): ...
        def rebalance_ended(self, seconds): ...
        def close(self): ...

    class MyMetrics:
        def attach(self, cluster, node_id, stats):
            return Sink()

    kit = ClusterKit(metrics=MyMetrics())

What happens is pushed. What is so (queues, roles, the lease) is pulled by calling ``stats``, so
that nothing is computed that nobody asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from .hooks import HookKind
from .model import Stats

HookOutcome: TypeAlias = Literal["ok", "error", "timeout", "cancelled"]
"""How a run of a hook ended. ``timeout``: it is out of time, and perhaps still running.
``cancelled``: it was told to end, and did."""


class MetricsSink(Protocol):
    """Takes the measurements of one run of a kit, from its start to its stop.

    Called on the kit's own thread, one call after another: be quick and do not block. What is
    raised is logged once, and else ignored.
    """

    def hook_ended(self, kind: HookKind, hook: str, outcome: HookOutcome, seconds: float) -> None:
        """One run of a hook is over, or out of time.

        Args:
            kind: The kind of hook, such as ``partition_change``.
            hook: Its name.
            outcome: How it ended. A retry is a run of its own.
            seconds: How long the hook itself took; the time that it waited for its turn is not in.
        """

    def rebalance_ended(self, seconds: float) -> None:
        """A rebalance is complete, or was superseded, so many seconds after its start."""

    def close(self) -> None:
        """The kit has stopped: nothing comes any more, and ``stats`` has no more news."""


@runtime_checkable
class Metrics(Protocol):
    """Collects the measurements of kits; give it to them as ``metrics=``. Kits may share one."""

    def attach(self, cluster: str, node_id: str, stats: Callable[[], Stats]) -> MetricsSink:
        """A kit is being started.

        Args:
            cluster: The cluster's name.
            node_id: The node's id.
            stats: The present figures; may be called from any thread, until ``close`` and after.

        Returns:
            Where the measurements of this run are to go.
        """
