"""Work that follows ownership: a worker for each partition that this node is the primary of.

`on_partition_role` is told of each change of this node's own role, in order for each partition. The
worker begins when the role becomes primary, and has ended when the hook for its loss returns: a
node that leaves waits for that hook, so that the next primary begins after it.

A node that crashes or is cut off is told nothing in time. So the worker asks for each step anew:
`ck.guard()` raises where this node may not act. And as a process can be paused between the question
and the work, the storage is told the guard's epoch, and refuses one smaller than it has seen.

By hand: run three nodes, and see who writes: sqlite3 work.db 'SELECT * FROM work'. Kill the primary
of a partition with `kill -9`: after its lease another one goes on, with a greater epoch. Pause one
with `kill -STOP`, wait until its work is done by others, and wake it with `kill -CONT`: it does
nothing more in its old role.
"""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import sys
import threading
from contextlib import closing

from clusterkit import ClusterKitError, OwnershipError, PartitionRoleEvent
from clusterkit.sync import ClusterKit

log = logging.getLogger("ownership")
DATABASE = os.environ.get("DATABASE", "work.db")
PERIOD_SECONDS = float(os.environ.get("PERIOD_SECONDS", "0.5"))
STEP = """
    INSERT INTO work VALUES (:partition, :node, :epoch, 1) ON CONFLICT (partition)
    DO UPDATE SET node = :node, epoch = :epoch, steps = steps + 1 WHERE epoch <= :epoch
"""

ck = ClusterKit()


class Worker(threading.Thread):
    """Does a partition's work while this node is its primary."""

    def __init__(self, partition: str) -> None:
        super().__init__(name=f"work-{partition}", daemon=True)
        self.partition = partition
        self.told_to_end = threading.Event()

    def run(self) -> None:
        while not self.told_to_end.wait(PERIOD_SECONDS):
            try:
                with ck.guard(self.partition) as guard:
                    self.step(guard.epoch)
            except (OwnershipError, sqlite3.OperationalError) as error:
                log.warning("no step: %s", error)  # not the owner now, or a locked database

    def step(self, epoch: int) -> None:
        """One piece of work, in one transaction with the comparison of the epoch."""
        values = {"partition": self.partition, "node": ck.node_id, "epoch": epoch}
        with closing(sqlite3.connect(DATABASE, timeout=20)) as db, db:
            if db.execute(STEP, values).rowcount == 0:
                log.warning("the storage refused a step for %s: a newer epoch", self.partition)
            else:
                db.execute("INSERT INTO journal VALUES (:partition, :node, :epoch)", values)


workers: dict[str, Worker] = {}


@ck.on_partition_role
def role(event: PartitionRoleEvent) -> None:
    """Begins or ends the work for one partition."""
    log.info("%s: %s -> %s", event.partition_id, event.old_role, event.new_role)
    if event.new_role == "primary":
        worker = workers[event.partition_id] = Worker(event.partition_id)
        worker.start()
    elif (old := workers.pop(event.partition_id, None)) is not None:
        old.told_to_end.set()
        old.join()  # at most one step long, and the hook has a time-out


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(process)d] %(message)s")
    with closing(sqlite3.connect(DATABASE, timeout=20)) as db, db:
        db.execute("CREATE TABLE IF NOT EXISTS work (partition PRIMARY KEY, node, epoch, steps)")
        db.execute("CREATE TABLE IF NOT EXISTS journal (partition, node, epoch)")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ck.request_stop())
    try:
        with ck:
            ck.wait_stopped()
    except ClusterKitError as error:
        sys.exit(f"ownership: {error}")
