"""``deploy/docker`` as it is: the image is built, the composition broken; no key is lost.

No registry is asked: images.py tells what stands in for it.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import secrets
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.integration.support import eventually

from .images import missing
from .servers import CommandError, docker, free_port, run

MOST_MEGABYTES = 150
SLOWLY = 90.0
"""Seconds for what must happen when a lease has to end first, or programs to start."""

# Once on a new machine a base image is made as well.
patiently = pytest.mark.timeout(600, method="signal")


@pytest.fixture(scope="module")
def compose() -> list[str]:
    """The command: Compose's second release is a part of docker, the first its own program."""
    for command in (["docker", "compose"], ["docker-compose"]):
        try:
            run(*command, "version")
        except (CommandError, FileNotFoundError):
            continue
        return command
    raise missing("there is no docker compose; tools/docker_engine.sh installs one")


class Composition:
    """The services of compose.yaml under a name of their own."""

    nodes = ("node-0", "node-1", "node-2")

    def __init__(self, command: Sequence[str], context: Path, environ: dict[str, str]) -> None:
        name = f"clusterkit-test-{secrets.token_hex(4)}"
        file = context / "deploy" / "docker" / "compose.yaml"
        self._command = [*command, "-p", name, "-f", str(file)]
        self._ports = {node: free_port() for node in self.nodes}
        self._environ = {k: v for k, v in os.environ.items() if not k.startswith("CLUSTERKIT_")}
        self._environ |= environ
        for i, node in enumerate(self.nodes):
            self._environ[f"NODE_{i}_PORT"] = str(self._ports[node])

    def run(self, *args: str, seconds: float = 240) -> str:
        """What Compose says; of what it says on the way only the end, and if it fails."""
        command = [*self._command, *args]
        done = subprocess.run(
            command,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, (args, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout.strip()

    def container(self, service: str) -> str:
        return self.run("ps", "-q", service) or self.run("ps", "--all", "-q", service)

    def inspect(self, service: str, form: str) -> str:
        return docker("inspect", "--format", form, self.container(service))

    def wait_healthy(self, *services: str) -> None:
        """Waits until the checks of compose.yaml itself say so."""
        for service in services:
            eventually(
                lambda s=service: self.inspect(s, "{{.State.Health.Status}}") == "healthy",  # type: ignore[misc]
                SLOWLY,
            )

    def log(self) -> str:
        return self.run("logs", "--no-color")

    # What clients do.

    def ask(self, node: str, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        """One request; 0 if nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self._ports[node], timeout=10)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            return 0, repr(error)
        finally:
            connection.close()

    def put(self, node: str, key: str, value: str) -> None:
        eventually(lambda: self.ask(node, "PUT", f"/keys/{key}", value.encode())[0] == 200, SLOWLY)

    def read(self, node: str, key: str) -> str:
        """Waits while nobody serves the key; whatever is said then is the answer."""

        def answered() -> tuple[int, Any] | None:
            answer = self.ask(node, "GET", f"/keys/{key}")
            return None if answer[0] in (0, 421, 503) else answer

        status, found = eventually(answered, SLOWLY) or (0, None)
        assert status == 200, (node, key, status, found)
        value: str = found["value"]
        return value

    def settle(self, *members: str) -> None:
        """Waits until these are the members, and all of them have all their copies."""
        wanted = (200, {"members": sorted(members), "copies_to_fetch": 0})
        eventually(lambda: all(self.ask(m, "GET", "/status") == wanted for m in members), SLOWLY)


class Writer:
    """Writes all the time, as a client that keeps to one node, and remembers what was taken."""

    def __init__(self, composition: Composition, node: str, name: str) -> None:
        self.taken: dict[str, int] = {}
        self._composition, self._node, self._name = composition, node, name
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, name="writer")

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _write(self) -> None:
        for number in itertools.count():
            if self._ended.is_set():
                return
            key = f"{self._name}-{number % 40}"
            status, _ = self._composition.ask(
                self._node, "PUT", f"/keys/{key}", str(number).encode()
            )
            if status == 200:
                self.taken[key] = number
            else:
                self._ended.wait(0.05)

    def check(self, node: str) -> None:
        """What was taken is there, or a later write that was refused: it may have happened."""
        assert len(self.taken) == 40
        for key, number in self.taken.items():
            assert int(self._composition.read(node, key)) >= number, key


@pytest.fixture(scope="module")
def composition(
    compose: list[str], base: str, context: Path, members_image: str
) -> Iterator[Composition]:
    image = f"clusterkit-test-quickstart:{secrets.token_hex(4)}"
    variables = {"BASE_IMAGE": base, "ETCD_IMAGE": members_image, "QUICKSTART_IMAGE": image}
    # The builder that is a part of the engine: the other one is a plugin, and not everywhere.
    made = Composition(compose, context, {**variables, "DOCKER_BUILDKIT": "0"})
    try:
        made.run("build", "node-0")
        made.run("up", "--detach", "--no-build")
        made.wait_healthy(*made.nodes)
        yield made
        print(made.log()[-20_000:])  # for the report of a test that failed
    finally:
        made.run("down", "--volumes", "--timeout", "5")
        docker("rmi", "--force", image)
        docker("image", "prune", "--force", "--filter", "label=clusterkit-stage=build")


@patiently
def test_the_image_is_small_and_its_program_no_root(composition: Composition, base: str) -> None:
    image = composition.inspect("node-0", "{{.Image}}")
    sizes = [int(docker("image", "inspect", "--format", "{{.Size}}", i)) for i in (base, image)]
    over = (sizes[1] - sizes[0]) / 1e6
    print(f"the base has {sizes[0] / 1e6:.0f} MB, the image {over:.0f} MB more")
    assert over < MOST_MEGABYTES
    assert composition.inspect("node-0", "{{.Config.User}}") == "10001:10001"
    assert composition.inspect("node-0", "{{.HostConfig.ReadonlyRootfs}}") == "true"
    found = composition.run(
        "exec", "-T", "node-0", "python3", "-c", "import os; print(os.getuid())"
    )
    assert found == "10001"


@patiently
def test_nothing_is_lost(composition: Composition) -> None:
    nodes = composition.nodes
    composition.settle(*nodes)
    values = {f"key-{i}": f"first {i}" for i in range(100)}
    for i, (key, value) in enumerate(values.items()):
        composition.put(nodes[i % 3], key, value)

    with Writer(composition, "node-0", "killed") as first:
        composition.run("kill", "node-1")
        composition.settle("node-0", "node-2")
        check(composition, values, "node-0", "node-2")
        for i in range(0, 100, 2):
            values[f"key-{i}"] = f"second {i}"
            composition.put("node-2", f"key-{i}", f"second {i}")
        composition.run("start", "node-1")
        composition.settle(*nodes)
    first.check("node-1")
    check(composition, values, "node-1")

    with Writer(composition, "node-1", "etcd") as second:
        # The one that every node names first.
        composition.run("kill", "etcd-0")
        for i in range(1, 100, 2):
            values[f"key-{i}"] = f"third {i}"
            composition.put(nodes[i % 3], f"key-{i}", f"third {i}")
        check(composition, values, *nodes)
        composition.run("start", "etcd-0")
        composition.wait_healthy("etcd-0")
        composition.settle(*nodes)
    second.check("node-2")

    for node in nodes:
        others = [n for n in nodes if n != node]
        with Writer(composition, others[0], f"while-{node}") as writer:
            composition.run("stop", node)
            assert composition.inspect(node, "{{.State.ExitCode}}") == "0"
            composition.settle(*others)
            composition.run("start", node)
            composition.settle(*nodes)
        writer.check(node)
    # No process is left of those that took the writes: all that is there was copied, by hooks.
    check(composition, values, *nodes)
    assert "Traceback" not in composition.log()


def check(composition: Composition, values: dict[str, str], *nodes: str) -> None:
    for node in nodes:
        assert {key: composition.read(node, key) for key in values} == values, node
