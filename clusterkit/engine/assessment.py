"""The cluster's health as this node knows it, and the news of its changes."""

from __future__ import annotations

import operator

from ..core import health
from ..core.membership import State
from ..events import ClusterHealthEvent
from ..model import ClusterHealth
from .delivery import Delivery
from .effects import INFO, Instant, Outbox
from .overdue import Overdue


class Assessment:
    """Assesses again when something that health depends on has changed. Owned by one thread.

    Attributes:
        health: The newest; None before the first.
    """

    def __init__(
        self,
        delivery: Delivery,
        out: Outbox,
        *,
        node_id: str,
        incarnation: str,
        overdue_seconds: float | None,
    ) -> None:
        self.health: ClusterHealth | None = None
        self._delivery = delivery
        self._out = out
        self._me = node_id
        self._incarnation = incarnation
        self._of: tuple[object, ...] = ()
        self._due: float | None = None
        self._overdue = Overdue(overdue_seconds)
        self._told: ClusterHealth | None = None
        self._changes = 0

    def wake_at(self) -> float | None:
        """When time alone may change the health.

        A node that is gone is missed for a while only, and a receipt is waited for so long.
        """
        times = self._due, self._overdue.wake_at()
        return min((t for t in times if t is not None), default=None)

    def assess(
        self,
        state: State,
        *,
        lost: frozenset[int],
        fenced: bool,
        tell: bool,
        hold: bool,
        at: Instant,
    ) -> None:
        """Takes stock.

        Args:
            state: The cluster.
            lost: The partitions whose data nobody alive has.
            fenced: Whether this node is fenced.
            tell: Whether a change is news.
            hold: Whether more is about to be known, and the news waits for it.
            at: The time.
        """
        self._overdue.follow(state, at.mono)
        overdue = self._overdue.nodes
        failing = self._delivery.ledger.failing()
        # States share what has not changed: to look at each member for each receipt of another is
        # too much for a large cluster.
        of = state.members, state.alive, state.history, state.config, fenced, failing, lost, overdue
        same = len(self._of) == len(of) and all(map(operator.is_, self._of, of))
        if not same or (self._due is not None and at.mono >= self._due):
            self._of = of
            self.health = health.assess(
                state, now=at.wall, fenced=fenced, owed_failing=failing, lost=lost, overdue=overdue
            )
            ends = health.retention_ends(state, at.wall)
            self._due = None if ends is None else at.mono + ends.total_seconds()
        if not hold or fenced:
            self._tell(state, tell, at)

    def _tell(self, state: State, tell: bool, at: Instant) -> None:
        found = self.health
        before, self._told = self._told, found
        if before is None or found is None or before is found or not tell:
            return
        if (before.status, before.unhealthy_node_ids) != (found.status, found.unhealthy_node_ids):
            self._changes += 1
            self._out.note(INFO, "the cluster is %s", found.status, ck_revision=state.revision)
            self._delivery.news("cluster_health_change", self.present(state, at), at)

    def present(self, state: State, at: Instant) -> ClusterHealthEvent:
        """The event that tells of the present health."""
        found = self.health
        assert found is not None
        return ClusterHealthEvent(
            timestamp=at.wall,
            revision=state.revision,
            event_id=f"health/{self._me}/{self._incarnation}/{self._changes}",
            healthy_nodes=found.healthy_nodes,
            unhealthy_nodes=found.unhealthy_nodes,
            total_nodes=found.total_nodes,
            status=found.status,
            unhealthy_node_ids=found.unhealthy_node_ids,
        )
