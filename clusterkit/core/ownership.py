"""Who is assigned what in a state, and what that makes of one node."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from ..events import Role
from .balance import place
from .membership import State
from .placement import Candidate, Row

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
    return place(
        candidates_of(state),
        partitions=config.partitions,
        replication_factor=config.replication_factor,
        cluster_seed=config.seed,
        balance_percent=config.balance_percent,
        balance_primaries=config.balance_primaries,
    ).rows


def candidates_of(state: State) -> list[Candidate]:
    """The members that may hold partitions."""
    nodes = (m.node for m in state.members.values() if m.node.state == "active")
    active = [Candidate(node.id, node.weight, node.zone) for node in nodes]
    return active_nodes(active, state.cordons)


def active_nodes(nodes: list[Candidate], cordoned: Collection[str]) -> list[Candidate]:
    """Those that are not cordoned; all of them if none with a weight would be left.

    A cordon is to move data away: where there is nowhere to move it to, it would be lost instead.
    """
    free = [node for node in nodes if node.id not in cordoned]
    return free if any(node.weight for node in free) else nodes


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
