"""The words of ``clusterkit.ports`` as etcd's messages, and back. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from clusterkit.ports import (
    Compare,
    Delete,
    Get,
    KeyValue,
    Op,
    Put,
    RangeResult,
    Txn,
    TxnResult,
    WatchBatch,
    WatchEvent,
)

from ._etcd3 import transactions
from ._pb import rpc_pb2 as pb

_RESULTS = {
    "==": pb.Compare.EQUAL,
    "!=": pb.Compare.NOT_EQUAL,
    "<": pb.Compare.LESS,
    ">": pb.Compare.GREATER,
}


def key_value(kv: pb.KeyValue) -> KeyValue:
    return KeyValue(
        key=kv.key,
        value=kv.value,
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
        version=kv.version,
        lease=kv.lease,
    )


def range_result(answer: pb.RangeResponse) -> RangeResult:
    return RangeResult(
        kvs=tuple(key_value(kv) for kv in answer.kvs),
        revision=answer.header.revision,
        cluster_id=answer.header.cluster_id,
    )


@dataclass(frozen=True, slots=True)
class BuiltCompare:
    """A condition in the form that etcd3's ``transaction`` takes."""

    message: pb.Compare

    def build_message(self) -> pb.Compare:
        return self.message


def compare_message(compare: Compare) -> pb.Compare:
    """One condition. Built here, because etcd3 cannot compare a lease."""
    message = pb.Compare(
        result=_RESULTS[compare.op], key=compare.key, range_end=compare.range_end or b""
    )
    match compare.target, compare.value:
        case "value", bytes(value):
            message.target = pb.Compare.VALUE
            message.value = value
        case "version", int(number):
            message.target = pb.Compare.VERSION
            message.version = number
        case "create", int(number):
            message.target = pb.Compare.CREATE
            message.create_revision = number
        case "mod", int(number):
            message.target = pb.Compare.MOD
            message.mod_revision = number
        case "lease", int(number):
            message.target = pb.Compare.LEASE
            message.lease = number
        case target, value:
            raise TypeError(f"a compare of {target!r} cannot be with {value!r}")
    return message


def etcd3_ops(ops: Iterable[Op]) -> list[Any]:
    """Operations in etcd3's words."""

    def one(op: Op) -> Any:
        match op:
            case Put(key, value, lease):
                return transactions.Put(key, value, lease=lease)
            case Delete(key, range_end):
                return transactions.Delete(key, range_end)
            case Get(key, range_end):
                return transactions.Get(key, range_end)

    return [one(op) for op in ops]


def writes(txn: Txn) -> bool:
    """Whether the transaction may change anything; else it can be sent as often as one likes."""
    return any(not isinstance(op, Get) for op in (*txn.success, *txn.failure))


def txn_result(answer: pb.TxnResponse) -> TxnResult:
    return TxnResult(
        succeeded=answer.succeeded,
        revision=answer.header.revision,
        reads=tuple(
            tuple(key_value(kv) for kv in response.response_range.kvs)
            for response in answer.responses
            if response.WhichOneof("response") == "response_range"
        ),
    )


def batches(revision: int, cluster_id: int, events: Iterable[pb.Event]) -> list[WatchBatch]:
    """Events in etcd's order, one batch a revision; no events: progress up to ``revision``."""
    grouped: dict[int, list[WatchEvent]] = {}
    for event in events:
        kind = WatchEvent(
            kind="delete" if event.type == pb.Event.DELETE else "put", kv=key_value(event.kv)
        )
        grouped.setdefault(event.kv.mod_revision, []).append(kind)
    if not grouped:
        return [WatchBatch(revision=revision, events=(), cluster_id=cluster_id)]
    return [
        WatchBatch(revision=at, events=tuple(changes), cluster_id=cluster_id)
        for at, changes in grouped.items()
    ]
