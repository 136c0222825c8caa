"""Measures the kit beside its peers, prints a table, and writes ``build/bench/results.json``.

A missed target is reported; only with ``--check`` is it an error.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache
from pathlib import Path

from clusterkit.testing import EmbeddedEtcd

from . import (
    admin,
    blocked,
    chart,
    children,
    dispatch,
    interest,
    latency,
    lookup,
    one_join,
    placement,
)
from .common import Row

OUT = Path("build/bench")
FAMILIES = ("placement", "dispatch", "interest", "latency", "blocked", "admin")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--only", default="", help=f"of: {','.join(FAMILIES)}")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, rougher figures")
    parser.add_argument("--check", action="store_true", help="a missed target is an error")
    given = parser.parse_args()
    quick: bool = given.quick
    logging.disable()  # the library warns of all that is done to it here
    found: list[Row] = []
    with ExitStack() as stack:

        @cache
        def etcd() -> str:
            return stack.enter_context(EmbeddedEtcd()).endpoint

        families: dict[str, Callable[[], Iterable[Row]]] = {
            "placement": lambda: _placement(quick),
            "dispatch": lambda: dispatch.rows(etcd(), 1 if quick else 5),
            "interest": lambda: interest.rows(3 if quick else 9),
            "latency": lambda: latency.rows(etcd(), 100 if quick else 500),
            "blocked": lambda: blocked.rows(etcd(), *((50, 2) if quick else (300, 15))),
            "admin": lambda: admin.rows(etcd(), *((300, 30) if quick else (3000, 200))),
        }
        for name in given.only.split(",") if given.only else FAMILIES:
            for row in families[name]():
                found.append(row)
                _show(row)
    OUT.mkdir(parents=True, exist_ok=True)
    results = OUT / "results.json"
    results.write_text(json.dumps([asdict(row) for row in found], indent=2) + "\n")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    picture = OUT / "results.svg"
    picture.write_text(chart.svg(found, machine))
    print(f"({machine}; {results}, {picture})")
    return int(given.check and any(row.met is False for row in found))


def _placement(quick: bool) -> Iterator[Row]:
    yield from placement.rows(3 if quick else 9)
    yield from lookup.rows(30 if quick else 200)
    yield from one_join.rows(30 if quick else 100)
    yield from children.rows(5 if quick else 21)


def _show(row: Row) -> None:
    verdict = {True: "met", False: "MISSED", None: ""}[row.met]
    print(
        f"{row.work:<84} {row.ours:>10.4g} {row.peer:>10.4g} {row.unit:<9} "
        f"{row.ratio:>6.2f}  {row.target or 'no target':<18} {verdict}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
