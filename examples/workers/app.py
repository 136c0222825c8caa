"""A cron without a leader: each job has one node that runs it, and a database that is sure of that.

Jobs belong to partitions by their names. `on_partition_role` begins one task for each partition
that this node becomes the primary of, and ends it when it is not any more. When a job is due, its
run is recorded in SQLite, which refuses twice:

* an epoch older than one it has seen of the partition. That is a node which was paused, or cut off,
  with the permission in its hand, and does not know that it was replaced;
* a second run for the same time. That is a node which took over, and repeats what the one before
  had done already.

`python -m examples.workers.app`. Settings beside CLUSTERKIT_*: DATABASE (workers.db), JOBS, how
many there are (20), and PERIOD_SECONDS, how often each is due (1).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
import sys
import time
from contextlib import closing, suppress

from clusterkit import ClusterKit, ClusterKitError, OwnershipError, PartitionRoleEvent

log = logging.getLogger("workers")
DATABASE = os.environ.get("DATABASE", "workers.db")
PERIOD_SECONDS = float(os.environ.get("PERIOD_SECONDS", "1"))
JOBS = [f"job-{i}" for i in range(int(os.environ.get("JOBS", "20")))]

SCHEMA = """
    CREATE TABLE IF NOT EXISTS epochs (partition TEXT PRIMARY KEY, epoch INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS runs (
        job TEXT, due INTEGER, node TEXT, epoch INTEGER, PRIMARY KEY (job, due)
    );
"""
RAISE_EPOCH = """
    INSERT INTO epochs VALUES (:partition, :epoch) ON CONFLICT (partition)
    DO UPDATE SET epoch = :epoch WHERE epoch <= :epoch
"""

ck = ClusterKit(replication_factor=1)  # a job has no data of its own that would need a replica


class OutdatedError(Exception):
    """The database has seen a newer epoch of the partition: somebody else runs its jobs."""


def run_what_is_due(partition: str, epoch: int) -> int:
    """Runs what is due of the partition's jobs, in one transaction; how many runs that were.

    What a job does stands here for the work: it is done in the same transaction, so it has happened
    exactly if it is recorded. For work elsewhere hand over the epoch, or (job, due) as a key.
    """
    now = int(time.time() / PERIOD_SECONDS)
    done = 0
    with closing(sqlite3.connect(DATABASE, timeout=5, isolation_level=None)) as db, db:
        db.execute("PRAGMA synchronous = NORMAL")  # with its WAL it outlives any process so
        db.execute("BEGIN IMMEDIATE")
        # First the epoch, then what there is: nothing of the owner before can come in between.
        if not db.execute(RAISE_EPOCH, {"partition": partition, "epoch": epoch}).rowcount:
            raise OutdatedError(f"the database has seen a newer epoch of {partition} than {epoch}")
        for job in JOBS:
            if ck.partition_for(job).id != partition:
                continue
            (last,) = db.execute("SELECT max(due) FROM runs WHERE job = ?", (job,)).fetchone()
            # What was missed while nobody ran it is run now.
            for due in range(now if last is None else last + 1, now + 1):
                run = (job, due, ck.node_id, epoch)
                done += db.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, ?, ?)", run).rowcount
    return done


class Worker:
    """The task for one partition."""

    def __init__(self, partition: str) -> None:
        self.partition = partition
        self.told_to_end = asyncio.Event()
        self.task = asyncio.create_task(self.work(), name=f"work for {partition}")

    async def work(self) -> None:
        while not self.told_to_end.is_set():
            try:
                # Asked for each turn: a node that is cut off is told of it too late.
                with ck.guard(self.partition) as guard:
                    await asyncio.to_thread(run_what_is_due, self.partition, guard.epoch)
            except OutdatedError as error:
                log.warning("refused: %s", error)
            except (OwnershipError, sqlite3.Error) as error:
                log.warning("not run: %s", error)  # no owner for now, or a locked database
            with suppress(TimeoutError):
                until_due = PERIOD_SECONDS - time.time() % PERIOD_SECONDS
                await asyncio.wait_for(self.told_to_end.wait(), until_due)

    async def end(self) -> None:
        """Returns when nothing runs any more: a transaction that has begun comes to its end."""
        self.told_to_end.set()
        await self.task


workers: dict[str, Worker] = {}


@ck.on_partition_role
async def role(event: PartitionRoleEvent) -> None:
    """Begins and ends the work for a partition. A node that leaves waits for this hook."""
    partition = event.partition_id
    log.info("%s: %s -> %s", partition, event.old_role, event.new_role)
    if (before := workers.pop(partition, None)) is not None:
        await before.end()
    if event.new_role == "primary":
        workers[partition] = Worker(partition)


async def main() -> None:
    """Runs one node until SIGTERM or SIGINT."""
    with closing(sqlite3.connect(DATABASE, timeout=20)) as db:
        db.execute("PRAGMA journal_mode = WAL")  # who reads waits for nobody
        db.executescript(SCHEMA)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ck.request_stop)
    async with ck:
        await ck.wait_stopped()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(process)d] %(message)s")
    try:
        asyncio.run(main())
    except (ClusterKitError, sqlite3.Error) as error:
        sys.exit(f"workers: {error}")
