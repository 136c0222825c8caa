"""A view of the cluster as a table for people and as a document for programs. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from clusterkit.core.records import Cordon
from clusterkit.engine.administration import Changed
from clusterkit.engine.removal import Removal
from clusterkit.model import ClusterView, Node, Partition

from .records import plain


def nodes_document(
    cluster: str, view: ClusterView, cordons: Mapping[str, Cordon]
) -> dict[str, Any]:
    """What ``clusterkit nodes --json`` prints."""
    primaries, replicas = _counts(view)
    return {
        "cluster": cluster,
        "revision": view.revision,
        "nodes": [
            {
                "id": node.id,
                "address": node.address,
                "services": plain(node.services),
                "zone": node.zone,
                "weight": node.weight,
                "labels": plain(node.labels),
                "state": _state(view, node),
                "incarnation": node.incarnation,
                "joined_at": plain(node.joined_at),
                "primary_of": primaries[node.id],
                "replica_of": replicas[node.id],
            }
            for node in view.nodes.values()
        ],
        "cordons": {
            node_id: {"since": plain(cordon.since), "reason": cordon.reason}
            for node_id, cordon in sorted(cordons.items())
        },
    }


def nodes_table(cluster: str, view: ClusterView, cordons: Mapping[str, Cordon]) -> Group:
    """What ``clusterkit nodes`` prints."""
    primaries, replicas = _counts(view)
    title = f"{cluster}: {len(view.nodes)} nodes at revision {view.revision}"
    table = Table()
    for column in ("node", "address", "zone", "state", "joined (UTC)"):
        table.add_column(column, overflow="fold")
    for column in ("weight", "primary of", "replica of"):
        table.add_column(column, justify="right")
    for node in view.nodes.values():
        table.add_row(
            node.id,
            node.address,
            node.zone or "-",
            _state(view, node),
            f"{node.joined_at:%Y-%m-%d %H:%M:%S}",
            str(node.weight),
            str(primaries[node.id]),
            str(replicas[node.id]),
        )
    lines = [
        Text(
            f"{node_id} is cordoned since {cordon.since:%Y-%m-%d %H:%M:%S}"
            + (f": {cordon.reason}" if cordon.reason else "")
        )
        for node_id, cordon in sorted(cordons.items())
    ]
    return Group(Text(title), table, *lines)


def partitions_document(cluster: str, view: ClusterView, node_id: str | None) -> dict[str, Any]:
    """What ``clusterkit partitions --json`` prints; ``node_id`` leaves only its partitions."""
    return {
        "cluster": cluster,
        "revision": view.revision,
        "replication_factor": view.replication_factor,
        "partitions": [
            {
                "id": partition.id,
                "primary": partition.primary.id if partition.primary else None,
                "replicas": [node.id for node in partition.replicas],
                "epoch": partition.epoch,
            }
            for partition in held_by(view.partitions, node_id)
        ],
    }


def partitions_table(cluster: str, view: ClusterView, node_id: str | None) -> Group:
    """What ``clusterkit partitions`` prints; ``node_id`` leaves only its partitions."""
    shown = held_by(view.partitions, node_id)
    of = "" if node_id is None else f" of {node_id}"
    title = f"{cluster}: {len(shown)} partitions{of} at revision {view.revision}"
    table = Table()
    for column in ("partition", "primary", "replicas"):
        table.add_column(column, overflow="fold")
    for partition in shown:
        table.add_row(
            partition.id,
            partition.primary.id if partition.primary else "nobody",
            ", ".join(node.id for node in partition.replicas) or "-",
        )
    return Group(Text(title), table)


def removal_document(cluster: str, removal: Removal) -> dict[str, Any]:
    """What ``clusterkit remove --json`` prints."""
    return {
        "cluster": cluster,
        "revision": removal.revision,
        "node": removal.node.id,
        "address": removal.node.address,
        "incarnation": removal.node.incarnation,
        "reason": "removed_by_admin",
        "partitions": list(removal.partitions),
    }


def cordon_document(cluster: str, node_id: str, cordoned: bool, done: Changed) -> dict[str, Any]:
    """What ``clusterkit cordon --json`` and ``uncordon --json`` print."""
    return {
        "cluster": cluster,
        "revision": done.revision,
        "node": node_id,
        "cordoned": cordoned,
        "changed": done.changed,
        "holders": done.holders,
    }


def few_holders(done: Changed) -> str | None:
    """A warning, if there are fewer nodes to hold partitions than each should have holders."""
    factor = done.config.replication_factor
    if done.holders >= factor:
        return None
    return (
        f"only {done.holders} of the members may hold partitions now, and each partition should "
        f"have {factor} holders: what the last of them has is lost with it"
    )


def settings_document(cluster: str, done: Changed) -> dict[str, Any]:
    """What ``clusterkit settings --json`` prints."""
    config = done.config
    percent = config.balance_percent
    return {
        "cluster": cluster,
        "revision": done.revision,
        "partitions": config.partitions,
        "replication_factor": config.replication_factor,
        "key_hash": config.key_hash,
        "balance": None if percent is None else percent / 100,
        "balance_primaries": config.balance_primaries,
        "changed": done.changed,
    }


def settings_lines(cluster: str, done: Changed) -> str:
    """What ``clusterkit settings`` prints."""
    document = settings_document(cluster, done)
    names = [name for name in document if name not in ("cluster", "revision", "changed")]
    width = max(map(len, names))
    lines = [f"{cluster}: settings at revision {done.revision}"]
    lines += [f"  {name:<{width}}  {_word(document[name])}" for name in names]
    return "\n".join(lines)


def _word(value: object) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _state(view: ClusterView, node: Node) -> str:
    return "cordoned" if node.id in view.cordoned else node.state


def held_by(partitions: Iterable[Partition], node_id: str | None) -> list[Partition]:
    """The partitions that a node holds in any role; all of them for None."""
    return [p for p in partitions if node_id is None or node_id in {node.id for node in p.nodes}]


def _counts(view: ClusterView) -> tuple[Counter[str], Counter[str]]:
    primaries = Counter(p.primary.id for p in view.partitions if p.primary is not None)
    replicas = Counter(node.id for p in view.partitions for node in p.replicas)
    return primaries, replicas
