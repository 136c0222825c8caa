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

    A pure function of the inputs: the active members with their weights and zones, the cordons,
    and the config.
    """
    config = state.config
    if config is None:
        return ()
    return assign(
        candidates_of(state),
        partitions=config.partitions,
        replication_factor=config.replication_factor,
        cluster_seed=config.seed,
    )


def candidates_of(state: State) -> list[Candidate]:
    """The members that may hold partitions; if all of those are cordoned, all of those."""
    active = [m.node for m in state.members.values() if m.node.state == "active"]
    free = [node for node in active if node.id not in state.cordons]
    if not any(node.weight for node in free):
        # A cordon is to move data away, and there is nowhere to move it to.
        free = active
    return [Candidate(node.id, node.weight, node.zone) for node in free]


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
