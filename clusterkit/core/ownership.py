"""Who is assigned what in a state, and what that makes of one node."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..events import Role
from .balance import even_out, place
from .incremental import Incremental
from .membership import State
from .placement import Candidate, Row
from .records import ClusterConfig, NodeRecord
from .rows import differences

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
    barred = _barred(state)
    return place(
        (_candidate(member, barred) for member in state.members.values()),
        partitions=config.partitions,
        replication_factor=config.replication_factor,
        cluster_seed=config.seed,
        balance_percent=config.balance_percent,
        balance_primaries=config.balance_primaries,
    ).rows


class Assignment:
    """The assignment of one state after the other; it costs what has changed. Owned by one thread.

    But for a bound on loads, or even primaries: those are made anew for all partitions.

    Attributes:
        rows: What ``rows_of`` says of the state that was followed last; the same object while no
            node and no setting changes.
        relaxed: The indexes of the partitions that are placed outside a bound on loads.
    """

    def __init__(self) -> None:
        self.rows: Sequence[Row] = ()
        self.relaxed: tuple[int, ...] = ()
        self._placed = Incremental()
        self._config: ClusterConfig | None = None
        self._members: Mapping[str, NodeRecord] = {}
        self._barred: Collection[str] = ()

    def follow(self, state: State) -> Sequence[Row]:
        """Makes ``rows`` those of the state, and returns them."""
        config, members, last = state.config, state.members, self._members
        if config is None:
            self.rows, self.relaxed = (), ()
            self._config, self._members, self._barred = config, members, ()
            return self.rows
        barred = _barred(state)
        if config == self._config:
            # Records are never changed, only replaced: to look which ones are others is enough.
            come = [m for node_id, m in members.items() if last.get(node_id) is not m]
            if barred or self._barred:
                turned = frozenset(barred) ^ frozenset(self._barred)
                come += [m for n in turned if (m := members.get(n)) and last.get(n) is m]
            self._placed.change(
                [_candidate(m, barred) for m in come], [n for n in last if n not in members]
            )
        else:
            self._placed.assign(
                (_candidate(m, barred) for m in members.values()),
                partitions=config.partitions,
                replication_factor=config.replication_factor,
                cluster_seed=config.seed,
            )
        if config.balance_percent is None and not config.balance_primaries:
            self.rows, self.relaxed = self._placed.rows, ()
        else:
            even = even_out(
                tuple(self._placed.rows),
                [_candidate(m, barred) for m in members.values()],
                cluster_seed=config.seed,
                balance_percent=config.balance_percent,
                balance_primaries=config.balance_primaries,
            )
            if even.rows != self.rows:
                self.rows = even.rows
            self.relaxed = even.relaxed
        self._config, self._members, self._barred = config, members, barred
        return self.rows


def barred(cordons: Collection[str], holders: Iterable[str]) -> Collection[str]:
    """Whom cordons keep from holding anything; nobody if none of those that can hold is left.

    A cordon is to move data away: where there is nowhere to move it to, it would be lost instead.

    Args:
        cordons: The ids of the cordoned nodes.
        holders: The ids of all nodes that may hold anything otherwise.
    """
    return cordons if cordons and any(n not in cordons for n in holders) else ()


def able(state: State) -> Iterator[str]:
    """The members that could hold partitions, cordons apart: active, and of some weight."""
    members = state.members.items()
    return (n for n, m in members if m.node.weight and m.node.state == "active")


def _barred(state: State) -> Collection[str]:
    return barred(state.cordons.keys(), able(state))


def _candidate(member: NodeRecord, barred: Collection[str]) -> Candidate:
    node = member.node
    holds = node.state == "active" and node.id not in barred
    return Candidate(node.id, node.weight if holds else 0, node.zone)


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
