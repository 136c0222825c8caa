"""Work that may be done twice and counts once: `event_id` is the key.

An event is delivered at least once: again after its hook has raised, even if that was after all the
work. The id of a change is the same on each delivery, and on every node. So there are two ways:

* put the id into the same transaction as the work. Not before it (a crash in between: never done),
  not after it (a crash in between: done twice);
* let the work name what it makes by the id, so that doing it again changes nothing.

Here all nodes of a machine share one database, in which each move is counted once although every
node sees it, and one directory, from which another program sends announcements.

By hand: run two nodes with no directory `outbox`. Each change is counted, then its announcement
fails, and the change comes again: `done before`. `mkdir outbox`, and look at what is right all the
time: sqlite3 moves.db 'SELECT sum(moves) FROM counts; SELECT count(*) FROM done'
"""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from clusterkit import ClusterKitError, PartitionChangeEvent, hook_context
from clusterkit.sync import ClusterKit

log = logging.getLogger("idempotent")
DATABASE = os.environ.get("DATABASE", "moves.db")
OUTBOX = Path(os.environ.get("OUTBOX", "outbox"))

ck = ClusterKit()


def database() -> closing[sqlite3.Connection]:
    """A connection for one hook: several run at once, each in a thread."""
    return closing(sqlite3.connect(DATABASE, timeout=20))


def prepare() -> None:
    """Makes the tables, if no other node has."""
    with database() as db, db:
        db.execute("CREATE TABLE IF NOT EXISTS done (event_id TEXT PRIMARY KEY)")
        db.execute("CREATE TABLE IF NOT EXISTS counts (node TEXT PRIMARY KEY, moves INTEGER)")


@ck.on_partition_change(retries=1, name="count")
def count(event: PartitionChangeEvent) -> None:
    """Counts a move, once; then announces it, maybe twice, with one announcement."""
    with database() as db, db:  # one transaction: both or neither
        new = db.execute("INSERT OR IGNORE INTO done VALUES (?)", (event.event_id,)).rowcount == 1
        if new:
            db.execute(
                "INSERT INTO counts VALUES (?, 1) ON CONFLICT DO UPDATE SET moves = moves + 1",
                (event.copy_to_node.id,),
            )
    context = hook_context()
    log.info(
        "%s %s (run %d%s)",
        "counted" if new else "done before:",
        event.event_id,
        context.attempt,
        ", delivered again" if context.replayed else "",
    )
    name = event.event_id.replace("/", ":")
    (OUTBOX / name).write_text(f"{event.copy_to_node.id} has {event.partition_id}\n")


def main() -> None:
    """Runs one node until SIGTERM or SIGINT."""
    prepare()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ck.request_stop())
    with ck:
        ck.wait_stopped()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(process)d] %(message)s")
    try:
        main()
    except ClusterKitError as error:
        sys.exit(f"idempotent: {error}")
