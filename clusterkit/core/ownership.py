"""Who is assigned what in a state, and what that makes of one node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..events import Role
from .membership import State
from .placement import Candidate, Row, assign

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
        (
            Candidate(m.node.id, m.node.weight, m.node.zone)
            for m in state.members.values()
            if m.node.state == "active"
        ),
        partitions=config.partitions,
        replication_factor=config.replication_factor,
        cluster_seed=config.seed,
    )


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
    for index in range(max(len(old), len(new))):
        before = old[index] if index < len(old) else ()
        after = new[index] if index < len(new) else ()
        if before != after:
            was, now = role_in(before, node_id), role_in(after, node_id)
            if was != now:
                yield RoleChange(index, was, now)
