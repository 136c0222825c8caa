"""The programs of ``examples/hooks``, each really run, with the failure that it is about."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from .example_programs import SECONDS, Make, Program, making, until
from .support import REPOSITORY

# Up to three processes beside a server, with databases on a disk that others write to as well.
pytestmark = pytest.mark.timeout(180)

PROGRAMS = REPOSITORY / "examples" / "hooks"
PARTITIONS = 4
MANY_PARTITIONS = 32
"""So many that each of three nodes has some, and not all: where they come to lie is by chance."""


@pytest.fixture
def programs(etcd_endpoint: str, tmp_path: Path) -> Iterator[Make]:
    settings = {"partitions": PARTITIONS, "replication_factor": 2, "lease_ttl": 2}
    with making(etcd_endpoint, tmp_path, **settings) as make:
        yield make


def as_json(value: object) -> dict[str, Any]:
    """For ``ask``: this as the body."""
    return {"body": json.dumps(value), "headers": {"Content-Type": "application/json"}}


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database, timeout=SECONDS)) as db:
        return db.execute(query).fetchall()


def test_there_is_a_test_for_each_program() -> None:
    names = {path.stem for path in PROGRAMS.glob("*.py")}
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert names
    assert names <= tested
    readme = (PROGRAMS / "README.md").read_text()
    assert names == {Path(name).stem for name in re.findall(r"\]\((\w+\.py)\)", readme)}


def test_node_id(programs: Make) -> None:
    """For each copy one node fetches, those that it names give, and the others do nothing."""
    n1, n2, n3 = nodes = programs(
        "hooks.node_id", "n1", "n2", "n3", CLUSTERKIT_PARTITIONS=MANY_PARTITIONS
    )
    n1.start().says("rebalance complete")
    for newcomer in (n2, n3):
        newcomer.start().says("this node has joined: it is one of")
        newcomer.says("rebalance complete")
    n1.says("rebalance complete", 3)

    gives = r"give (partition_change/\S+)"
    fetches = r"fetch (partition_change/\S+) from (\S+)"
    expected = {
        (event_id, source)
        for node in nodes
        for event_id, source_ids in node.found(fetches)
        for source in source_ids.split(",")
        if source != "nobody"
    }
    assert {event_id.split("/")[2] for event_id, _ in expected} == {"n2", "n3"}
    for node in nodes:
        targets = {event_id.split("/")[2] for event_id, _ in node.found(fetches)}
        assert targets == {node.node_id}
        wanted = {event_id for event_id, source in expected if source == node.node_id}
        # A node that comes to it only when the target has all already, names those who hold it.
        certain = {event_id for event_id in wanted if event_id.split("/")[2] == "n2"}
        node.says(gives, max(1, len(certain)) if wanted else 0)
        assert certain <= set(node.found(gives)) <= wanted

    n2.end(signal.SIGTERM)
    n1.says("n2 is gone: graceful_shutdown")
    n3.end(signal.SIGKILL)
    n1.says("n3 is gone: health_check_failure")
    n1.end()
    assert not n1.found("n1 is gone")
    assert n1.found("Traceback") == []


def test_errors(programs: Make, tmp_path: Path) -> None:
    (n1, n2) = programs("hooks.errors", "n1", "n2")
    missing = tmp_path / "missing"
    n1.start(SNAPSHOTS=missing, DEPARTURES=tmp_path / "nowhere" / "departures.log")
    # The volume is not there: two retries, then owed, and the cluster is degraded.
    n1.says("hook fetch failed, run 3: FileNotFoundError", PARTITIONS)
    n1.says("owed: partition-0: FileNotFoundError.*; partition-3: FileNotFoundError")
    n1.says("the cluster is degraded, for the hooks")

    # It comes, with one file that is broken: no retries help against that.
    staged = tmp_path / "staged"
    staged.mkdir()
    (staged / "partition-0.json").write_text("oops")
    (staged / "partition-1.json").write_text('{"colour": "blue"}')
    staged.rename(missing)
    n1.says("loaded partition-1: 1 entries")
    n1.says("owed: partition-0: JSONDecodeError[^;]*\n")
    assert n1.found("run 2: JSONDecodeError") == []

    # A leave that cannot be noted down is in the log, and is no failure of the hook.
    n2.start(SNAPSHOTS=missing).says("rebalance complete")
    n2.end()
    n1.says("the leave of n2 is not in ")
    assert n1.found("hook note failed") == []

    repaired = tmp_path / "repaired"
    repaired.write_text('{"a": "1", "b": "2"}')
    repaired.replace(missing / "partition-0.json")
    n1.says("loaded partition-0: 2 entries")
    n1.says("owed: nothing")
    n1.says("the cluster is healthy, for the hooks")
    n1.end()


def test_timeouts(programs: Make, tmp_path: Path) -> None:
    (n1,) = programs("hooks.timeouts", "n1")
    script, pids, data = (tmp_path / name for name in ("copy.sh", "pids", "data"))
    data.mkdir()

    def command(text: str) -> None:
        changed = tmp_path / "changed"
        changed.write_text(text)
        changed.replace(script)

    command(f"echo $$ >> {pids}\nexec sleep 600")
    n1.start(COPY_COMMAND=f"exec sh {script}", FETCH_SECONDS=0.5, DATA=data)
    # The time is up, and what the hooks have started is gone.
    n1.says("out of time: fetch for partition_change/", PARTITIONS)
    started = [int(line) for line in pids.read_text().split()]
    assert len(started) >= PARTITIONS
    until(lambda: not any(map(alive, started[:PARTITIONS])), lambda: f"they live: {started}")

    # A file that no thread reads in half a second: the thread ends because it looks up.
    command('test $PARTITION != partition-0 || exec truncate -s 200G "$TARGET"\necho > "$TARGET"')
    n1.says("out of time: verify for partition_change/partition-0/")
    n1.says(r"verified partition-[1-3]: \w+", PARTITIONS - 1)
    command('rm -f "$TARGET"; echo data > "$TARGET"')
    n1.says(r"verified partition-0: \w+")
    n1.end()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_idempotent(programs: Make, tmp_path: Path) -> None:
    """Seen by two nodes, delivered again and again, counted once."""
    nodes = programs("hooks.idempotent", "n1", "n2")
    database, outbox = tmp_path / "moves.db", tmp_path / "outbox"
    # The announcement fails after the count is committed: the hook runs twice, and comes again.
    for node in nodes:
        node.start(DATABASE=database, OUTBOX=outbox)
        node.says(r"done before: partition_change/\S+ \(run 2", PARTITIONS)
    nodes[0].says(r"done before: partition_change/\S+ \(run 1, delivered again\)", PARTITIONS)
    outbox.mkdir()

    def announced() -> bool:
        done = {event_id for (event_id,) in rows(database, "SELECT event_id FROM done")}
        return {name.name.replace(":", "/") for name in outbox.iterdir()} == done

    until(announced, lambda: nodes[0].text + nodes[1].text)
    for node in nodes:
        node.end()
    done = rows(database, "SELECT event_id FROM done")
    (moves,) = rows(database, "SELECT sum(moves) FROM counts")[0]
    counted = [event_id for node in nodes for event_id in node.found(r" counted (\S+)")]
    assert moves == len(done) == len(counted) == len(set(counted)) >= 2 * PARTITIONS
    assert announced()


def test_ownership(programs: Make, tmp_path: Path) -> None:
    many = 16  # not one node's all, and not too much work for a disk
    n1, n2 = programs("hooks.ownership", "n1", "n2", CLUSTERKIT_PARTITIONS=many)
    database = tmp_path / "work.db"
    with closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA journal_mode = WAL")  # a process that is paused must lock nobody out

    def owned(node: Program) -> int:
        """How many partitions it works on, by the newest role that it told of each."""
        roles: dict[str, str] = dict(node.found(r"(partition-\d+): \w+ -> (\w+)"))
        return list(roles.values()).count("primary")

    def working(*node_ids: str) -> Callable[[], bool]:
        """Whether all partitions are worked on, by these nodes and nobody else."""

        def so() -> bool:
            found = rows(database, "SELECT partition, node FROM work")
            return len(found) == many and {node for _, node in found} == set(node_ids)

        return so

    def settle(*node_ids: str) -> None:
        until(working(*node_ids), lambda: f"{rows(database, 'SELECT * FROM work')}\n{n1.text}")

    for node in (n1, n2):
        node.start(DATABASE=database, PERIOD_SECONDS=0.2)
    for node in (n1, n2):
        node.says("rebalance complete")
    settle("n1", "n2")
    n2.end(signal.SIGKILL)
    settle("n1")
    n2.start(DATABASE=database, PERIOD_SECONDS=0.2)
    settle("n1", "n2")
    # Paused for longer than its lease, in the middle of its steps: it has the permission, and has
    # not written yet. Only the storage can know that this came too late.
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")  # from here on nobody's step comes to an end
        until(lambda: n1.has_open(database) >= owned(n1) > 0, lambda: n1.text)
        n1.pause()
    settle("n2")
    n1.wake()
    n1.says("the storage refused a step for partition-")
    settle("n1", "n2")
    n1.end(signal.SIGTERM)
    settle("n2")
    n2.end(signal.SIGTERM)
    assert n1.found("Traceback") == n2.found("Traceback") == []

    seen: dict[str, tuple[int, str]] = {}
    for partition, node, epoch in rows(database, "SELECT * FROM journal ORDER BY rowid"):
        before, owner = seen.get(partition, (0, node))
        assert epoch >= before, (partition, node)
        assert epoch > before or node == owner, (partition, node)
        seen[partition] = epoch, node
    assert len(seen) == many


def test_rejoin(programs: Make) -> None:
    """Killed and back, then paused and back: what a node tells is never old."""
    n1, n2, n3 = nodes = programs(
        "hooks.rejoin", "n1", "n2", "n3", CLUSTERKIT_PARTITIONS=MANY_PARTITIONS
    )
    for node in nodes:
        node.start()
    settled(*nodes)
    for node in nodes:
        node.says("ready: all")
    keys = [f"key-{i}" for i in range(30)]

    def write(value: str | None, *via: Program) -> None:
        left = set(keys)

        def all_written() -> bool:
            for key in sorted(left):
                if any(node.ask("PUT", f"/keys/{key}", **as_json(value))[0] == 200 for node in via):
                    left.discard(key)
            return not left

        until(all_written, lambda: f"nobody takes {left}")

    def read(expected: str | None, *via: Program) -> None:
        """Each key at its primary; whatever is answered on the way must be right."""
        left = set(keys)

        def all_read() -> bool:
            for key in sorted(left):
                for node in via:
                    status, answer = node.ask("GET", f"/keys/{key}")
                    assert status in (0, 200, 421, 503), (node.node_id, key, status, answer)
                    if status == 200:
                        assert answer == {"value": expected}, (node.node_id, key, answer)
                        left.discard(key)
            return not left

        until(all_read, lambda: f"nobody tells {left}")

    write("first", *nodes)
    read("first", *nodes)
    n3.end(signal.SIGKILL)
    settled(n1, n2)
    write("second", n1, n2)
    # Now each has everything. One is paused while the other one comes back.
    n1.pause()
    settled(n2)
    n3.start().says("away for .*: 0 partitions are cleared")
    settled(n2, n3)
    read("second", n2, n3)
    write(None, n2, n3)
    n1.wake()
    read(None, *nodes)
    n1.says(f"away for .*: {MANY_PARTITIONS} partitions are cleared")
    settled(*nodes)
    # It is back with fewer partitions than it had, and nothing is left of the others.
    copies = [
        n1.ask("GET", f"/partitions/partition-{index}?epoch={2**60}")
        for index in range(MANY_PARTITIONS)
    ]
    assert {status for status, _ in copies} == {200, 404}
    assert [copy for status, copy in copies if status == 200 and copy] == []
    for node in nodes:
        node.end()


def settled(*nodes: Program) -> None:
    """They are ready, and see each other and nobody else."""
    members = sorted(node.node_id for node in nodes)
    for node in nodes:
        node.answers((200, {"members": members}), "GET", "/ready")


def test_circuit_breaker(programs: Make) -> None:
    n1, n2 = programs("hooks.circuit_breaker", "n1", "n2")
    for node in (n1, n2):
        node.start(COOL_DOWN_SECONDS=0.5)
    for node in (n1, n2):
        node.answers((200, {"members": ["n1", "n2"]}), "GET", "/ready")
    assert n1.ask("POST", "/orders", **as_json("tea")) == (200, {"number": 1})
    # One of two is no majority.
    n2.end(signal.SIGKILL)
    reasons = n1.answers((503, ...), "POST", "/orders", **as_json("coffee"))["detail"]
    assert "only 1 of 2 nodes are healthy" in reasons
    assert n1.ask("GET", "/orders")[0] == 200
    n2.start(COOL_DOWN_SECONDS=0.5)
    n1.answers((200, ...), "POST", "/orders", **as_json("milk"))
    assert n1.says(r"(critical|healthy), unhealthy: \S+, breaker open: True", 2) == [
        "critical",
        "healthy",
    ]
    n2.end()
    n1.end()


def test_metrics(programs: Make) -> None:
    well, broken = programs("hooks.metrics", "n1", "n2")

    def values(node: Program) -> dict[str, float]:
        status, text = node.ask("GET", "/metrics")
        lines = text.splitlines() if status == 200 else []
        lines = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {series: float(value) for series, value in lines}

    def shows(node: Program, **wanted: float) -> None:
        def shown() -> bool:
            found = values(node)
            return all(found.get(series, 0) == value for series, value in wanted.items())

        until(shown, lambda: f"{values(node)} is not {wanted}\n{node.text}")

    def of(node: Program, hook: str, outcome: str) -> str:
        labels = f'cluster="default",hook="{hook}",kind="partition_change",node="{node.node_id}"'
        return f'clusterkit_hook_duration_seconds_count{{{labels},outcome="{outcome}"}}'

    def owed(node: Program) -> str:
        labels = f'cluster="default",node="{node.node_id}"'
        return f"clusterkit_partition_changes_owed{{{labels}}}"

    copies = 'app_moves_total{kind="copy",reason="node_join"}'
    well.start()
    shows(well, **{copies: PARTITIONS, of(well, "fetch", "ok"): PARTITIONS}, app_ready=1)
    broken.start(BROKEN=1)
    shows(broken, **{owed(broken): PARTITIONS, of(broken, "fetch", "ok"): 0}, app_ready=0)
    error = of(broken, "fetch", "error")
    until(lambda: values(broken).get(error, 0) > PARTITIONS, lambda: f"{values(broken)}")
    assert copies not in values(broken)
    shows(well, **{of(well, "fetch", "error"): 0, owed(well): 0}, app_ready=1)
    broken.end()
    shows(well, **{'app_leaves_total{reason="graceful_shutdown"}': 1})
    primary = 'clusterkit_partitions{cluster="default",node="n1",role="primary"}'
    shows(well, **{primary: PARTITIONS})
    well.end()
