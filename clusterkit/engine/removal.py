"""An administrator's removal of a node: one transaction that ends its stay and says why.

Its key is deleted and its history says ``removed_by_admin``, in one revision, so no observer can
take it for an expiry. Its sign of life stays: the removed process sees what was done, stops, and
revokes its own lease; a process that is dead or cut off loses the lease by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core import codec, membership
from ..core.hashing import partition_id
from ..core.keys import Keys
from ..core.membership import State
from ..core.ownership import rows_of
from ..core.plan import held_by
from ..core.records import Departure, NodeRecord
from ..errors import ClusterKitError, StoreError
from ..model import Node
from ..ports import Clock, Compare, Delete, Put, Store, Txn


@dataclass(frozen=True, slots=True)
class Removal:
    """What was done.

    Attributes:
        node: The node as it was last.
        partitions: The ids of the partitions that it held.
        revision: A view of this revision or newer has seen it.
    """

    node: Node
    partitions: tuple[str, ...]
    revision: int


def remove(store: Store, keys: Keys, clock: Clock, node_id: str, timeout: float) -> Removal:
    """Ends a member's stay with the reason ``removed_by_admin``. Blocks.

    Raises:
        ClusterKitError: It is no member, or its key cannot be understood.
        StoreError: etcd cannot be asked; the removal was not made, unless not even that can be
            found out.
    """
    while True:
        state = _read(store, keys, timeout)
        record = _member(state, keys, node_id)
        owned, replica = held_by(node_id, rows_of(state))
        partitions = tuple(sorted((*owned, *replica)))
        end = Departure(record.registration, "removed_by_admin", clock.now(), 0, partitions)
        names = tuple(map(partition_id, partitions))
        try:
            result = store.txn(_removal(keys, state, node_id, end), timeout=timeout)
        except StoreError:
            # Perhaps applied. If so its history says that this stay was ended, and by whom.
            state = _read(store, keys, timeout)
            past = state.history.get(node_id)
            found = None if past is None else past.end_of(record.nonce)
            if found is None or found.reason != "removed_by_admin":
                raise
            return Removal(record.node, names, state.history_revisions[node_id])
        if result.succeeded:
            return Removal(record.node, names, result.revision)


def _removal(keys: Keys, state: State, node_id: str, end: Departure) -> Txn:
    """Ends a member's stay, if neither its key nor its history has changed since ``state``."""
    node, history = keys.node(node_id), keys.history(node_id)
    past = state.history.get(node_id)
    value = codec.history_with(b"" if past is None else past.raw, ended=end)
    return Txn(
        compares=(
            Compare(node, "mod", "==", state.stored[node_id].mod_revision),
            Compare(history, "mod", "==", state.history_revisions.get(node_id, 0)),
        ),
        success=(Put(history, value), Delete(node)),
    )


def _read(store: Store, keys: Keys, timeout: float) -> State:
    read = store.range(keys.root, timeout=timeout)
    return membership.read(keys, read.kvs, read.revision, read.cluster_id)


def _member(state: State, keys: Keys, node_id: str) -> NodeRecord:
    record = state.members.get(node_id)
    if record is not None:
        return record
    key = keys.node(node_id)
    if (damage := state.ignored.get(key)) is not None:
        raise ClusterKitError(
            f"node {node_id!r} cannot be removed: its key {key.decode()!r} in etcd cannot be "
            f"understood ({damage}). Use a newer release, or delete that key"
        )
    raise ClusterKitError(
        f"node {node_id!r} cannot be removed: {_absence(state, node_id)}. The members are: "
        + (", ".join(sorted(state.members)) or "nobody")
    )


def _absence(state: State, node_id: str) -> str:
    """Why it is no member, in words."""
    past = state.history.get(node_id)
    if past is None:
        return "this cluster does not know it"
    if past.open is not None or not past.departures:
        return "its lease has expired already"
    last = past.departures[-1]
    when = "" if last.left_at is None else f" at {last.left_at:%Y-%m-%d %H:%M:%S} UTC"
    return f"it is not in the cluster any more; it left{when} ({last.reason})"
