"""What a change of nodes or settings would do to an assignment. Pure, and without effect."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..events import Role
from ..planning import NodeLoad, Plan, PlannedMove, PlannedNode
from .balance import Placed, place
from .hashing import partition_id
from .membership import State
from .ownership import barred
from .placement import Candidate, Row
from .records import ClusterConfig
from .spread import balance_of


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that an assignment is made of.

    Attributes:
        config: The cluster's settings.
        nodes: All active members, by id.
        cordoned: Those that are to hold nothing, among them or not.
    """

    config: ClusterConfig
    nodes: Mapping[str, PlannedNode]
    cordoned: Collection[str] = ()

    @classmethod
    def of(cls, state: State) -> Layout:
        """The layout of a cluster that has a config."""
        assert state.config is not None
        members = (m.node for m in state.members.values() if m.node.state == "active")
        return cls(
            state.config,
            {node.id: PlannedNode(weight=node.weight, zone=node.zone) for node in members},
            frozenset(state.cordons),
        )

    def place(self) -> Placed:
        """The assignment."""
        nodes = self.nodes.items()
        out = barred(self.cordoned, (n for n, node in nodes if node.weight))
        return place(
            [Candidate(n, node.weight, node.zone) for n, node in nodes if n not in out],
            partitions=self.config.partitions,
            replication_factor=self.config.replication_factor,
            cluster_seed=self.config.seed,
            balance_percent=self.config.balance_percent,
            balance_primaries=self.config.balance_primaries,
        )


@dataclass(frozen=True, slots=True)
class Alteration:
    """What is to be different; what is empty or None stays as it is.

    Attributes:
        add: The nodes that join, by id.
        remove: The ids of those that leave.
        weights: New weights, by id.
        cordon: The ids of those that are to hold nothing.
        uncordon: The ids of those that may again.
        replication_factor: The new one.
        balance_percent: The new bound in hundredths; 0 for none.
        balance_primaries: Whether primaries are to be evened out.
    """

    add: Mapping[str, PlannedNode] = field(default_factory=dict)
    remove: Collection[str] = ()
    weights: Mapping[str, int] = field(default_factory=dict)
    cordon: Collection[str] = ()
    uncordon: Collection[str] = ()
    replication_factor: int | None = None
    balance_percent: int | None = None
    balance_primaries: bool | None = None

    def of(self, layout: Layout) -> Layout:
        """The layout after it.

        Raises:
            ValueError: It names a node that is not there, or adds one that is.
        """
        if twice := sorted(set(self.add) & set(layout.nodes)):
            raise ValueError(f"node {twice[0]!r} is to be added and is a member already")
        known = {**layout.nodes, **self.add}
        named = (*self.remove, *self.weights, *self.cordon)
        if strange := sorted(set(named) - set(known)):
            raise ValueError(
                f"node {strange[0]!r} is not in the cluster; its members are: "
                + (", ".join(sorted(layout.nodes)) or "nobody")
            )
        if free := sorted(set(self.uncordon) - set(layout.cordoned)):
            raise ValueError(f"node {free[0]!r} is not cordoned")
        config = layout.config
        if self.replication_factor is not None:
            config = replace(config, replication_factor=self.replication_factor)
        if self.balance_percent is not None:
            config = replace(config, balance_percent=self.balance_percent or None)
        if self.balance_primaries is not None:
            config = replace(config, balance_primaries=self.balance_primaries)
        nodes = {
            n: replace(node, weight=self.weights.get(n, node.weight))
            for n, node in known.items()
            if n not in self.remove
        }
        cordoned = frozenset({*layout.cordoned, *self.cordon} - set(self.uncordon))
        return Layout(config, nodes, cordoned)


def forecast(layout: Layout, alteration: Alteration) -> Plan:
    """What the alteration would do to the layout.

    It takes the cluster to be at rest: all holders have their data.

    Raises:
        ValueError: The alteration does not fit the layout, or a number is out of its range.
    """
    changed = alteration.of(layout)
    before, after = layout.place().rows, changed.place()
    moves: list[PlannedMove] = []
    promotions: dict[str, str] = {}
    lost: list[str] = []
    for index, (old, new) in enumerate(zip(before, after.rows, strict=True)):
        if old == new:
            continue
        name = partition_id(index)
        sources = tuple(n for n in old if n in changed.nodes)
        for place_in_row, node_id in enumerate(new):
            if node_id not in old:
                role: Role = "replica" if place_in_row else "primary"
                moves.append(PlannedMove(name, node_id, role, sources))
        if new and new[0] in old[1:]:
            promotions[name] = new[0]
        if old and not sources:
            lost.append(name)
    return Plan(
        moves=tuple(moves),
        promotions=promotions,
        lost=tuple(lost),
        before=_loads(layout.nodes, before),
        after=_loads(changed.nodes, after.rows),
        relaxed=tuple(map(partition_id, after.relaxed)),
    )


def _loads(nodes: Iterable[str], rows: Sequence[Row]) -> dict[str, NodeLoad]:
    found = balance_of(rows)
    return {n: NodeLoad(found.primaries.get(n, 0), found.replicas.get(n, 0)) for n in sorted(nodes)}
