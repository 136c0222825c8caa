"""``clusterkit plan``: how its arguments are read, and how its answer is shown. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from clusterkit.core.forecast import Layout
from clusterkit.core.records import ClusterConfig
from clusterkit.planning import NodeLoad, Plan, PlannedNode

_SHOWN = 20


def planned_nodes(texts: Iterable[str]) -> dict[str, PlannedNode]:
    """Reads nodes such as ``e`` and ``e,weight=50,zone=z2``.

    Raises:
        typer.BadParameter: A text is of another form, or two are of one node.
    """
    found: dict[str, PlannedNode] = {}
    for text in texts:
        node_id, *settings = (part.strip() for part in text.split(","))
        given: dict[str, Any] = {}
        for setting in settings:
            name, _, value = setting.partition("=")
            if name == "zone" and value:
                given["zone"] = value
            elif name == "weight" and value.isascii() and value.isdecimal():
                given["weight"] = int(value)
            else:
                raise typer.BadParameter(
                    f"{text!r} is not of the form NODE[,weight=WHOLE NUMBER][,zone=TEXT]"
                )
        if not node_id or node_id in found:
            raise typer.BadParameter(
                f"{text!r} names " + ("a node twice" if node_id else "no node")
            )
        found[node_id] = PlannedNode(**given)
    return found


def weights(texts: Iterable[str]) -> dict[str, int]:
    """Reads weights such as ``a=50``.

    Raises:
        typer.BadParameter: A text is of another form.
    """
    found: dict[str, int] = {}
    for text in texts:
        node_id, _, value = text.rpartition("=")
        if not node_id or not (value.isascii() and value.isdecimal()):
            raise typer.BadParameter(f"{text!r} is not of the form NODE=WHOLE NUMBER")
        found[node_id] = int(value)
    return found


def made_up(
    nodes: int,
    *,
    zones: int,
    partitions: int,
    replication_factor: int,
    balance_percent: int,
    balance_primaries: bool,
) -> Layout:
    """A cluster that is nowhere: ``node-0`` and so on, in ``zone-0`` and so on by turns."""
    config = ClusterConfig(
        partitions,
        replication_factor,
        key_hash="crc32",
        algorithm_version=1,
        seed=0,
        balance_percent=balance_percent or None,
        balance_primaries=balance_primaries,
    )
    return Layout(
        config,
        {
            f"node-{i}": PlannedNode(zone=f"zone-{i % zones}" if zones else None)
            for i in range(nodes)
        },
    )


def document(cluster: str | None, plan: Plan) -> dict[str, Any]:
    """What ``clusterkit plan --json`` prints."""
    return {
        "cluster": cluster,
        "moves": [
            {
                "partition": move.partition_id,
                "to": move.node_id,
                "role": move.role,
                "copy_from": list(move.copy_from),
            }
            for move in plan.moves
        ],
        "promotions": dict(plan.promotions),
        "lost": list(plan.lost),
        "relaxed": list(plan.relaxed),
        "before": _loads(plan.before.items()),
        "after": _loads(plan.after.items()),
    }


def tables(cluster: str | None, plan: Plan, *, every_move: bool) -> Group:
    """What ``clusterkit plan`` prints."""
    name = "a made-up cluster" if cluster is None else cluster
    fetched = Counter(move.node_id for move in plan.moves)
    loads = Table()
    loads.add_column("node", overflow="fold")
    for column in ("primary of", "then", "replica of", "then", "would fetch"):
        loads.add_column(column, justify="right")
    for node_id in sorted({*plan.before, *plan.after}):
        before, after = plan.before.get(node_id), plan.after.get(node_id)
        loads.add_row(
            node_id,
            *(_text(None if load is None else load.primaries) for load in (before, after)),
            *(_text(None if load is None else load.replicas) for load in (before, after)),
            str(fetched[node_id]),
        )
    parts: list[Text | Table] = [Text(f"{name}: nothing is changed; this is what would be"), loads]
    parts += [Text(_spread("now ", plan.before)), Text(_spread("then", plan.after))]
    parts.append(
        Text(
            f"{len(plan.moves)} copies to make, of {len({m.partition_id for m in plan.moves})} "
            f"partitions; {len(plan.promotions)} promotions, which copy nothing"
        )
    )
    if plan.moves:
        shown = plan.moves if every_move else plan.moves[:_SHOWN]
        moves = Table()
        for column in ("partition", "to", "as", "from"):
            moves.add_column(column, overflow="fold")
        for move in shown:
            sources = ", ".join(move.copy_from) or "nobody: lost"
            moves.add_row(move.partition_id, move.node_id, move.role, sources)
        parts.append(moves)
        if len(shown) < len(plan.moves):
            parts.append(Text(f"and {len(plan.moves) - len(shown)} more; --all shows them"))
    if plan.lost:
        parts.append(Text(f"LOST: no holder of {len(plan.lost)} partitions would be left"))
    if plan.relaxed:
        parts.append(Text(f"{len(plan.relaxed)} partitions would be outside the bound of balance"))
    return Group(*parts)


def _loads(items: Iterable[tuple[str, NodeLoad]]) -> dict[str, dict[str, int]]:
    return {n: {"primary_of": x.primaries, "replica_of": x.replicas} for n, x in items}


def _spread(when: str, loads: Mapping[str, NodeLoad]) -> str:
    copies = [load.copies for load in loads.values()]
    if not copies:
        return f"{when}: no node"
    mean = sum(copies) / len(copies)
    most = f"{max(copies) / mean:.2f} times the mean" if mean else "nothing"
    return f"{when}: {min(copies)} to {max(copies)} copies a node, the fullest has {most}"


def _text(count: int | None) -> str:
    return "-" if count is None else str(count)
