"""A node of a benchmark in a process of its own: told its options, then what to do by stdin.

It says on stdout, one line each, what happens and when by ``time.monotonic()``, which is the
same in all processes of a machine (on Linux).
"""

from __future__ import annotations

import json
import os
import sys
import time

from clusterkit import PartitionChangeEvent
from clusterkit.etcd.store import EtcdStore
from clusterkit.sync import ClusterKit


def say(*words: object) -> None:
    # One write: the threads of hooks speak too.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def listen_in() -> None:
    """Says when each keep-alive is sent and answered, and of which lease."""
    keep_alive = EtcdStore.keep_alive

    def timed(self: EtcdStore, lease_id: int, *, timeout: float) -> int:
        begun = time.monotonic()
        ttl = keep_alive(self, lease_id, timeout=timeout)
        say("kept", begun, time.monotonic(), lease_id)
        return ttl

    EtcdStore.keep_alive = timed  # type: ignore[method-assign]  # a method cannot be listened to


def main() -> None:
    options = json.loads(sys.argv[1])
    spin_seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    kit = ClusterKit(**options)
    kit.on_fenced(lambda _: say("fenced", time.monotonic()))
    kit.on_unfenced(lambda _: say("back", time.monotonic()))

    @kit.on_node_rejoin
    def rejoined(event: object) -> None:
        say("back", time.monotonic())

    if spin_seconds:
        listen_in()

        @kit.on_partition_change
        def spin(event: PartitionChangeEvent) -> None:
            end = time.monotonic() + spin_seconds
            say("spins", time.monotonic())
            while time.monotonic() < end:
                sum(range(1000))
            say("spun", time.monotonic())

    for line in sys.stdin:
        match line.strip():
            case "start":
                kit.start()
                say("started", time.monotonic())
            case "stop":
                say("stopping", time.monotonic())
                kit.stop()
                say("stopped", time.monotonic())


if __name__ == "__main__":
    main()
