"""Hooks that take time: a limit for each, and an end when they are told to end.

`timeout` says how long one run may take: 600 s for partition changes, 30 s for all others, unless
you say otherwise. Past it the run has failed, and the change is owed. A newer rebalance that does
not want the change any more, and a stop, tell it to end as well. How it hears of that:

* an `async def` is cancelled. What it has started it ends itself: here a child process;
* a `def` runs in a thread, which nobody can stop. It looks at `hook_context()` between two steps,
  each of which must be short: give every blocking call a time-out of its own. One that never looks
  keeps its partition's lane closed until it ends: nothing is run for this partition meanwhile.

By hand, with FETCH_SECONDS=3: COPY_COMMAND='sleep 100' is killed after 3 s, comes again after a
pause, and is killed again. COPY_COMMAND='truncate -s 1T "$TARGET"' is quick, but no thread reads
that in 3 s. In a real service it would be rsync from $SOURCE.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

from clusterkit import (
    ClusterKit,
    ClusterKitError,
    HookErrorEvent,
    PartitionChangeEvent,
    hook_context,
)

log = logging.getLogger("timeouts")
COMMAND = os.environ.get("COPY_COMMAND", 'echo "what was in $PARTITION" > "$TARGET"')
LIMIT_SECONDS = float(os.environ.get("FETCH_SECONDS", "60"))
DATA = Path(os.environ.get("DATA") or tempfile.mkdtemp(prefix="timeouts-"))

ck = ClusterKit()


@ck.on_partition_change(mine=True, timeout=LIMIT_SECONDS, name="fetch")
async def fetch(event: PartitionChangeEvent) -> None:
    """Has a program copy the partition. It ends when this hook ends, however that comes."""
    target = {"PARTITION": event.partition_id, "TARGET": str(DATA / event.partition_id)}
    source = {"SOURCE": event.copy_from_nodes[0].host} if event.copy_from_nodes else {}
    process = await asyncio.create_subprocess_shell(
        COMMAND, env={**os.environ, **target, **source}, start_new_session=True
    )
    try:
        status = await process.wait()
    finally:
        if process.returncode is None:  # out of time, superseded, or the kit is stopping
            os.killpg(process.pid, signal.SIGKILL)  # the shell, and what it has started
            await process.wait()
    if status != 0:
        raise RuntimeError(f"copying {event.partition_id} ended with status {status}")


@ck.on_partition_change(mine=True, timeout=LIMIT_SECONDS, name="verify")
def verify(event: PartitionChangeEvent) -> None:
    """Reads back what was copied, and looks up after each megabyte."""
    context = hook_context()
    digest = hashlib.sha256()
    if not (DATA / event.partition_id).exists():
        return  # fetch has failed. The hooks behind it run all the same; the change is owed
    with (DATA / event.partition_id).open("rb") as file:
        while block := file.read(1 << 20):
            context.raise_if_cancelled()
            digest.update(block)
    log.info("verified %s: %s", event.partition_id, digest.hexdigest()[:8])


@ck.on_hook_error
def report(event: HookErrorEvent) -> None:
    """A time-out is an error like any other, of the type TimeoutError."""
    if isinstance(event.error, TimeoutError):
        log.warning("out of time: %s for %s", event.hook, event.failed_event.event_id)


async def main() -> None:
    """Runs one node until SIGTERM or SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ck.request_stop)
    async with ck:
        await ck.wait_stopped()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(process)d] %(message)s")
    try:
        asyncio.run(main())
    except ClusterKitError as error:
        sys.exit(f"timeouts: {error}")
