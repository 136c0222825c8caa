"""Three etcd servers in containers: how they are made, broken and mended, and what etcd says.

Whatever is to be known of etcd is asked with its own tool, etcdctl, and never with the package
under test.
"""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
from base64 import b64decode as b64
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from clusterkit.testing.embedded import find_etcd
from tests.integration.support import eventually

PROMPTLY = 40.0
"""Seconds for what must happen; two busy cores are no failure."""

Network: TypeAlias = Literal["peers", "all"]

_COMMAND_SECONDS = 60.0


class CommandError(Exception):
    """A command of docker or etcd ended with an error, or not in time."""


def run(*command: str | Path, seconds: float = _COMMAND_SECONDS) -> str:
    """What a command says."""
    name = " ".join(map(str, command))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as e:
        raise CommandError(f"{name}: no end within {seconds} s") from e
    if done.returncode:
        raise CommandError(f"{name}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def docker(*args: str | Path) -> str:
    return run("docker", *args)


def engine_problem() -> str | None:
    """Why there is no Docker engine to test with; None if one answers."""
    if shutil.which("docker") is None:
        return "there is no docker command"
    try:
        run("docker", "info", seconds=20.0)
    except CommandError as e:
        return f"no Docker engine answers ({str(e).splitlines()[-1]})"
    return None


def build_image(tag: str) -> None:
    """An image with etcd and nothing else: no registry is needed for it."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(find_etcd(), Path(folder) / "etcd")
        (Path(folder) / "Dockerfile").write_text(
            'FROM scratch\nCOPY etcd /etcd\nENTRYPOINT ["/etcd"]\n'
        )
        docker("build", "--quiet", "--tag", tag, folder)


def free_port() -> int:
    """A port that stays free while its container is down: none that the kernel gives to others."""
    while True:
        port = random.randint(20_000, 30_000)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


@dataclass(frozen=True)
class Status:
    """What one server says of itself; ``leader`` is 0 if it knows none."""

    member_id: int
    leader: int
    term: int


@dataclass(frozen=True)
class Server:
    """One member of etcd, in its container."""

    number: int
    container: str
    port: int

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def peer(self) -> str:
        return f"peer{self.number}"


@dataclass(frozen=True)
class Security:
    """TLS on every connection, with the files of a folder: ``ca``, ``server`` and ``client``."""

    folder: Path

    @property
    def server_args(self) -> list[str]:
        # Tokens live for as short as can be, so that they run out all the time.
        args = ["--bcrypt-cost=4", "--auth-token-ttl=1", "--client-cert-auth"]
        args.append("--peer-client-cert-auth")
        for kind in ("", "peer-"):
            args += [
                f"--{kind}cert-file=/certs/server.pem",
                f"--{kind}key-file=/certs/server.key",
                f"--{kind}trusted-ca-file=/certs/ca.pem",
            ]
        return args

    @property
    def client_args(self) -> list[str]:
        files = {"cacert": "ca.pem", "cert": "client.pem", "key": "client.key"}
        return [f"--{flag}={self.folder / name}" for flag, name in files.items()]


class Servers:
    """Three etcd servers in containers, as a context manager; what it makes it removes.

    They meet on one network, and their client ports are published from another one on 127.0.0.1:
    so a server can be cut off from its peers alone, or from everybody.
    """

    def __init__(self, image: str, security: Security | None = None) -> None:
        self._image = image
        self._security = security
        self._user: str | None = None
        self._name = f"clusterkit-test-{secrets.token_hex(4)}"
        self._exits = ExitStack()
        self._networks: dict[str, str] = {}
        self._member_ids: dict[int, Server] = {}
        self.all: list[Server] = []

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            for kind, args in (("peers", ["--internal"]), ("clients", [])):
                network = docker("network", "create", *args, f"{self._name}-{kind}")
                exits.callback(docker, "network", "rm", network)
                self._networks[kind] = network
            for number in range(3):
                server = self._create(number)
                exits.callback(docker, "rm", "--force", "--volumes", server.container)
                self.all.append(server)
                docker(
                    *("network", "connect", "--alias", server.peer),
                    *(self._networks["peers"], server.container),
                )
                if self._security is not None:
                    docker("cp", self._security.folder, f"{server.container}:/certs")
            exits.callback(self._print_logs)
            self.start(*self.all)
            for server in self.all:
                status = self.status(server)
                assert status is not None
                self._member_ids[status.member_id] = server
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def _create(self, number: int) -> Server:
        port = free_port()
        scheme = "http" if self._security is None else "https"
        container = docker(
            *("create", "--name", f"{self._name}-{number}"),
            *("--network", self._networks["clients"], "--publish", f"127.0.0.1:{port}:2379"),
            self._image,
            f"--name=m{number}",
            "--data-dir=/data",
            f"--listen-client-urls={scheme}://0.0.0.0:2379",
            f"--advertise-client-urls={scheme}://127.0.0.1:{port}",
            f"--listen-peer-urls={scheme}://0.0.0.0:2380",
            f"--initial-advertise-peer-urls={scheme}://peer{number}:2380",
            f"--initial-cluster={','.join(f'm{i}={scheme}://peer{i}:2380' for i in range(3))}",
            f"--initial-cluster-token={self._name}",
            # The kernel keeps what it has written: no test here takes the power away.
            "--unsafe-no-fsync",
            *(() if self._security is None else self._security.server_args),
        )
        return Server(number, container, port)

    def _print_logs(self) -> None:
        """For the report of a test that failed."""
        for server in self.all:
            last = "\n".join(self.log(server).splitlines()[-25:])
            print(f"--- the end of the log of {server.peer}\n{last}")

    def log(self, server: Server) -> str:
        """All that a server has logged."""
        command = ["docker", "logs", server.container]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        return done.stdout

    # -- faults ------------------------------------------------------------------------------

    def kill(self, *servers: Server) -> None:
        """SIGKILL; returns when they are dead."""
        containers = [s.container for s in servers]
        docker("kill", "--signal", "KILL", *containers)
        docker("wait", *containers)

    def start(self, *servers: Server) -> None:
        """Starts servers, on the data that they have, and waits until they know a leader."""
        docker("start", *(s.container for s in servers))
        self.wait_serving(*servers)

    def pause(self, server: Server) -> None:
        docker("pause", server.container)

    def unpause(self, server: Server) -> None:
        docker("unpause", server.container)

    def disconnect(self, server: Server, network: Network) -> None:
        """Cuts a server off from its peers, or from its clients as well."""
        docker("network", "disconnect", self._networks["peers"], server.container)
        if network == "all":
            docker("network", "disconnect", self._networks["clients"], server.container)

    def connect(self, server: Server, network: Network) -> None:
        """Ends ``disconnect``."""
        if network == "all":
            docker("network", "connect", self._networks["clients"], server.container)
        docker(
            *("network", "connect", "--alias", server.peer),
            *(self._networks["peers"], server.container),
        )

    # -- what etcd says ----------------------------------------------------------------------

    def ctl(self, *args: str, server: Server | None = None, seconds: float = 10.0) -> Any:
        """An answer of etcdctl, from one server or from whichever serves."""
        command = [*self._ctl(self.all if server is None else [server]), *args]
        answer = run(*command, "--command-timeout", f"{seconds}s", seconds=seconds + 10)
        return json.loads(answer) if answer.startswith(("{", "[")) else answer

    def _ctl(self, servers: Sequence[Server]) -> list[str]:
        return [
            str(find_etcd().with_name("etcdctl")),
            f"--endpoints={','.join(s.endpoint for s in servers)}",
            "--write-out=json",
            "--dial-timeout=2s",
            *(() if self._security is None else self._security.client_args),
            *(() if self._user is None else (f"--user={self._user}",)),
        ]

    def status(self, server: Server) -> Status | None:
        """What a server says of itself; None if it does not answer."""
        try:
            (answer,) = self.ctl("endpoint", "status", server=server, seconds=2.0)
        except CommandError:
            return None
        found = answer["Status"]
        header = found["header"]
        return Status(header["member_id"], found.get("leader", 0), header["raft_term"])

    def wait_serving(self, *servers: Server) -> None:
        """Waits until the servers answer, and each reads what a majority agrees on."""
        eventually(lambda: all(map(self.serves, servers)), PROMPTLY)

    def serves(self, server: Server) -> bool:
        """Whether a server can read with a majority behind it."""
        try:
            self.ctl("get", "anything", server=server, seconds=2.0)
        except CommandError as e:
            # With authentication on it takes a user, and so says that it has a leader.
            return "user name is empty" in str(e)
        return True

    def leader(self, *, but: Server | None = None) -> Server:
        """The leader that the servers, ``but`` one, agree on and that is not that one."""
        asked = [s for s in self.all if s is not but]

        def agreed() -> Server | None:
            found = {None if (s := self.status(server)) is None else s.leader for server in asked}
            leader = self._member_ids.get(found.pop() or 0) if len(found) == 1 else None
            return None if leader is but else leader

        leader = eventually(agreed, PROMPTLY)
        assert leader is not None
        return leader

    def read(self, prefix: str) -> dict[bytes, bytes]:
        """All keys under a prefix."""
        found = self.ctl("get", prefix, "--prefix").get("kvs", ())
        return {b64(kv["key"]): b64(kv.get("value", "")) for kv in found}

    def compact(self, revision: int) -> None:
        self.ctl("compaction", str(revision))

    def enable_auth(self, user: str, password: str, prefix: str) -> None:
        """``root``, and a user whose role may touch one prefix and nothing else."""
        for name, secret in (("root", "root-secret"), (user, password)):
            self.ctl("user", "add", f"{name}:{secret}")
            self.ctl("role", "add", name)
            self.ctl("user", "grant-role", name, name)
        self.ctl("role", "grant-permission", user, "readwrite", prefix, "--prefix")
        self.ctl("auth", "enable")
        self._user = "root:root-secret"

    def history(self, prefix: str, since: int = 1) -> list[Revision]:
        """All revisions under a prefix from ``since`` on, as etcd tells them.

        The last one is a key put for the purpose: whatever came before it has been told.
        """
        end = f"{prefix}/end"
        last = self.ctl("put", end, "")["header"]["revision"]
        command = [*self._ctl(self.all), "watch", "--prefix", f"{prefix}/", f"--rev={since}"]
        revisions: dict[int, Revision] = {}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as watch:
            alarm = threading.Timer(PROMPTLY, watch.kill)
            alarm.start()
            try:
                assert watch.stdout is not None
                assert watch.stderr is not None
                for line in watch.stdout:
                    for event in json.loads(line)["Events"] or ():
                        kv = event["kv"]
                        number = kv["mod_revision"]
                        found = revisions.setdefault(number, Revision(number, {}))
                        value = b64(kv.get("value", ""))
                        deleted = event.get("type") == 1
                        found.changes[b64(kv["key"])] = None if deleted else value
                    if last in revisions:
                        return list(revisions.values())
                raise AssertionError(f"etcd's history broke off: {watch.stderr.read()}")
            finally:
                alarm.cancel()
                watch.kill()


@dataclass(frozen=True)
class Revision:
    """What one revision put, and deleted (None)."""

    number: int
    changes: dict[bytes, bytes | None]
