"""What the nodes should have been told in one step of the demo, and where that differs. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from clusterkit.cli.records import HOOK_KINDS, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """One kind of event that a step must, or may, bring.

    Attributes:
        kind: The hook, without ``on_``.
        seen_by: The nodes that must see it, and no others.
        about: Only the events about this node; None for all of the kind.
        fields: What the events must say.
        once: Each node must see exactly one such event (deliveries with one id count once).
        same_everywhere: All who must see it must have seen the same event ids.
    """

    kind: str
    seen_by: frozenset[str]
    about: str | None = None
    fields: Mapping[str, object] = field(default_factory=dict)
    once: bool = True
    same_everywhere: bool = False

    def covers(self, record: Record) -> bool:
        """Whether the record is one of those that this is about."""
        return record["event"] == self.kind and self.about in {None, record.get("node")}


class Violation(NamedTuple):
    """One difference; ``pending`` if what is still to come may heal it."""

    text: str
    pending: bool = False


def violations(
    expected: Sequence[Expect], records: Sequence[Record], live: Collection[str]
) -> list[Violation]:
    """Every way in which what the live nodes saw differs from what they should have seen."""
    seen = _first_deliveries(r for r in records if r["event"] in HOOK_KINDS)
    seen = [record for record in seen if record["seen_by"] in live]
    found = [wrong for one in expected for wrong in _differences(one, seen)]
    for record in seen:
        if not any(one.covers(record) for one in expected):
            about = f" about {record['node']}" if "node" in record else ""
            what = f"{record['event']}{about}: not expected here"
            found.append(Violation(f"{what}, seen by {record['seen_by']}"))
    for node in sorted(live):
        found.extend(_order_violations(node, [r for r in seen if r["seen_by"] == node]))
    return found


def _first_deliveries(records: Iterator[Record]) -> list[Record]:
    """Drops what a node was told again: same kind, same id."""
    first: dict[tuple[object, ...], Record] = {}
    for record in records:
        first.setdefault((record["seen_by"], record["event"], record["event_id"]), record)
    return list(first.values())


def _differences(expect: Expect, seen: Sequence[Record]) -> Iterator[Violation]:
    name = expect.kind if expect.about is None else f"{expect.kind} about {expect.about}"
    by_node: defaultdict[str, list[Record]] = defaultdict(list)
    for record in seen:
        if expect.covers(record):
            by_node[record["seen_by"]].append(record)
    for node in sorted(expect.seen_by - by_node.keys()):
        yield Violation(f"{name}: not seen by {node}", pending=True)
    for node, records in sorted(by_node.items()):
        if node not in expect.seen_by:
            yield Violation(f"{name}: seen by {node}, who should not have")
        if expect.once and len(records) > 1:
            yield Violation(f"{name}: seen {len(records)} times by {node}")
        for record in records:
            for key, value in expect.fields.items():
                if record[key] != value:
                    told = f"{node} was told {key} {record[key]!r}, expected {value!r}"
                    yield Violation(f"{name}: {told}")
    if expect.same_everywhere:
        ids = {node: {r["event_id"] for r in by_node[node]} for node in expect.seen_by}
        everything = set().union(*ids.values())
        for node in sorted(node for node, known in ids.items() if known != everything):
            count = f"{len(ids[node])} of {len(everything)}"
            yield Violation(f"{name}: {node} saw {count} different events", pending=True)


def _order_violations(node: str, records: Sequence[Record]) -> Iterator[Violation]:
    """On one node: start before the moves, the moves before complete, one complete a start."""
    open_ids: set[str] = set()
    for record in records:
        kind, event_id = record["event"], record["event_id"]
        if kind == "rebalance_start":
            open_ids.add(event_id)
        elif kind == "rebalance_complete":
            if event_id not in open_ids:
                yield Violation(f"rebalance_complete: {node} was told of one that had not started")
            open_ids.discard(event_id)
        elif kind == "partition_change" and not open_ids:
            what = record["partition_id"]
            yield Violation(f"partition_change: {node} was told of {what} outside a rebalance")
    if open_ids:
        text = f"rebalance_complete: {node} saw {len(open_ids)} rebalances start and not complete"
        yield Violation(text, pending=True)
