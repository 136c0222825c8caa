"""What an administrator changes in etcd: who may hold partitions, and how they are placed.

Each change is one transaction that puts ``membership`` as well, since it is an input of the
assignment, and so of the epoch. It is made on a reading of the cluster, and again on a newer one if
that has changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from ..core import codec, membership
from ..core.keys import Keys
from ..core.membership import State
from ..core.ownership import able
from ..core.records import ClusterConfig, Cordon
from ..errors import ClusterKitError
from ..ports import Clock, Compare, Delete, KeyValue, Op, Put, RangeResult, Store, Txn


@dataclass(frozen=True, slots=True)
class Changed:
    """What came of a change.

    Attributes:
        changed: Whether there was anything to do.
        revision: A view of this revision or newer has it.
        config: The cluster's settings now.
        holders: How many members may hold partitions: active, of some weight, not cordoned.
    """

    changed: bool
    revision: int
    config: ClusterConfig
    holders: int


_Step: TypeAlias = tuple[State, Op] | None
"""The state that a change leads to, and its write; None if there is nothing to do."""
_Change: TypeAlias = Callable[[State, KeyValue], _Step]


class Administration:
    """The changes of one cluster. Every method blocks, for ``timeout`` seconds a call of etcd.

    Raises:
        ClusterKitError: The change makes no sense; the text says why.
        StoreError: etcd cannot be asked. Perhaps the change was made: to ask again does no harm.
    """

    def __init__(self, store: Store, keys: Keys, clock: Clock, timeout: float) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        self._timeout = timeout

    def cordon(self, node_id: str, reason: str = "") -> Changed:
        """Has a node hold nothing until ``uncordon``, across its restarts.

        It stays a member and gives its copies to those that take over.
        """

        def change(state: State, config: KeyValue) -> _Step:
            if node_id in state.cordons:
                return None
            if node_id not in state.members and node_id not in state.history:
                raise ClusterKitError(
                    f"node {node_id!r} cannot be cordoned: this cluster does not know it. The "
                    "members are: " + (", ".join(sorted(state.members)) or "nobody")
                )
            if node_id in state.members and not _holders(state) - {node_id}:
                raise ClusterKitError(
                    f"node {node_id!r} cannot be cordoned: no other member could take its "
                    "partitions. Uncordon another, or start one"
                )
            cordon = Cordon(reason, self._clock.now())
            after = replace(state, cordons={**state.cordons, node_id: cordon})
            return after, Put(self._keys.cordon(node_id), codec.encode_cordon(cordon))

        return self._apply(node_id, change)

    def uncordon(self, node_id: str) -> Changed:
        """Lets a node hold partitions again."""

        def change(state: State, config: KeyValue) -> _Step:
            if node_id not in state.cordons:
                if node_id not in state.members and node_id not in state.history:
                    raise ClusterKitError(
                        f"node {node_id!r} is not cordoned, and this cluster does not know it. "
                        "Cordoned are: " + (", ".join(sorted(state.cordons)) or "nobody")
                    )
                return None
            left = {n: cordon for n, cordon in state.cordons.items() if n != node_id}
            return replace(state, cordons=left), Delete(self._keys.cordon(node_id))

        return self._apply(node_id, change)

    def settings(
        self,
        *,
        replication_factor: int | None = None,
        balance_percent: int | None = None,
        balance_primaries: bool | None = None,
    ) -> Changed:
        """Changes how partitions are placed; what is None stays as it is.

        Args:
            replication_factor: How many holders a partition should have, 1 to 64.
            balance_percent: The bound on a node's load, as in ``ClusterConfig``; 0 for none.
            balance_primaries: Whether primaries are evened out.
        """

        def change(state: State, config: KeyValue) -> _Step:
            assert state.config is not None
            wanted = state.config
            if replication_factor is not None:
                wanted = replace(wanted, replication_factor=replication_factor)
            if balance_percent is not None:
                wanted = replace(wanted, balance_percent=balance_percent or None)
            if balance_primaries is not None:
                wanted = replace(wanted, balance_primaries=balance_primaries)
            if wanted == state.config:
                return None
            put = Put(self._keys.config, codec.config_with(config.value, wanted))
            return replace(state, config=wanted), put

        return self._apply("", change)

    def _apply(self, node_id: str, change: _Change) -> Changed:
        while True:
            read = self._store.range(self._keys.root, timeout=self._timeout)
            state = membership.read(self._keys, read.kvs, read.revision, read.cluster_id)
            config = self._config(read, state)
            step = change(state, config)
            if step is None:
                return replace(_changed(state.revision, state), changed=False)
            after, write = step
            put = Put(self._keys.membership, codec.encode_membership(node_id, self._clock.now()))
            unchanged = (
                Compare(self._keys.membership, "mod", "==", state.membership_revision),
                Compare(self._keys.config, "mod", "==", config.mod_revision),
            )
            result = self._store.txn(Txn(unchanged, (write, put)), timeout=self._timeout)
            if result.succeeded:
                return _changed(result.revision, after)

    def _config(self, read: RangeResult, state: State) -> KeyValue:
        for kv in read.kvs:
            if kv.key == self._keys.config and state.config is not None:
                return kv
        damage = state.ignored.get(self._keys.config)
        key = self._keys.config.decode()
        raise ClusterKitError(
            f"the cluster's config in etcd, {key!r}, cannot be understood: {damage}"
            if damage is not None
            else f"there is no cluster at {self._keys.root.decode()!r}: no node has ever joined it"
        )


def _changed(revision: int, state: State) -> Changed:
    assert state.config is not None
    return Changed(True, revision, state.config, len(_holders(state)))


def _holders(state: State) -> set[str]:
    return set(able(state)) - state.cordons.keys()
