"""What lookups read: one immutable snapshot, replaced as a whole by one assignment.

It holds the view and the session together, so that a reader can never pair the view of one stay
with the lease of another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..core.hashing import key_indexer
from ..core.membership import State
from ..core.placement import Row
from ..core.rows import differences
from ..errors import UnknownPartitionError
from ..model import ClusterHealth, ClusterView, Key, KitState, Partition
from .partitions import LazyPartitions
from .session import Session


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a lookup needs.

    Attributes:
        kit_state: The kit's state.
        view: The cluster as applications see it.
        rows: The holders of each partition.
        epoch: The fencing token of the view.
        session: This node's session if the view has its registration in it, else None.
        owned_since: Per partition that this node is the primary of, the epoch of the first view
            since which it has been so without a break.
        initial_copies_done: Whether all that this node was to receive when it joined has arrived.
        was_ready: Whether that was so in some stay of this process.
        health: The cluster's health.
        state: What etcd holds.
    """

    kit_state: KitState
    view: ClusterView
    rows: Sequence[Row]
    epoch: int
    session: Session | None
    owned_since: Mapping[int, int]
    initial_copies_done: bool
    was_ready: bool
    health: ClusterHealth
    state: State


class Snapshots:
    """Makes the next snapshot of one node, if it differs from the last. Owned by one thread."""

    def __init__(self, node_id: str) -> None:
        self._me = node_id
        self._last: Snapshot | None = None
        self._owned_since: dict[int, int] = {}
        self._owner: str | None = None

    def forget(self) -> None:
        """Somebody else may have been the owner in between: ownership is dated anew."""
        self._owned_since, self._last = {}, None

    def next(
        self,
        state: State,
        rows: Sequence[Row],
        *,
        kit_state: KitState,
        session: Session | None,
        initial_copies_done: bool,
        was_ready: bool,
        health: ClusterHealth,
    ) -> Snapshot | None:
        """The snapshot of where things stand, None if it is the last one."""
        last = self._last
        if (
            last is not None
            and last.state is state
            and last.kit_state is kit_state
            and last.session is session
            and last.initial_copies_done == initial_copies_done
            and last.was_ready == was_ready
            and last.health == health
        ):
            return None
        if session is not None and session.nonce != self._owner:
            self._owner, self._owned_since = session.nonce, {}
        if last is None or last.rows is not rows or last.session is not session:
            self._owned_since = self._ownership(last, rows, session, state.epoch)
        self._last = Snapshot(
            kit_state=kit_state,
            view=self._view(last, state, rows),
            rows=rows,
            epoch=state.epoch,
            session=session,
            owned_since=self._owned_since,
            initial_copies_done=initial_copies_done,
            was_ready=was_ready,
            health=health,
            state=state,
        )
        return self._last

    def _view(self, last: Snapshot | None, state: State, rows: Sequence[Row]) -> ClusterView:
        if last is not None and last.rows is rows and last.epoch == state.epoch:
            before = last.state
            if before.members is state.members and before.cordons is state.cordons:
                # A receipt, say: of the view only the revision is another.
                return replace(last.view, revision=state.revision)
        return view_of(state, rows)

    def _ownership(
        self, last: Snapshot | None, rows: Sequence[Row], session: Session | None, epoch: int
    ) -> dict[int, int]:
        since = self._owned_since
        if session is None:
            return {}
        if last is None or last.session is not session:
            owned = (index for index, row in enumerate(rows) if row and row[0] == self._me)
            return {index: since.get(index, epoch) for index in owned}
        since = since.copy()
        for index, _, row in differences(last.rows, rows):
            if row and row[0] == self._me:
                since.setdefault(index, epoch)
            else:
                since.pop(index, None)
        return since


def view_of(state: State, rows: Sequence[Row]) -> ClusterView:
    """The state and its assignment as applications see them."""
    config = state.config
    nodes = {node_id: state.members[node_id].node for node_id in sorted(state.members)}
    partitions = LazyPartitions(rows, nodes, state.epoch)
    find: Callable[[Key], Partition] = _no_partitions
    if config is not None:
        find = _finder(partitions, key_indexer(config.key_hash, config.partitions, config.seed))
    return ClusterView(
        revision=state.revision,
        nodes=nodes,
        partitions=partitions,
        replication_factor=config.replication_factor if config else 0,
        _find=find,
        cordoned=frozenset(n for n in state.cordons if n in state.members),
    )


def _finder(partitions: LazyPartitions, index: Callable[[Key], int]) -> Callable[[Key], Partition]:
    return lambda key: partitions.at(index(key))


def _no_partitions(key: Key) -> Partition:
    raise UnknownPartitionError(
        f"key {key!r} belongs to no partition yet: the cluster has no config in etcd, "
        "since no node has ever joined it"
    )
