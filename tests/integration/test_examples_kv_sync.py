"""``examples/kv_sync``: ten processes, a kill, writes, a rejoin; and what the quorum is for."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from .example_programs import SECONDS, Make, Program, making, settled

# Up to ten processes, and a lease that must run out, twice.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def programs(etcd_endpoint: str, tmp_path: Path) -> Iterator[Make]:
    # Two leases that end together, on a machine that is too busy, are more than W - 1: so not the
    # shortest ones.
    settings = {"partitions": 32, "replication_factor": 3, "lease_ttl": 10}
    with making(etcd_endpoint, tmp_path, **settings) as make:
        yield make


class Client:
    """Keeps what the newest value of each key is, and holds the answers to it."""

    def __init__(self, nodes: Sequence[Program], at_once: int = 16) -> None:
        self.nodes = nodes
        self.values: dict[str, str] = {}
        self.partitions: dict[str, str] = {}
        self.epoch = 0
        self.next = itertools.count()
        self.at_once = asyncio.Semaphore(at_once)
        self.http = httpx.AsyncClient(timeout=10, follow_redirects=True)

    async def ask(self, method: str, key: str, value: str = "") -> httpx.Response:
        """One request after another, at one node after the other, until one of them answers."""
        seen: object = None
        async with self.at_once, asyncio.timeout(SECONDS):
            while True:
                node = self.nodes[next(self.next) % len(self.nodes)]
                url = f"http://{node.address}/keys/{quote(key, safe='')}"
                try:
                    answer = await self.http.request(method, url, content=value)
                except httpx.HTTPError as error:
                    seen = error  # it may be the one that was killed
                else:
                    if answer.status_code in (200, 404):
                        return answer
                    assert answer.status_code == 503, answer.text
                    seen = answer.text
                assert seen
                await asyncio.sleep(0.05)

    async def write(self, keys: Sequence[str], value: str) -> None:
        async def one(key: str) -> None:
            answer = await self.ask("PUT", key, f"{value} {key}")
            assert answer.status_code == 200
            self.values[key] = f"{value} {key}"
            self.partitions[key] = answer.json()["partition"]
            self.epoch = max(self.epoch, answer.json()["version"][0])

        await asyncio.gather(*map(one, keys))

    async def read_all(self, step: int = 1, but: str | None = None) -> None:
        """Each key (or each second, third …) is read once, and must be the newest at once."""

        async def one(key: str, value: str) -> None:
            answer = await self.ask("GET", key)
            assert (answer.status_code, answer.json().get("value")) == (200, value), answer.text

        keys = [key for key in self.values if self.partitions[key] != but][::step]
        await asyncio.gather(*(one(key, self.values[key]) for key in keys))


class Traffic:
    """Counts up in some keys, all the time, and holds each read to what was answered before."""

    def __init__(self, client: Client, keys: int) -> None:
        self.client = client
        self.keys = [f"counter-{i}" for i in range(keys)]
        self.over = asyncio.Event()
        self.reads = self.writes = 0

    async def run(self) -> None:
        await asyncio.gather(*map(self.count, self.keys))

    async def count(self, key: str) -> None:
        written = 0
        while not self.over.is_set():
            # Two reads beside a write: they may see it or not, yet never less than was there.
            writing = asyncio.create_task(self.client.ask("PUT", key, str(written + 1)))
            for _ in range(2):
                answer = await self.client.ask("GET", key)
                if answer.status_code == 404:
                    assert written == 0, (key, written)
                else:
                    assert int(answer.json()["value"]) in (written, written + 1), answer.text
                self.reads += 1
            assert (await writing).status_code == 200
            written += 1
            self.writes += 1
        assert (await self.client.ask("GET", key)).json()["value"] == str(written)


async def settle(*nodes: Program) -> None:
    await asyncio.to_thread(settled, *nodes)


def test_ten_nodes_a_kill_more_writes_and_a_rejoin(programs: Make) -> None:
    nodes = programs("kv_sync", *(f"n{i}" for i in range(10)))
    keys = [f"key-{i}" for i in range(1000)]
    for node in nodes:
        node.start()
    settled(*nodes)

    async def scenario() -> Program:
        client = Client(nodes)
        traffic = Traffic(client, keys=2)
        async with client.http, asyncio.TaskGroup() as tasks:
            tasks.create_task(traffic.run())
            await client.write(keys, "first")
            # The holders of one partition, whose newest keys are not touched from here on.
            partition = client.partitions[keys[-1]]
            first, second, third = await asyncio.to_thread(
                holders_of, partition, client.epoch, nodes
            )
            first.end(signal.SIGKILL)
            # Its lease still runs, nobody has copied anything: reads go on, and so do the writes
            # whose primary it is not; the others wait.
            await client.read_all(step=4, but=partition)
            await client.write(keys[0:300], "second")
            await settle(*(node for node in nodes if node is not first))
            await client.write(keys[200:400], "third")
            first.start()
            await client.write(keys[300:400], "fourth")
            await settle(*nodes)
            await client.read_all(but=partition)
            # That partition has not been read, so no read has repaired it. Its other two holders go
            # as well, one after the other: what is left has come by copies, those of the first too.
            second.end(signal.SIGKILL)
            await settle(*(node for node in nodes if node is not second))
            third.end(signal.SIGKILL)
            await client.read_all()
            traffic.over.set()
        assert traffic.writes > 20
        return first

    first = asyncio.run(scenario())
    first.says(r"away for \S+: 0 partitions cleared")
    assert first.found(r"copied partition-\d+, [1-9]\d* keys")
    # A copy that has to wait is no error of anybody; nothing else raises.
    errors = {error for node in nodes for error in node.found(r"\n(\w+(?:Error|Exception)\b)")}
    assert errors <= {"NotYetError"}, errors


def holders_of(partition: str, epoch: int, nodes: Sequence[Program]) -> list[Program]:
    """Those who answer for a partition."""
    path = f"/partitions/{partition}/any?epoch={epoch}"
    return [node for node in nodes if node.ask("GET", path)[0] == 200]


def test_a_quorum_answers_with_what_is_newest(programs: Make) -> None:
    n1, n2, n3, n4 = nodes = programs("kv_sync", "n1", "n2", "n3", "n4")
    n1.start()
    settled(n1)
    detail = n1.answers((503, ...), "PUT", "/keys/colour", "blue")["detail"]
    assert detail.startswith("2 of 1 holders must answer"), detail
    for node in (n2, n3, n4):
        node.start()
    settled(*nodes)

    def written(value: str) -> tuple[str, int, int]:
        """Writes the key at whichever node takes it: its partition and version."""
        for node in itertools.cycle(nodes):
            status, answer = node.ask("PUT", "/keys/colour", value)
            assert status in (0, 200, 307, 503), answer
            if status == 200:
                return answer["partition"], *answer["version"]
        raise AssertionError

    partition, epoch, count = written("blue")
    path = f"/partitions/{partition}/colour?epoch={epoch}"
    holders = [node for node in nodes if node.ask("GET", path)[0] == 200]
    assert len(holders) == 3
    (bystander,) = (node for node in nodes if node not in holders)
    assert bystander.ask("GET", path)[0] == 503

    def put_at(node: Program, more: int, value: str) -> None:
        """What a primary sends that dies before it has sent it to all."""
        entry = json.dumps([epoch, count + more, value])
        headers = {"Content-Type": "application/json"}
        assert node.ask("PUT", path, entry, headers) == (200, True)

    # Two of three have it, so any two that answer include one that has it; the third is repaired.
    put_at(holders[0], 100, "red")
    put_at(holders[1], 100, "red")
    assert bystander.ask("GET", "/keys/colour")[1]["value"] == "red"
    holders[2].answers((200, [epoch, count + 100, "red"]), "GET", path)
    # One has it: who asks may or may not see it. Whoever does makes it so that all after him do.
    put_at(holders[2], 200, "green")
    seen = [n.ask("GET", "/keys/colour")[1]["value"] for _ in range(100) for n in nodes]
    assert seen == sorted(seen, key=["red", "green"].index)
    assert seen[-1] == "green"
    # A late write of an older version changes nothing, and one of an older epoch is refused.
    put_at(holders[0], 50, "late")
    assert bystander.ask("GET", "/keys/colour")[1]["value"] == "green"
    assert holders[0].ask("GET", path.replace(str(epoch), "1"))[0] == 503

    # Paused for longer than its lease, and changed meanwhile. When it wakes, it answers at once,
    # with what the others say, and what it held is gone.
    paused = holders[0]
    others = [node for node in nodes if node is not paused]
    paused.pause()
    settled(*others)
    nodes = others
    written("black")
    paused.wake()
    status, answer = paused.ask("GET", "/keys/colour")
    assert (status, answer.get("value")) in ((200, "black"), (503, None)), answer
    paused.says(r"away for \S+: [1-9]\d* partitions cleared")
    nodes = [*others, paused]
    settled(*nodes)

    # A deletion is a version like any other: it outlives a copy and a repair.
    for node in itertools.cycle(nodes):
        if node.ask("DELETE", "/keys/colour")[0] == 200:
            break
    assert [node.ask("GET", "/keys/colour")[0] for node in nodes] == [404] * 4
    n1.end()
    nodes = [n2, n3, n4]
    settled(*nodes)
    assert [node.ask("GET", "/keys/colour")[0] for node in nodes] == [404] * 3
