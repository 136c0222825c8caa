"""The recorded history of a run, and what etcd's own revisions say, worked out from the beginning.

Nothing here is taken from a node: stays and their ends are read off the raw revisions, and the
assignment of each revision is computed anew with ``clusterkit.core``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from clusterkit.core import membership
from clusterkit.core.membership import State
from clusterkit.core.ownership import rows_of
from clusterkit.core.placement import Row
from clusterkit.ports import WatchBatch

from .records import Record, Tail, rows_hash
from .stays import KEYS, Stay, Stays
from .truth import decode


@dataclass(frozen=True, slots=True)
class Moment:
    """The cluster as of one revision."""

    revision: int
    epoch: int
    members: Mapping[str, str]
    rows: Sequence[Row]
    rows_name: str


@dataclass(frozen=True, slots=True)
class Run:
    """One start of a kit, in one life of a node: its records in their order."""

    node_id: str
    life: str
    records: Sequence[Record]

    def of(self, kind: str) -> Iterator[Record]:
        return (r for r in self.records if r["k"] == kind)


@dataclass
class History:
    """Everything that was recorded.

    Attributes:
        truth: Each revision of the prefix with the time at which the runner saw it.
        lives: The records of each process, by its name, ``node.number``.
        storage: What the storage decided, in its order.
        done: What the runner did to nodes.
        alive: The lives that ran when the run had settled.
    """

    truth: Sequence[tuple[float, WatchBatch]]
    lives: Mapping[str, Sequence[Record]]
    storage: Sequence[Record] = ()
    done: Sequence[Record] = ()
    alive: frozenset[str] = frozenset()
    stays: dict[str, Stay] = field(init=False, default_factory=dict)
    moments: list[Moment] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        state, stays = State(0, 0), Stays()
        cached: tuple[tuple[object, ...], Sequence[Row], str] = ((), (), rows_hash(()))
        for _, batch in self.truth:
            stays.feed(batch)
            state, _ = membership.step(KEYS, state, batch)
            nodes = (state.config, *(m for _, m in sorted(state.members.items())))
            if nodes != cached[0]:
                rows = rows_of(state)
                cached = nodes, rows, rows_hash(rows)
            members = {node_id: m.nonce for node_id, m in state.members.items()}
            self.moments.append(Moment(batch.revision, state.epoch, members, *cached[1:]))
        self.stays = stays.all

    @property
    def end(self) -> int:
        """The newest revision that was recorded."""
        return self.moments[-1].revision if self.moments else 0

    @cached_property
    def revisions(self) -> list[int]:
        return [m.revision for m in self.moments]

    def at(self, revision: int) -> Moment:
        """The cluster as of a revision, which need not be one of the prefix."""
        index = bisect_right(self.revisions, revision)
        if index:
            return self.moments[index - 1]
        return Moment(0, membership.epoch_of(0, 0), {}, (), rows_hash(()))

    def after(self, revision: int) -> int | None:
        """The revision of the prefix that follows."""
        index = bisect_right(self.revisions, revision)
        return self.revisions[index] if index < len(self.revisions) else None

    @cached_property
    def by_epoch(self) -> dict[int, Moment]:
        """The first moment of each epoch."""
        found: dict[int, Moment] = {}
        for moment in self.moments:
            found.setdefault(moment.epoch, moment)
        return found

    @cached_property
    def seen(self) -> dict[int, float]:
        """When each revision was certainly there: the first that anybody saw of it."""
        times = {batch.revision: t for t, batch in self.truth}
        for records in self.lives.values():
            for r in records:
                if r["k"] == "view" and r["rev"] in times:
                    times[r["rev"]] = min(times[r["rev"]], r["t"])
        return times

    @cached_property
    def life_of(self) -> dict[str, str]:
        """Which life asked for each registration, by its nonce."""
        return {
            r["nonce"]: name
            for name, records in self.lives.items()
            for r in records
            if r["k"] == "expect"
        }

    @cached_property
    def asked_to_leave(self) -> dict[str, float]:
        """When each life was asked to leave."""
        return {r["life"]: r["t"] for r in self.done if r["what"] == "stop"}

    @cached_property
    def promises(self) -> dict[int, float]:
        """Until when etcd had promised, before it ended, that each lease would live."""
        ends = {s.lease: self.seen[s.ended] for s in self.stays.values() if s.ended is not None}
        found: dict[int, float] = {}
        for records in self.lives.values():
            for r in records:
                if r["k"] == "renewed" and r["at"] < ends.get(r["lease"], float("inf")):
                    found[r["lease"]] = max(found.get(r["lease"], 0.0), r["at"] + r["ttl"])
        return found

    def ended_early(self, stay: Stay) -> bool:
        """Whether etcd broke its promise, as releases before 3.5.13 do around an election."""
        expired = stay.ended is not None and stay.reason == "health_check_failure"
        return expired and self.seen[stay.ended or 0] < self.promises.get(stay.lease, 0.0)

    @cached_property
    def runs(self) -> list[Run]:
        """Every start of a kit."""
        found: list[Run] = []
        for name, records in self.lives.items():
            starts = [i for i, r in enumerate(records) if r["k"] == "starting"]
            for first, last in pairwise([*starts, len(records)]):
                found.append(Run(name.rpartition(".")[0], name, records[first:last]))
        return found


def load(folder: Path) -> History:
    """The history that a run has left in a folder."""
    done = Tail(folder / "done.jsonl").read()
    end = next((r for r in reversed(done) if r["k"] == "end"), {"alive": ()})
    return History(
        truth=[(r["t"], decode(r)) for r in Tail(folder / "truth.jsonl").read()],
        lives={
            path.name.removeprefix("node-").removesuffix(".jsonl"): Tail(path).read()
            for path in sorted(folder.glob("node-*.jsonl"))
        },
        storage=Tail(folder / "storage.jsonl").read(),
        done=[r for r in done if r["k"] == "done"],
        alive=frozenset(end["alive"]),
    )
