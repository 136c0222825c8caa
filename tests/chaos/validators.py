"""What must hold of every recorded history: pure functions from a history to its violations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from clusterkit.core.ownership import role_in

from .history import History, Moment, Run
from .records import Record
from .stays import Stay

_NODE_KINDS = ("node_join", "node_rejoin", "node_leave")
_STEPS = ("start", "watch", "reread")


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that must not be."""

    rule: str
    who: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.who}: {self.text}"


def views(h: History) -> Iterator[Violation]:
    """A node's views are etcd's own revisions, each whole, in order, none left out by a watch."""
    for run in h.runs:
        before: Record | None = None
        for view in run.of("view"):
            if view["rev"] > h.end:
                break  # after the run had settled
            true = h.at(view["rev"])
            is_true = (true.epoch, true.rows_name, true.members)
            if (view["epoch"], view["rows"], view["members"]) != is_true:
                yield Violation("views", run.life, f"at revision {view['rev']} it saw another one")
            if before is not None and view["rev"] < before["rev"]:
                yield Violation("views", run.life, f"from {before['rev']} back to {view['rev']}")
            if before is not None and view["epoch"] < before["epoch"]:
                yield Violation("views", run.life, f"its epoch became smaller: {view['epoch']}")
            if before is not None and view["rev"] > before["rev"]:
                last = before["rev"]
                for revision, how in _steps(view, last):
                    expected = h.after(last)
                    if how == "watch" and revision != expected:
                        text = f"after {last} came {revision} and not {expected}"
                        yield Violation("views", run.life, text)
                    if how not in _STEPS:
                        text = f"revision {revision} came by neither watch nor reading"
                        yield Violation("views", run.life, text)
                    last = revision
            before = view
        if run.life in h.alive and run is _last(h, run.life):
            at = 0 if before is None else before["rev"]
            if at < h.end:
                yield Violation("views", run.life, f"it ended at {at}, etcd at {h.end}")


def epochs(h: History) -> Iterator[Violation]:
    """No epoch is ever used by two nodes for one partition, nor by two processes of a node."""
    first: dict[int, Moment] = {}
    for moment in h.moments:
        other = first.setdefault(moment.epoch, moment)
        if (other.rows_name, other.members) != (moment.rows_name, moment.members):
            text = f"epoch {moment.epoch} at revisions {other.revision} and {moment.revision}"
            yield Violation("epochs", "etcd", text)
    users: dict[tuple[int, int], str] = {}
    uses = [(run.life, r["p"], r["e"]) for run in h.runs for r in run.of("guard")]
    uses += [(r["life"], r["p"], r["e"]) for r in h.storage if r["ok"]]
    for life, partition, epoch in uses:
        user = users.setdefault((partition, epoch), life)
        if user != life:
            text = f"epoch {epoch} of partition-{partition} was used by {user} too"
            yield Violation("epochs", life, text)


def reasons(h: History) -> Iterator[Violation]:
    """Every leave has the true reason: what was done, as etcd has it. So all nodes agree."""
    for stay in h.stays.values():
        life = h.life_of.get(stay.nonce, "")
        if stay.reason == "graceful_shutdown" and stay.ended is not None:
            asked = h.asked_to_leave.get(life)
            if asked is None or asked > h.seen[stay.ended]:
                yield Violation("reasons", life, "it left gracefully, and nobody had asked it to")
    for run in h.runs:
        for hook in _news(run):
            if hook["kind"] != "node_leave":
                continue
            stay_of = h.stays.get(_nonce(hook))
            true = None if stay_of is None else _departure(h, stay_of, h.end)
            if true is None or hook["reason"] != true.reason:
                told = None if true is None else true.reason
                text = f"{hook['id']} has the reason {hook['reason']}, in truth {told}"
                yield Violation("reasons", run.life, text)


def events(h: History) -> Iterator[Violation]:
    """Of the revisions that a node applied no event is missing, none comes twice, order is kept."""
    for run in h.runs:
        expected = list(_expected(h, run))
        told = [(r["kind"], _nonce(r)) for r in _news(run) if r["rev"] <= h.end]
        if told != expected[: len(told)]:
            at = next(
                (
                    i
                    for i, pair in enumerate(zip(told, expected, strict=False))
                    if len(set(pair)) > 1
                ),
                len(expected),
            )
            text = f"event {at} was {told[at : at + 1]} and not {expected[at : at + 1]}"
            yield Violation("events", run.life, text)
        elif _to_the_end(h, run) and len(told) < len(expected):
            yield Violation("events", run.life, f"it was never told of {expected[len(told)]}")


def rebalances(h: History) -> Iterator[Violation]:
    """Each rebalance begins once and completes once, in order, and what it moves is true."""
    for run in h.runs:
        hooks = list(run.of("hook"))
        starts = [r["id"] for r in hooks if r["kind"] == "rebalance_start"]
        completes = [r["id"] for r in hooks if r["kind"] == "rebalance_complete"]
        if len(set(starts)) < len(starts):
            yield Violation("rebalances", run.life, "one began twice")
        if completes != starts[: len(completes)]:
            yield Violation("rebalances", run.life, "they did not complete in the order they began")
        roles: dict[str, str | None] = {}
        gained: set[tuple[str, str]] = set()
        for hook in hooks:
            if hook["kind"] == "partition_role":
                if hook["old_role"] != roles.get(hook["partition_id"]):
                    text = f"{hook['partition_id']}: {hook['id']} does not follow the one before"
                    yield Violation("rebalances", run.life, text)
                roles[hook["partition_id"]] = hook["new_role"]
            if hook["kind"] == "partition_change":
                _, partition, node_id, nonce, epoch = hook["id"].split("/")
                true = h.by_epoch.get(int(epoch))
                if true is None:
                    if hook["rev"] <= h.end:
                        yield Violation("rebalances", run.life, f"no such epoch: {hook['id']}")
                    continue
                row = true.rows[int(partition.removeprefix("partition-"))]
                if true.members.get(node_id) != nonce or node_id not in row:
                    yield Violation("rebalances", run.life, f"{hook['id']} never was")
                if node_id == run.node_id:
                    gained.add((partition, nonce))
        if _to_the_end(h, run):
            if len(completes) < len(starts):
                yield Violation("rebalances", run.life, "one never completed")
            last = h.at(h.end)
            for index, row in enumerate(last.rows):
                role = role_in(row, run.node_id)
                if roles.get(f"partition-{index}") != role:
                    text = f"it is {role} of partition-{index}, and was told otherwise"
                    yield Violation("rebalances", run.life, text)
                pair = f"partition-{index}", last.members.get(run.node_id, "")
                if run.node_id in row and pair not in gained:
                    text = f"it holds partition-{index}, and was never told so"
                    yield Violation("rebalances", run.life, text)


def storage(h: History) -> Iterator[Violation]:
    """No write was accepted but of the owner at its epoch, none after one of a greater epoch."""
    greatest: dict[int, int] = {}
    for write in h.storage:
        partition, epoch, life = write["p"], write["e"], write["life"]
        most = greatest.get(partition, 0)
        if write["ok"] != (epoch >= most):
            verdict = "accepted" if write["ok"] else "refused"
            text = f"partition-{partition} at {epoch} was {verdict} after {most}"
            yield Violation("storage", life, text)
        if not write["ok"]:
            continue
        greatest[partition] = max(most, epoch)
        yield from _owned(h, "storage", life, write)


def guards(h: History) -> Iterator[Violation]:
    """Nobody passes ``guard`` but the owner at its epoch, and never once its stay has ended."""
    for run in h.runs:
        seen_end: dict[str, float] = {}
        me: str | None = None
        newest, newest_at = 0, 0.0
        for r in run.records:
            if r["k"] == "view":
                newest, newest_at = r["epoch"], r["t"]
                now = r["members"].get(run.node_id)
                if me is not None and now != me:
                    seen_end[me] = r["t"]
                me = now
            if r["k"] != "guard":
                continue
            yield from _owned(h, "guards", run.life, r)
            true = h.by_epoch.get(r["e"])
            if true is None:
                continue
            if r["e"] < newest and r["at"] > newest_at:
                text = f"epoch {r['e']} after it had seen {newest}"
                yield Violation("guards", run.life, text)
            held = h.stays.get(true.members.get(run.node_id, ""))
            if held is None or held.ended is None:
                continue
            # If etcd ends a lease before its time no node can know; but then the promise holds.
            known = max(h.seen[held.ended], h.promises[held.lease] if h.ended_early(held) else 0.0)
            if held.reason != "replaced" and r["at"] > known:
                late = r["at"] - h.seen[held.ended]
                text = f"partition-{r['p']} passed {late:.3f} s after its stay had ended"
                yield Violation("guards", run.life, text)
            elif r["at"] > seen_end.get(held.nonce, float("inf")):
                text = f"partition-{r['p']} passed after it had seen the end of its stay"
                yield Violation("guards", run.life, text)


def lives(h: History) -> Iterator[Violation]:
    """No node ends by itself, or comes back when displaced, or reports a defect of ClusterKit."""
    ended = {r["life"] for r in h.done if r["what"] in ("stop", "kill")}
    began = {r["life"] for r in h.done if r["what"] == "go"}
    for life, records in h.lives.items():
        for r in records:
            if r["k"] == "failed":
                yield Violation("lives", life, r["error"])
            if r["k"] == "log" and r["defect"]:
                yield Violation("lives", life, r["text"])
            if r["k"] == "hook" and r["kind"] == "hook_error":
                yield Violation("lives", life, f"a hook failed: {r['id']}")
        stays = [s for s in h.stays.values() if h.life_of.get(s.nonce) == life]
        for stay, later in pairwise(stays):
            if stay.successor is not None and h.life_of.get(stay.successor) != life:
                text = f"its id was taken over, and it came back at revision {later.began}"
                yield Violation("lives", life, text)
        if life in began and life not in ended | h.alive:
            yield Violation("lives", life, "its process ended by itself")


RULES: Final[tuple[Callable[[History], Iterable[Violation]], ...]] = (
    views,
    epochs,
    reasons,
    events,
    rebalances,
    storage,
    guards,
    lives,
)


def validate(h: History) -> list[Violation]:
    """All violations of all rules."""
    return [violation for rule in RULES for violation in rule(h)]


def _owned(h: History, rule: str, life: str, use: Record) -> Iterator[Violation]:
    """A partition is used with an epoch at which this very process was its primary."""
    true = h.by_epoch.get(use["e"])
    node_id = life.rpartition(".")[0]
    if true is None:
        if use["e"] >> 16 <= h.end:
            yield Violation(rule, life, f"there was no epoch {use['e']}")
        return
    row = true.rows[use["p"]]
    if row[:1] != (node_id,) or h.life_of.get(true.members[node_id]) != life:
        text = f"it was not the owner of partition-{use['p']} at epoch {use['e']}"
        yield Violation(rule, life, text)


def _departure(h: History, stay: Stay, until: int) -> Stay | None:
    """The stay that lost the slot: this one or a successor that took it over; None if held."""
    while stay.ended is not None and stay.ended <= until:
        if stay.successor is None:
            return stay
        stay = h.stays[stay.successor]
    return None


def _expected(h: History, run: Run) -> Iterator[tuple[str, str]]:
    """The node events of the revisions that a run applied, from its own join on."""
    mine: set[str] = set()
    live = False
    before: int | None = None
    for r in run.records:
        match r["k"]:
            case "expect":
                mine.add(r["nonce"])
            case "view" if before is None:
                before = r["rev"]
            case "view" if before is not None and before < r["rev"] <= h.end:
                for revision, _ in _steps(r, before):
                    old, new = h.at(before).members, h.at(revision).members
                    live = live or new.get(run.node_id) in mine
                    if live:
                        yield from _changes(h, old, new, revision)
                    before = revision


def _steps(view: Record, before: int) -> list[tuple[int, str]]:
    """The revisions that a view was made of, after the one ``before``, and how each came.

    Most are of one. Several waited together for the answer to the node's own join: each was
    applied, and only the last published.
    """
    if view["how"] != "held":
        return [(view["rev"], view["how"])]
    found: list[tuple[int, str]] = []
    for revision, how in view["steps"]:
        if revision > before:  # else it is older than a reading, and was passed over
            found.append((revision, how))
            before = revision
    return found


def _changes(
    h: History, old: Mapping[str, str], new: Mapping[str, str], until: int
) -> Iterator[tuple[str, str]]:
    arrivals: list[tuple[str, str]] = []
    for node_id in sorted(old.keys() | new.keys()):
        was, now = old.get(node_id), new.get(node_id)
        if was == now:
            continue
        if was is not None and _departure(h, h.stays[was], until) is not None:
            yield "node_leave", was
        if now is not None:
            arrivals.append(("node_rejoin" if h.stays[now].again else "node_join", now))
    yield from arrivals


def _news(run: Run) -> list[Record]:
    return [r for r in run.of("hook") if r["kind"] in _NODE_KINDS]


def _nonce(hook: Record) -> str:
    """The registration that a node event tells of: the last part of its id."""
    return str(hook["id"].split("/")[2])


def _last(h: History, life: str) -> Run:
    return [run for run in h.runs if run.life == life][-1]


def _to_the_end(h: History, run: Run) -> bool:
    """Whether the run was at work when everything had settled."""
    return run.life in h.alive and run is _last(h, run.life)
