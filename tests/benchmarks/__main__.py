"""Measures, prints a table, and writes ``build/figures.json``; fails if a target is missed."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from clusterkit.testing import EmbeddedEtcd

from . import departures, fencing, outage
from .common import Figure

OUT = Path("build/figures.json")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make figures ARGS=...", description=__doc__)
    parser.add_argument("--ttl", default="2,5,10", help="TTLs in seconds, with commas between")
    parser.add_argument("--kills", type=int, default=5, help="kills at each TTL")
    parser.add_argument("--stops", type=int, default=30)
    parser.add_argument("--kits", type=int, default=20, help="kits that are cut off at once")
    parser.add_argument("--cuts", type=int, default=5, help="how often each is cut off")
    parser.add_argument("--outage", type=float, default=60.0, help="seconds without etcd")
    parser.add_argument("--only", default="", help="of: kill,stop,cut,spin,outage")
    given = parser.parse_args()
    logging.disable()  # the library warns of all that is done to it here
    figures: list[Figure] = []
    with EmbeddedEtcd() as etcd:
        ttls = [int(ttl) for ttl in given.ttl.split(",")]
        parts: dict[str, Callable[[], list[Figure]]] = {
            "kill": lambda: departures.killed(etcd.endpoint, ttls, given.kills),
            "stop": lambda: [departures.graceful(etcd.endpoint, given.stops)],
            "cut": lambda: [fencing.cut_off(etcd.endpoint, given.kits, given.cuts)],
            "spin": lambda: [fencing.spinning(etcd.endpoint)],
            "outage": lambda: outage.outage(given.outage),
        }
        chosen = given.only.split(",") if given.only else list(parts)
        for name in chosen:
            for figure in parts[name]():
                figures.append(figure)
                verdict = {True: "ok", False: "MISSED", None: ""}[figure.good]
                print(f"{figure.name:<40} {figure.value}")
                print(f"{'':<40} target {figure.target}: {verdict}", flush=True)
    OUT.parent.mkdir(exist_ok=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    report = {"machine": machine, "figures": [asdict(figure) for figure in figures]}
    OUT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"({machine}; {OUT})")
    return int(any(figure.good is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
