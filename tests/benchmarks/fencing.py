"""Leases: fenced in time when cut off, and kept when the interpreter is busy."""

from __future__ import annotations

import queue
import time
from itertools import pairwise
from statistics import median

from clusterkit import KitState
from clusterkit.core.keys import Keys
from clusterkit.sync import ClusterKit

from .common import BareWatch, Figure, NodeProcess, new_prefix, options, start_all, stop_all, until
from .proxy import Proxies

P0 = "partition-0"
CUT_TTL = 2
DEFAULT_TTL = 10
SPINNING = 50
SPIN_SECONDS = 20.0


def cut_off(endpoint: str, count: int, rounds: int) -> Figure:
    """How long before a cut-off node's key disappears the node has stopped to own anything."""
    proxies = Proxies(endpoint)
    ways = [proxies.new() for _ in range(count)]
    prefixes = [new_prefix() for _ in range(count)]
    kits = [
        ClusterKit(**options(way.endpoint, prefix, "cut", lease_ttl=CUT_TTL, connect_timeout=2))
        for way, prefix in zip(ways, prefixes, strict=True)
    ]
    watch = BareWatch(endpoint, b"/figures/")
    keys = [Keys.of(prefix, "c").node("cut") for prefix in prefixes]
    margins: list[float] = []
    try:
        start_all(kits)
        for _ in range(rounds):
            until(
                lambda: all(k.state is KitState.JOINED and k.is_primary(P0) for k in kits),
                "all own something again",
            )
            watch.deleted.clear()
            fenced: dict[int, float] = {}
            for way in ways:
                way.cut()

            def look(fenced: dict[int, float] = fenced) -> bool:
                for i, kit in enumerate(kits):
                    if i not in fenced and not kit.is_primary(P0):
                        fenced[i] = time.monotonic()  # it was so before that
                return len(fenced) == count and all(key in watch.deleted for key in keys)

            until(look, "all are fenced, and etcd has dropped them")
            margins += [watch.deleted[key] - fenced[i] for i, key in enumerate(keys)]
            for way in ways:
                way.heal()
    finally:
        for way in ways:
            way.heal()
        stop_all(kits)
        watch.close()
        proxies.close()
    late = sum(margin <= 0 for margin in margins)
    return Figure(
        "cut off: fenced before its key goes",
        f"{len(margins) - late} of {len(margins)} trials at TTL {CUT_TTL} s; "
        f"margin min {min(margins) * 1000:.0f} ms, median {median(margins) * 1000:.0f} ms",
        "every trial",
        late == 0,
    )


def spinning(endpoint: str) -> Figure:
    """Keep-alives beside hooks that compute all the time, at the default TTL."""
    given = options(
        endpoint,
        new_prefix(),
        "spins",
        lease_ttl=DEFAULT_TTL,
        partitions=SPINNING,
        replication_factor=1,
        max_concurrent_hooks=SPINNING,
    )
    sent: list[float] = []
    answered: list[float] = []
    began: list[float] = []
    leases: set[str] = set()
    spun = 0
    with NodeProcess(given, SPIN_SECONDS) as node:
        node.tell("start")
        deadline = time.monotonic() + SPIN_SECONDS * 4
        while spun < SPINNING and time.monotonic() < deadline:
            try:
                said = node.said.get(timeout=1.0)
            except queue.Empty:
                continue
            match said[0]:
                case "spins":
                    began.append(float(said[1]))
                case "spun":
                    spun += 1
                case "kept":
                    sent.append(float(said[1]))
                    answered.append(float(said[2]))
                    leases.add(said[3])
    interval = DEFAULT_TTL / 3
    late = [max(0.0, b - a - interval) for a, b in pairwise(sent)]
    lost = len(leases) - 1
    # Proven is a lease until its TTL is over, less a tenth, counted from the sending.
    proven = DEFAULT_TTL * 0.9
    doubted = sum(b - a > proven for a, b in zip(sent, answered[1:], strict=False))
    answers = [b - a for a, b in zip(sent, answered, strict=True)]
    return Figure(
        f"{len(began)} hooks spin for {SPIN_SECONDS:g} s at TTL {DEFAULT_TTL} s",
        f"leases lost {lost}, in doubt {doubted}; {len(sent)} keep-alives, sent late by median "
        f"{median(late):.2f} s, max {max(late):.2f} s; answered within median "
        f"{median(answers):.2f} s, max {max(answers):.2f} s",
        "0 leases lost",
        lost == doubted == 0 and len(began) == SPINNING,
    )
