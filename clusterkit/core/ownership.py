"""Who is assigned what in a state, and what that makes of one node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..events import Role
from .incremental import Incremental
from .membership import State
from .placement import Candidate, Row, assign
from .records import ClusterConfig, NodeRecord
from .rows import differences

ALGORITHM_VERSION = 1
"""The version of the placement algorithm, in the cluster config: nodes of two never mix."""


def rows_of(state: State) -> tuple[Row, ...]:
    """The assignment: for each partition its holders, the primary first.

    A pure function of the inputs: the active members with their weights and zones, and the config.
    """
    config = state.config
    if config is None:
        return ()
    return assign(
        map(_candidate, state.members.values()),
        partitions=config.partitions,
        replication_factor=config.replication_factor,
        cluster_seed=config.seed,
    )


class Assignment:
    """The assignment of one state after the other; it costs what has changed. Owned by one thread.

    Attributes:
        rows: What ``rows_of`` says of the state that was followed last; while it says the same, the
            same object.
    """

    def __init__(self) -> None:
        self.rows: Sequence[Row] = ()
        self._placed = Incremental()
        self._config: ClusterConfig | None = None
        self._members: Mapping[str, NodeRecord] = {}

    def follow(self, state: State) -> Sequence[Row]:
        """Makes ``rows`` those of the state, and returns them."""
        config, members, last = state.config, state.members, self._members
        if config is None:
            self.rows = ()
        elif config == self._config:
            # Records are never changed, only replaced: to look which ones are others is enough.
            self._placed.change(
                [_candidate(m) for node_id, m in members.items() if last.get(node_id) is not m],
                [node_id for node_id in last if node_id not in members],
            )
            self.rows = self._placed.rows
        else:
            self._placed.assign(
                map(_candidate, members.values()),
                partitions=config.partitions,
                replication_factor=config.replication_factor,
                cluster_seed=config.seed,
            )
            self.rows = self._placed.rows
        self._config, self._members = config, members
        return self.rows


def _candidate(member: NodeRecord) -> Candidate:
    node = member.node
    return Candidate(node.id, node.weight if node.state == "active" else 0, node.zone)


def role_in(row: Row, node_id: str) -> Role | None:
    """The node's role for a partition."""
    if node_id not in row:
        return None
    return "primary" if row[0] == node_id else "replica"


@dataclass(frozen=True, slots=True)
class RoleChange:
    """One node's role for one partition changed."""

    index: int
    old: Role | None
    new: Role | None


def role_changes(old: Sequence[Row], new: Sequence[Row], node_id: str) -> Iterator[RoleChange]:
    """How a node's roles differ between two assignments, in the order of the partitions."""
    for index, before, after in differences(old, new):
        was, now = role_in(before, node_id), role_in(after, node_id)
        if was != now:
            yield RoleChange(index, was, now)
