"""The world of a run: etcd, proxies, storage, the recorder of the truth, and the nodes."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from clusterkit.errors import StoreError
from clusterkit.etcd import EtcdStore
from clusterkit.ports import Put, Txn

from .members import SIZE, Members
from .nodes import Life, until
from .proxies import Loop, Proxy
from .records import Recorder
from .stays import KEYS
from .storage import Storage
from .truth import Truth

NODES = 7
SECONDS = 30.0
"""For what must happen; a busy machine is no failure."""


class World:
    """Everything is started when it is made, but for nodes; ``close`` ends it all, by pid.

    Attributes:
        lives: The process of each node that should be a member.
        truth: What etcd shows, up to now.
    """

    def __init__(self, folder: Path, *, lease_ttl: int = 2, broken: str | None = None) -> None:
        self._folder = folder
        self._broken = broken
        self._options: dict[str, object] = {
            "prefix": "/chaos",
            "cluster": "c",
            "partitions": 16,
            "replication_factor": 2,
            "lease_ttl": lease_ttl,
            "settle_time": 0.1,
            "connect_timeout": 2,
        }
        self._numbers: dict[str, int] = {}
        self._proxies: dict[str, Proxy] = {}
        self.lives: dict[str, Life] = {}
        self._exits = ExitStack()
        try:
            self.log = Recorder(folder / "done.jsonl")
            self._exits.callback(self.log.close)
            self.members = Members()
            self._exits.callback(self.members.close)
            self._loop = Loop()
            self._exits.callback(self._loop.close)
            self._storage = Storage(folder / "storage.jsonl")
            self._exits.callback(self._storage.close)
            self.truth = Truth(folder / "truth.jsonl", self.members.endpoints, KEYS.root)
            self._exits.callback(self.truth.close)
            self._store = EtcdStore(self.members.endpoints, connect_timeout=2.0)
            self._exits.callback(self._store.close)
        except BaseException:
            self._exits.close()
            raise

    def spawn(self, node_id: str) -> Life:
        """A process that is ready to join, and does not yet. Nodes are ``n0`` and so on."""
        number = self._numbers[node_id] = self._numbers.get(node_id, 0) + 1
        # Each node prefers another member, so that the end of any breaks somebody's streams.
        first = int(node_id[1:]) % SIZE
        endpoints = self.members.endpoints
        proxy = Proxy(self._loop, endpoints[first:] + endpoints[:first])
        life = Life(
            node_id,
            number,
            self._folder,
            proxy,
            self._storage.port,
            self._options,
            self._broken,
            self.log,
        )
        self._exits.callback(life.kill)
        assert until(lambda: life.has("loaded"), SECONDS), f"{life.name} did not start"
        return life

    def join(self, node_id: str) -> Life:
        """Starts a node and lets it join; it may take as long as etcd does."""
        life = self.lives[node_id] = self.spawn(node_id)
        life.go()
        return life

    def joined(self, life: Life) -> bool:
        """Waits until the process is a member."""
        return bool(until(lambda: self.nonce_of(life) is not None, SECONDS))

    def nonce_of(self, life: Life) -> str | None:
        """The registration that stands in etcd and is this process's own."""
        nonce = self.truth.stays.present.get(life.node_id)
        return nonce if nonce is not None and life.has("expect", nonce=nonce) else None

    def ended(self, nonce: str | None, reason: str) -> bool:
        """Waits until etcd shows that the stay has ended in that way."""

        def shown() -> bool:
            stay = None if nonce is None else self.truth.stays.all.get(nonce)
            return stay is not None and stay.reason == reason

        return bool(until(shown, SECONDS))

    def put(self, key: bytes, value: bytes) -> bool:
        """Writes past the nodes, and waits until the truth has it."""

        def written() -> int:
            try:
                return self._store.txn(Txn((), (Put(key, value),)), timeout=2.0).revision
            except StoreError:
                return 0

        revision = until(written, SECONDS)
        return bool(revision and until(lambda: self.truth.revision >= revision, SECONDS))

    def unsettled(self) -> str | None:
        """What is still to come: a process that is no member, knows not all, or has work."""
        revision, stays = self.truth.revision, self.truth.stays
        if set(stays.present) != set(self.lives):
            return f"the members are {sorted(stays.present)}, and not {sorted(self.lives)}"
        for node_id, life in self.lives.items():
            view = life.newest("view")
            if view is None or self.nonce_of(life) is None:
                return f"{life.name} is no member"
            if view["rev"] != revision:
                return f"{life.name} is at revision {view['rev']}, and etcd at {revision}"
            if view["session"] is None or stays.receipts.get(node_id) != view["epoch"]:
                return f"{life.name} has no session, or gave no receipt for {view['epoch']}"
            hooks = life.count("hook"), life.count("ended")
            begun, done = (
                life.count("hook", kind=k) for k in ("rebalance_start", "rebalance_complete")
            )
            if hooks[0] != hooks[1] or begun != done:
                return f"{life.name} has hooks {hooks} begun and ended, rebalances {begun, done}"
        return None if revision == self.truth.revision else "etcd still changes"

    def settle(self, seconds: float) -> str | None:
        """Waits until everything has settled, and stays so for a second; then ends the record.

        Returns:
            What was still unsettled when the time was over.
        """

        def calm() -> bool:
            revision = self.truth.revision
            return (
                self.unsettled() is None
                and until(lambda: self.truth.revision != revision, 1.0) is None
                and self.unsettled() is None
            )

        left = None if until(calm, seconds) else self.unsettled() or "it was never calm for long"
        self.log("end", alive=[life.name for life in self.lives.values()])
        self.truth.close()
        return left

    def close(self) -> None:
        self._exits.close()
