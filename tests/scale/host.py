"""A process that hosts many kits. Told what to do by lines of JSON on stdin; answers each by one.

It ends with its standard input, whatever becomes of the process that started it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from clusterkit import PartitionChangeEvent, StoreError
from clusterkit.sync import ClusterKit

_PAUSE = threading.Event()  # never set
_MOST_FAILED_STARTS = 100
_SWITCH_SECONDS = 0.1


class Host:
    """The kits of one process.

    Args:
        options: What all of them have in common.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._kits: dict[str, ClusterKit] = {}
        self._events: Counter[str] = Counter()
        self._failed_starts = 0

    def start(self, node_ids: list[str]) -> dict[str, Any]:
        """Starts kits, one after another; returns when all have joined."""
        for node_id in node_ids:
            self._kits[node_id] = self._started(node_id)
        return {"started": len(node_ids)}

    def stop(self, node_ids: list[str]) -> dict[str, Any]:
        """Stops kits gracefully, two at a time."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda node_id: self._kits.pop(node_id).stop(timeout=60.0), node_ids))
        return {"stopped": len(node_ids)}

    def wait(self, nodes: int, seconds: float) -> dict[str, Any]:
        """Until every kit sees so many members, owes nothing and is in the same epoch.

        Returns:
            The epoch, and the hashes of all rows.
        """
        deadline = time.monotonic() + seconds
        while not (epochs := self._at_rest(nodes)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not at rest within {seconds} s")
            _PAUSE.wait(0.1)
        return {"epochs": sorted(epochs), "at": time.monotonic()}

    def rows(self) -> dict[str, Any]:
        """What all kits here say of who holds what, as hashes: one if they agree."""
        return {"hashes": sorted({_rows_hash(kit) for kit in self._kits.values()})}

    def usage(self) -> dict[str, Any]:
        """What this process has used so far, and the events that its hooks were told of."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        resident = int(pages) * os.sysconf("SC_PAGE_SIZE")
        return {
            "cpu": used.ru_utime + used.ru_stime,
            "resident": resident,
            "threads": threading.active_count(),
            "events": dict(self._events),
            "failed_starts": self._failed_starts,
            "divergences": sum(kit.stats().divergences for kit in self._kits.values()),
        }

    def _started(self, node_id: str) -> ClusterKit:
        kit = ClusterKit(**{**self._options, "node_id": node_id, "address": f"{node_id}.test:1"})
        kit.on_node_join(lambda e: self._count("node_join"))
        kit.on_node_rejoin(lambda e: self._count("node_rejoin"))
        kit.on_node_leave(lambda e: self._count("node_leave"))
        kit.on_rebalance_complete(lambda e, d: self._count("rebalance_complete"))

        @kit.on_partition_change(mine=True)
        async def change(event: PartitionChangeEvent) -> None:
            self._count("partition_change")

        while True:
            try:
                kit.start()
            except StoreError:
                # With so many on few cores a connection may starve. A pod would come again.
                self._failed_starts += 1
                if self._failed_starts > _MOST_FAILED_STARTS:
                    raise
            else:
                return kit

    def _count(self, kind: str) -> None:
        self._events[kind] += 1

    def _at_rest(self, nodes: int) -> set[int] | None:
        epochs: set[int] = set()
        for kit in self._kits.values():
            view = kit.cluster
            if len(view.nodes) != nodes or not kit.readiness().ready or kit.stats().owed:
                return None
            epochs.add(kit.partition("partition-0").epoch)
        return epochs if len(epochs) == 1 else None


def _rows_hash(kit: ClusterKit) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for partition in kit.cluster.partitions:
        digest.update(" ".join(node.id for node in partition.nodes).encode())
    return digest.hexdigest()


def main() -> None:
    logging.disable()
    # Dozens of runners wait for one interpreter here, and each would ask for it 200 times a second:
    # that takes two fifths of the processor when all are busy. A pod has one.
    sys.setswitchinterval(_SWITCH_SECONDS)
    host = Host(json.loads(sys.argv[1]))
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = getattr(host, name)(*arguments)
        except Exception as e:
            answer = {"error": f"{type(e).__name__}: {e}"}
        print(json.dumps(answer), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
