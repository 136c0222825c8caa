"""What one node of a very large cluster has to do: a real state machine on the store in memory.

It follows a cluster whose other nodes are only keys, so nothing here waits for a network or a
clock. What is measured is the processor time of one node, and its memory.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from clusterkit.core import codec
from clusterkit.core.keys import Keys
from clusterkit.core.records import Alive, ClusterConfig, NodeRecord, Process, Receipt
from clusterkit.engine.dispatcher import Dispatcher
from clusterkit.engine.effects import Effect, Instant
from clusterkit.engine.machine import Machine
from clusterkit.events import Event
from clusterkit.hooks import Hooks
from clusterkit.model import Node
from clusterkit.ports import Delete, Op, Put, Txn, Watch
from clusterkit.testing.clock import VirtualClock
from clusterkit.testing.memory import MemoryServer, MemoryStore

_PUTS = 50  # nodes a transaction: two keys each, and etcd takes 128 unless told otherwise
_RECEIPTS = 200


@dataclass(frozen=True)
class Costs:
    """Seconds and bytes of one node.

    Attributes:
        first_seconds: To take in the whole cluster and place all partitions.
        join_seconds: From a join's revision to the last consequence of it.
        leave_seconds: The same of a leave.
        receipt_seconds: To take in one receipt of another node.
        resident_bytes: What the process holds at the end.
        receipt_bytes: A receipt as a watch brings it, without the frame.
    """

    first_seconds: float
    join_seconds: float
    leave_seconds: float
    receipt_seconds: float
    resident_bytes: int
    receipt_bytes: int


class _World:
    def __init__(self, nodes: int, partitions: int) -> None:
        self.clock = VirtualClock()
        self.server = MemoryServer(self.clock)
        self.store = MemoryStore(self.server)
        self.keys = Keys.of("/clusterkit", "large")
        config = ClusterConfig(partitions, 3, "crc32", 1, 7)
        self.put([Put(self.keys.config, codec.encode_config(config, self.clock.now()))])
        self.put([self.membership()])
        for start in range(0, nodes, _PUTS):
            self.put(op for i in range(start, min(nodes, start + _PUTS)) for op in self.member(i))

        # All are at rest: each has said that it has its data.
        for start in range(0, nodes, _PUTS):
            self.put(self.receipt(i, 1 << 40) for i in range(start, min(nodes, start + _PUTS)))

    def put(self, ops: Iterable[Op]) -> None:
        self.store.txn(Txn((), tuple(ops)), timeout=1.0)

    def membership(self) -> Put:
        return Put(self.keys.membership, codec.encode_membership("", self.clock.now()))

    def member(self, number: int) -> list[Op]:
        nothing = MappingProxyType[str, str]({})
        node_id, now = f"node-{number}", self.clock.now()
        node = Node(
            node_id, f"{node_id}.svc:80", nothing, None, 100, nothing, f"i{number}", "active", now
        )
        record = NodeRecord(node, f"n{number}", "memory", None, False, Process())
        return [
            Put(self.keys.node(node_id), codec.encode_node(record)),
            Put(
                self.keys.alive(node_id, node.incarnation), codec.encode_alive(Alive(record.nonce))
            ),
        ]

    def receipt(self, number: int, epoch: int) -> Put:
        key = self.keys.applied(f"node-{number}")
        return Put(key, codec.encode_receipt(Receipt(f"n{number}", epoch)))


class _Observer:
    """A machine that follows the world."""

    def __init__(self, world: _World) -> None:
        self._world = world
        hooks = Hooks()

        @hooks.on_partition_change(mine=True)
        def change(event: Event) -> None: ...

        dispatcher = Dispatcher(hooks._specs(), incarnation="i0")
        self.machine = Machine(
            keys=world.keys,
            node_id="node-0",
            incarnation="i0",
            dispatcher=dispatcher,
            settle_seconds=0.25,
            observer=True,
        )
        self._watch: Watch | None = None

    def at(self) -> Instant:
        return Instant(self._world.clock.monotonic(), self._world.clock.now())

    def begin(self) -> None:
        read = self._world.store.range(self._world.keys.root, timeout=1.0)
        self.machine.begin(read, self.at())
        self._watch = self._world.store.watch(self._world.keys.root, read.revision + 1)

    def follow(self, ops: Sequence[Op]) -> list[Effect]:
        """One transaction, and all that follows from it."""
        assert self._watch is not None
        self._world.put(ops)
        batch = next(iter(self._watch))
        while not batch.events:
            batch = next(iter(self._watch))
        effects = self.machine.changed(batch, self.at())
        return effects + self.machine.tick(self.at())


def measure(nodes: int, partitions: int) -> Costs:
    """The costs of one node in a cluster of that size."""
    world = _World(nodes, partitions)
    node = _Observer(world)
    first = _timed(node.begin)
    # The first change after a reading makes what all others need; it is part of the first.
    first += _timed(lambda: node.follow([*world.member(nodes + 1), world.membership()]))
    join = _timed(lambda: node.follow([*world.member(nodes), world.membership()]))
    gone = f"node-{nodes}"
    ops = [
        Delete(world.keys.node(gone)),
        Delete(world.keys.alive(gone, f"i{nodes}")),
    ]
    leave = _timed(lambda: node.follow(ops))
    receipts = min(_RECEIPTS, nodes)
    each = _timed(lambda: [node.follow([world.receipt(i, 1 << 41)]) for i in range(receipts)])
    put = world.receipt(nodes - 1, 1 << 41)
    return Costs(
        first_seconds=first,
        join_seconds=join,
        leave_seconds=leave,
        receipt_seconds=each / receipts,
        resident_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        receipt_bytes=len(put.key) + len(put.value) + 60,
    )


def report(nodes: int, partitions: int) -> str:
    """The costs, and what they make together, in words."""
    costs = measure(nodes, partitions)
    everyone = nodes * nodes
    return "\n".join(
        [
            f"{nodes} nodes, {partitions} partitions, one node's part:",
            f"  the first reading and placement   {costs.first_seconds:10.2f} s",
            f"  another's join                    {costs.join_seconds * 1e3:10.2f} ms",
            f"  another's leave                   {costs.leave_seconds * 1e3:10.2f} ms",
            f"  another's receipt                 {costs.receipt_seconds * 1e6:10.0f} us",
            f"  memory, at most                   {costs.resident_bytes / 1e6:10.0f} MB",
            "one rebalance of all of them (each gives one receipt, each sees all):",
            f"  receipts delivered by etcd        {everyone:10} messages",
            f"  and their bytes                   {everyone * costs.receipt_bytes / 1e9:10.2f} GB",
            f"  processor of each node            {nodes * costs.receipt_seconds:10.2f} s",
        ]
    )


def _timed(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began
