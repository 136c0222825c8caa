"""One run: traffic and faults in two lanes beside each other, then calm, then the validators.

The seed decides what is done in which order; how long etcd and the nodes take for it, it cannot.
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .faults import MEMBER_FAULTS, NODE_FAULTS, Fault
from .history import History, load
from .nodes import until
from .records import now
from .validators import Violation, validate
from .world import NODES, SECONDS, World

_FEWEST = 3
_FIRST = 5
_SETTLE_SECONDS = 90.0
_PAUSE = {"members": 6.0, "nodes": 0.5}


@dataclass
class Outcome:
    """What became of a run."""

    seed: int
    injected: Counter[str] = field(default_factory=Counter)
    observed: Counter[str] = field(default_factory=Counter)
    traffic: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)

    def table(self) -> str:
        """The end of the run, for people."""
        lines = [f"{'fault':<16}{'injected':>10}{'observed':>10}"]
        lines += [f"{k:<16}{n:>10}{self.observed[k]:>10}" for k, n in sorted(self.injected.items())]
        totals = self.injected.total(), self.observed.total()
        lines.append(f"{'in all':<16}{totals[0]:>10}{totals[1]:>10}")
        for title, counted in (("traffic", self.traffic), ("checked", self.checked)):
            told = ", ".join(f"{n} {k}" for k, n in sorted(counted.items()))
            lines.append(f"{title}: {told}")
        lines.append(f"violations: {len(self.violations)} (seed {self.seed})")
        lines += [f"  {v}" for v in self.violations[:50]]
        return "\n".join(lines)


def run(folder: Path, seed: int, seconds: float, tell: Callable[[str], None] = print) -> Outcome:
    """Runs for so many seconds, with the time for settling on top."""
    outcome = Outcome(seed)
    world = World(folder)
    try:
        for i in range(_FIRST):
            world.join(f"n{i}")
        for life in list(world.lives.values()):
            world.joined(life)
        until_at = now() + seconds
        lanes = [
            threading.Thread(
                # A run that is interrupted does not wait for them.
                target=_lane,
                args=(lane, name, until_at, world, outcome, tell),
                daemon=True,
            )
            for name, lane in (("members", _members), ("nodes", _nodes))
        ]
        for thread in lanes:
            thread.start()
        for thread in lanes:
            thread.join()
        tell("waiting for everything to settle")
        if (left := world.settle(_SETTLE_SECONDS)) is not None:
            outcome.violations.append(Violation("settle", "all", f"they never settled: {left}"))
        if world.truth.failure is not None:
            raise world.truth.failure
    finally:
        world.close()
    history = load(folder)
    outcome.violations += validate(history)
    outcome.checked += count(history)
    return outcome


def count(h: History) -> Counter[str]:
    """How much there was to check."""
    kinds = {"view": "views", "hook": "events", "guard": "guards"}
    counted = Counter(kinds[r["k"]] for run in h.runs for r in run.records if r["k"] in kinds)
    counted["revisions"] = len(h.moments)
    counted["writes accepted"] = sum(r["ok"] for r in h.storage)
    counted["writes refused"] = sum(not r["ok"] for r in h.storage)
    counted["leases ended early by etcd"] = sum(map(h.ended_early, h.stays.values()))
    return counted


def _lane(
    step: Callable[[World, random.Random], tuple[str, Fault]],
    name: str,
    until_at: float,
    world: World,
    outcome: Outcome,
    tell: Callable[[str], None],
) -> None:
    rng = random.Random(f"{outcome.seed}/{name}")
    try:
        while now() < until_at:
            what, act = step(world, rng)
            began = now()
            done = act(world, rng)
            seconds = now() - began
            if what.startswith("traffic "):
                outcome.traffic[what.removeprefix("traffic ")] += 1
            else:
                outcome.injected[what] += 1
                outcome.observed[what] += done
            tell(f"{began:.1f} {what}: {'done' if done else 'NOT OBSERVED'} in {seconds:.1f} s")
            time.sleep(rng.random() * _PAUSE[name])
    except Exception:
        outcome.violations.append(Violation("run", name, traceback.format_exc()))


def _members(world: World, rng: random.Random) -> tuple[str, Fault]:
    name = rng.choice(sorted(MEMBER_FAULTS))
    return name, MEMBER_FAULTS[name]


def _nodes(world: World, rng: random.Random) -> tuple[str, Fault]:
    if len(world.lives) < _FEWEST or (len(world.lives) < NODES and rng.random() < 0.2):
        return "traffic join", _join
    if rng.random() < 0.15:
        return "traffic leave", _leave
    if rng.random() < 0.1:
        return "traffic stall", _stall
    name = rng.choice(sorted(NODE_FAULTS))
    return name, NODE_FAULTS[name]


def _join(world: World, rng: random.Random) -> bool:
    node_id = rng.choice([n for i in range(NODES) if (n := f"n{i}") not in world.lives])
    return world.joined(world.join(node_id))


def _leave(world: World, rng: random.Random) -> bool:
    life = world.lives.pop(rng.choice(sorted(world.lives)))
    world.joined(life)
    life.leave()
    ended = until(lambda: not life.running, SECONDS)
    life.kill()
    if rng.random() < 0.5:
        world.join(life.node_id)
    return bool(ended)


def _stall(world: World, rng: random.Random) -> bool:
    """SIGSTOP for less than the TTL: nothing may come of it."""
    life = world.lives[rng.choice(sorted(world.lives))]
    life.pause()
    time.sleep(rng.random())
    life.resume()
    return True
