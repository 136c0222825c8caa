"""``examples/kv_async``: answers before the replicas have it, and what that costs, and what not."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .example_programs import Make, Program, making, settled, until

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def programs(etcd_endpoint: str, tmp_path: Path) -> Iterator[Make]:
    with making(etcd_endpoint, tmp_path, partitions=32, replication_factor=2, lease_ttl=5) as make:
        yield make


def write(value: str, keys: list[str], *via: Program) -> dict[str, str]:
    """Writes each key at whichever node takes it; which one that was."""
    took: dict[str, str] = {}

    def all_written() -> bool:
        for key in keys:
            for node in via:
                if key not in took and node.ask("PUT", f"/keys/{key}", value)[0] == 200:
                    took[key] = node.node_id
        return len(took) == len(keys)

    until(all_written, lambda: f"nobody takes {set(keys) - took.keys()}\n{via[0].text}")
    return took


def read(expected: str, keys: list[str], *via: Program) -> None:
    """Each key at its primary; what is answered on the way must be right."""
    left = set(keys)

    def all_read() -> bool:
        for key in sorted(left):
            for node in via:
                status, answer = node.ask("GET", f"/keys/{key}")
                assert status in (200, 307, 503), (key, status, answer)
                if status == 200:
                    assert answer["value"] == expected, (key, answer)
                    left.discard(key)
        return not left

    until(all_read, lambda: f"nobody tells {left}\n{via[0].text}")


def passed_on(*nodes: Program) -> None:
    for node in nodes:
        node.answers((200, 0), "GET", "/lag")


def test_kv_async(programs: Make) -> None:
    n1, n2, n3 = nodes = programs("kv_async.app", "n1", "n2", "n3")
    for node in nodes:
        node.start()
    settled(*nodes)
    keys = [f"key-{i}" for i in range(60)]
    primaries = write("first", keys, *nodes)
    assert set(primaries.values()) == {"n1", "n2", "n3"}
    passed_on(*nodes)

    # A replica that is paused holds nobody up; when it wakes within its lease it gets what it
    # missed. (Here both survivors write, and each is the replica of what the paused one has.)
    of_n1 = [key for key, node in primaries.items() if node == "n1"]
    n2.pause()
    try:
        for key in of_n1:
            assert n1.ask("PUT", f"/keys/{key}", "second")[0] == 200
        assert n1.ask("GET", "/lag")[1] > 0
    finally:
        n2.wake()
    passed_on(n1)
    settled(*nodes)
    for key in of_n1:
        answers = [node.ask("GET", f"/keys/{key}?stale=true") for node in nodes]
        values = [answer["value"] for status, answer in answers if status == 200]
        assert values == ["second", "second"], answers
    read("second", of_n1, *nodes)

    # Passed on is kept: a kill loses none of it, and the node that comes back has it again.
    rest = [key for key in keys if key not in of_n1]
    n1.end(signal.SIGKILL)
    settled(n2, n3)
    read("second", of_n1, n2, n3)
    read("first", rest, n2, n3)
    write("third", keys, n2, n3)
    n1.start()
    settled(*nodes)
    read("third", keys, *nodes)

    # A node that stops passes on what it has before it goes, so nothing needs to be waited for.
    write("fourth", keys, *nodes)
    n3.end(signal.SIGTERM)
    settled(n1, n2)
    read("fourth", keys, n1, n2)
    for node in nodes:
        assert node.found("Traceback") == [] or node.found("nobody has all of"), node.text


def test_what_was_not_passed_on_is_lost(programs: Make) -> None:
    """The failure at the end of its README."""
    nodes = programs("kv_async.app", "n1", "n2", "n3")
    for node in nodes:
        node.start(DELAY_SECONDS=10)
    settled(*nodes)
    primaries = write("first", [f"key-{i}" for i in range(20)], *nodes)
    passed_on(*nodes)
    keys = [key for key, node in primaries.items() if node == "n1"][:1]
    assert keys
    n1, *others = nodes
    assert n1.ask("PUT", f"/keys/{keys[0]}", "second")[0] == 200
    n1.end(signal.SIGKILL)
    settled(*others)
    read("first", keys, *others)
