"""What a node costs while etcd is down, and how soon it is back afterwards."""

from __future__ import annotations

import os
import time
from pathlib import Path

from clusterkit.testing import EmbeddedEtcd

from .common import Figure, NodeProcess, new_prefix, options, rest

CPU_SHARE = 0.02
RECOVERY_SECONDS = 3.0
MEMORY_MIB = 5.0


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def outage(seconds: float) -> list[Figure]:
    """etcd is stopped for so long, and started again. Linux only: it reads /proc."""
    with EmbeddedEtcd() as etcd, NodeProcess(options(etcd.endpoint, new_prefix(), "a")) as node:
        node.start()
        rest(2.0)
        etcd.stop()
        begun, cpu = time.monotonic(), _cpu_seconds(node.pid)
        # The first seconds load what an outage needs (tracebacks, error texts): no growth.
        settle = min(15.0, seconds / 4)
        rest(settle)
        memory = _resident_mib(node.pid)
        rest(seconds - settle)
        share = (_cpu_seconds(node.pid) - cpu) / (time.monotonic() - begun)
        growth = _resident_mib(node.pid) - memory
        etcd.start()
        up = time.monotonic()
        back = node.when("back") - up
    return [
        Figure(
            f"etcd down for {seconds:g} s: CPU of a node",
            f"{share * 100:.2f} % of a core",
            f"under {CPU_SHARE * 100:g} %",
            share < CPU_SHARE,
        ),
        Figure(
            f"etcd down for {seconds:g} s: memory",
            f"{growth:+.2f} MiB after the first {settle:g} s",
            f"under {MEMORY_MIB:g} MiB",
            growth < MEMORY_MIB,
        ),
        Figure(
            "etcd serves again -> an owner again",
            f"{back:.2f} s",
            f"{RECOVERY_SECONDS:g} s",
            back <= RECOVERY_SECONDS,
        ),
    ]
