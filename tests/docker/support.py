"""What the docker tests share: etcd in containers, nodes on it, a proxy, and etcd's own history.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from clusterkit import (
    Event,
    KitState,
    NodeJoinEvent,
    NodeLeaveEvent,
    NodeRejoinEvent,
    OptionsDict,
)
from clusterkit.core import codec
from clusterkit.core.keys import Keys, Parsed
from clusterkit.sync import ClusterKit
from clusterkit.testing.embedded import find_etcd
from tests.integration.support import NodeProcess, Recorder, eventually

PROMPTLY = 40.0
"""Seconds for what must happen; two busy cores are no failure."""

Network: TypeAlias = Literal["peers", "all"]
Turn: TypeAlias = tuple[int, str, str]
"""A join, rejoin or leave: its revision, its event id, and for a leave the reason."""

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


def _free_port() -> int:
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
        port = _free_port()
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


def turns_of(history: Iterable[Revision], keys: Keys) -> list[Turn]:
    """What happened to the members by etcd's own history: what every node must be told."""
    turns: list[Turn] = []
    present: dict[str, str] = {}
    for revision in history:
        arrivals: list[Turn] = []
        for key, value in revision.changes.items():
            match keys.parse(key):
                case Parsed("nodes", node_id):
                    if value is None:
                        nonce = present.pop(node_id)
                        past = revision.changes.get(keys.history(node_id))
                        end = codec.decode_history(past).end_of(nonce) if past else None
                        reason = "health_check_failure" if end is None else end.reason
                        turns.append((revision.number, f"node_leave/{node_id}/{nonce}", reason))
                        continue
                    record = codec.decode_node(node_id, value)
                    if present.get(node_id) != record.nonce:
                        present[node_id] = record.nonce
                        kind = "node_join" if record.previous is None else "node_rejoin"
                        turn = f"{kind}/{node_id}/{record.nonce}"
                        arrivals.append((revision.number, turn, ""))
        turns += arrivals
    return turns


class Node:
    """A kit of this process, and what its hooks were told."""

    def __init__(self, options: OptionsDict) -> None:
        self.told = Recorder()
        given: OptionsDict = {**options, "hooks": self.told}
        self.kit = ClusterKit(**given)

    @property
    def serving(self) -> bool:
        """Whether it is a member and can prove it."""
        return self.kit.state is KitState.JOINED and bool(self.kit.readiness().fencing_in)

    @property
    def fenced(self) -> bool:
        return self.kit.state is KitState.FENCED and not self.kit.readiness().fencing_in

    def turns(self) -> list[Turn]:
        """The joins, rejoins and leaves that it was told of, by revision."""
        return sorted(_turn(event) for event in self._node_events())

    def events(self) -> dict[str, Event]:
        return {event.event_id: event for event in self._node_events()}

    def saw(self, kind: str, node_id: str) -> Callable[[], bool]:
        """Whether it was told of such an event of that node."""
        return lambda: any(e.startswith(f"{kind}/{node_id}/") for _, e, _ in self.turns())

    def _node_events(self) -> list[NodeJoinEvent | NodeRejoinEvent | NodeLeaveEvent]:
        kinds = (NodeJoinEvent, NodeRejoinEvent, NodeLeaveEvent)
        return [s.event for s in list(self.told.seen) if isinstance(s.event, kinds)]


def _turn(event: NodeJoinEvent | NodeRejoinEvent | NodeLeaveEvent) -> Turn:
    reason = event.reason if isinstance(event, NodeLeaveEvent) else ""
    return event.revision, event.event_id, reason


class Nodes:
    """The nodes of one cluster, under a prefix of its own.

    How to get at etcd (TLS files, user, password) they read from ``CLUSTERKIT_*`` variables.
    """

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self.prefix = f"/docker/{secrets.token_hex(4)}"
        self._defaults: OptionsDict = {
            "prefix": self.prefix,
            "cluster": "c",
            "partitions": 64,
            "replication_factor": 2,
            "settle_time": 0.05,
            "connect_timeout": 5,
        }
        self.keys = Keys.of(self.prefix, "c")
        self.kits: list[Node] = []
        self._processes = 0
        self._exits = ExitStack()

    def kits_on(self, *servers: Server, lease_ttl: int = 3) -> list[Node]:
        """One kit for each server, connected to that one first, and ready."""
        first = len(self.kits)
        endpoints = [self._endpoints(server) for server in servers]
        return [
            self.kit(f"kit-{first + i}", found, lease_ttl=lease_ttl)
            for i, found in enumerate(endpoints)
        ]

    def kit(self, node_id: str, endpoints: Sequence[str], *, lease_ttl: int) -> Node:
        """A kit that is ready."""
        node = Node(self._options(node_id, endpoints, lease_ttl))
        self._exits.callback(node.kit.stop, timeout=2.0)
        node.kit.start()
        self.kits.append(node)
        node.kit.wait_ready(PROMPTLY)
        return node

    def process(self, node_id: str) -> NodeProcess:
        """A node in a process of its own that has joined, with the shortest TTL."""
        # Another server first for each: they are spread like any clients.
        self._processes += 1
        endpoints = self._endpoints(self._servers.all[self._processes % 3])
        process = NodeProcess({**self._options(node_id, endpoints, 2)})
        self._exits.callback(process.end)
        return process.joined()

    def _options(self, node_id: str, endpoints: Sequence[str], lease_ttl: int) -> OptionsDict:
        return {
            **self._defaults,
            "node_id": node_id,
            "address": f"{node_id}.test:8000",
            "endpoints": endpoints,
            "lease_ttl": lease_ttl,
        }

    def _endpoints(self, first: Server) -> list[str]:
        servers = self._servers.all
        return [servers[(first.number + i) % 3].endpoint for i in range(3)]

    def restarts(self) -> int:
        """How often the watches of the kits broke."""
        return sum(node.kit.stats().watch_restarts for node in self.kits)

    def churn(self, node_id: str, seconds: float = PROMPTLY) -> None:
        """A process joins and is killed; every kit must be told of both."""
        process = self.process(node_id)
        eventually(lambda: all(n.saw("node_join", node_id)() for n in self.kits), seconds)
        process.kill()
        eventually(lambda: all(n.saw("node_leave", node_id)() for n in self.kits), seconds)

    def settle(self) -> None:
        """Waits until every kit serves, all have the same view, and nothing is still to be done.

        Nothing: no hook is to run, no receipt to be given, no expiry to be written down.
        """

        def calm() -> bool:
            if not all(node.serving for node in self.kits):
                return False
            stats = [node.kit.stats() for node in self.kits]
            busy = any(s.hooks_running or s.hooks_queued for s in stats)
            owed = any(node.kit.owed() for node in self.kits)
            return not busy and not owed and len({s.revision for s in stats}) == 1

        eventually(lambda: calm() and self._written(), PROMPTLY)
        eventually(calm, PROMPTLY)
        first, *others = [node.kit.cluster for node in self.kits]
        assert all(view == first for view in others)

    def _written(self) -> bool:
        """Whether etcd has every kit's receipt for its view, and the end of every stay."""
        receipts: dict[str, int] = {}
        present: set[str] = set()
        still_open: set[str] = set()
        for key, value in self._servers.read(self.keys.root.decode()).items():
            match self.keys.parse(key):
                case Parsed("nodes", node_id):
                    present.add(node_id)
                case Parsed("history", node_id) if codec.decode_history(value).open is not None:
                    still_open.add(node_id)
                case Parsed("applied", node_id):
                    receipts[node_id] = codec.decode_receipt(value).epoch
        wanted = {node.kit.node_id: node.kit.partitions()[0].epoch for node in self.kits}
        given = {node_id: receipts.get(node_id) for node_id in wanted}
        return present == still_open and given == wanted

    def check(self, history: Sequence[Revision], *, reread: Sequence[Node] = ()) -> list[Turn]:
        """Every kit was told of every turn in etcd's history from its own first join on, once.

        Those in ``reread`` read the prefix again, so they may have learned of a change at a later
        revision, and tell what a leaver held by the last view that they had before.
        """
        turns = turns_of(history, self.keys)
        for node in self.kits:
            own = f"node_join/{node.kit.node_id}/"
            begin = next(i for i, (_, turn, _) in enumerate(turns) if turn.startswith(own))
            expected, told = sorted(turns[begin:]), node.turns()
            if node in reread:
                assert sorted(t[1:] for t in told) == sorted(t[1:] for t in expected)
            else:
                assert told == expected, node.kit.node_id
            assert not node.kit.stats().hook_failures
        self._check_fields(reread)
        members = {turn.split("/")[1] for turn in self._present(turns)}
        assert set(self.kits[0].kit.cluster.nodes) == members
        return turns

    def _present(self, turns: Iterable[Turn]) -> Iterator[str]:
        """The event ids of the joins and rejoins that still stand."""
        newest = {turn.split("/")[1]: turn for _, turn, _ in turns}
        return (turn for turn in newest.values() if not turn.startswith("node_leave/"))

    def _check_fields(self, reread: Sequence[Node]) -> None:
        """The same event says the same on every node, but for when an expiry was noticed."""
        first: dict[str, Event] = {}
        for node in self.kits:
            for event_id, event in node.events().items():
                one = first.setdefault(event_id, event)
                match event, one:
                    case NodeLeaveEvent(), NodeLeaveEvent():
                        assert (event.node, event.reason) == (one.node, one.reason)
                        assert node in reread or (
                            event.partitions_owned == one.partitions_owned
                            and event.partitions_replica == one.partitions_replica
                        )
                    case NodeRejoinEvent(), NodeRejoinEvent():
                        assert event.last_seen_at == one.last_seen_at
                        assert event.offline_duration == one.offline_duration
                        assert event.partitions_before_leave == one.partitions_before_leave
                    case _:
                        assert event.timestamp == one.timestamp

    def close(self) -> None:
        self._exits.close()


class Proxy:
    """A TCP proxy of 127.0.0.1 that can cut its clients off, without a word to them.

    ``cut`` lets connections stand and carries nothing; ``mend`` drops those, as a firewall would
    that has forgotten them, and serves new ones.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._is_cut = False
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._start(self._accept)

    @property
    def endpoint(self) -> str:
        port: int = self._listener.getsockname()[1]
        return f"127.0.0.1:{port}"

    def cut(self) -> None:
        with self._lock:
            self._is_cut = True

    def mend(self) -> None:
        with self._lock:
            self._drop()  # first: after a gap nothing may follow
            self._is_cut = False

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._drop()
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PROMPTLY)
        self._listener.close()

    def _drop(self) -> None:
        for found in self._sockets:
            with contextlib.suppress(OSError):
                found.shutdown(socket.SHUT_RDWR)

    def _start(self, target: Callable[..., None], *args: socket.socket) -> None:
        thread = threading.Thread(target=target, args=args, name="proxy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            with self._lock:
                if self._closed:
                    client.close()
                    server.close()
                    return
                self._sockets |= {client, server}
            self._start(self._serve, client, server)

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        back = threading.Thread(target=self._pump, args=(server, client), name="proxy", daemon=True)
        back.start()
        self._pump(client, server)
        back.join()
        with self._lock:
            self._sockets -= {client, server}
        client.close()
        server.close()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if not self._is_cut:
                    sink.sendall(data)
        # Either side's end is the end of both.
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
