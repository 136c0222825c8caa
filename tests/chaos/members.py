"""An etcd of three members, each a process that can be killed or frozen by itself."""

from __future__ import annotations

import random
import re
import socket
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from clusterkit.testing import EmbeddedEtcd

SIZE = 3
_HTTP_SECONDS = 1.0
_ports = random.SystemRandom()


def quiet_port() -> int:
    """A free port that the kernel gives to nobody meanwhile: it stays ours over a restart."""
    while True:
        port = _ports.randrange(10_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Member:
    """One member: ``EmbeddedEtcd``, told of its peers, with what it says of itself."""

    def __init__(self, number: int, peers: list[str]) -> None:
        cluster = ",".join(f"m{i}={peer}" for i, peer in enumerate(peers))
        self.name = f"m{number}"
        self.etcd = EmbeddedEtcd(
            client_port=quiet_port(),
            args=[
                f"--name={self.name}",
                f"--listen-peer-urls={peers[number]}",
                f"--initial-advertise-peer-urls={peers[number]}",
                f"--initial-cluster={cluster}",
                "--heartbeat-interval=100",
                "--election-timeout=1000",
            ],
        )
        self.up = False

    def start(self) -> None:
        self.etcd.start()
        self.up = True

    def kill(self) -> None:
        self.up = False
        self.etcd.kill()

    def is_leader(self) -> bool:
        return self._metric("etcd_server_is_leader") == 1

    def has_leader(self) -> bool:
        return self._metric("etcd_server_has_leader") == 1

    def _metric(self, name: str) -> float | None:
        """None if it does not answer."""
        try:
            url = f"http://{self.etcd.endpoint}/metrics"
            with urllib.request.urlopen(url, timeout=_HTTP_SECONDS) as answer:
                text = answer.read().decode()
        except OSError:
            return None
        found = re.search(rf"^{name} (\S+)", text, re.MULTILINE)
        return float(found[1]) if found else None


class Members:
    """The cluster. Started when it is made; ``close`` ends it, whatever state it is in."""

    def __init__(self) -> None:
        peers = [f"http://127.0.0.1:{quiet_port()}" for _ in range(SIZE)]
        self.all = [Member(i, peers) for i in range(SIZE)]
        try:
            self.start(self.all)
        except BaseException:
            self.close()
            raise

    @property
    def endpoints(self) -> list[str]:
        return [m.etcd.endpoint for m in self.all]

    def start(self, members: Iterable[Member]) -> None:
        """Starts members beside each other: one alone is not healthy before there is a quorum."""
        with ThreadPoolExecutor(SIZE) as pool:
            list(pool.map(Member.start, members))

    def leader(self) -> Member | None:
        return next((m for m in self.all if m.up and m.is_leader()), None)

    def close(self) -> None:
        for member in self.all:
            member.kill()
            member.etcd.__exit__(None, None, None)
