"""Between the bytes in etcd and the records: protobuf, and nothing but protobuf.

What cannot be decoded raises :class:`CodecError`; the caller reports the key once and goes on.
A value that is read, changed and written again keeps the fields that this release does not know,
so that old and new releases can share a cluster.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from .._pb import cluster_pb2 as pb
from ..model import Node
from .hashing import KEY_HASHES
from .placement import MAX_WEIGHT
from .records import (
    Alive,
    ClusterConfig,
    Cordon,
    Departure,
    EndReason,
    History,
    NodeRecord,
    Process,
    RebalanceRequest,
    Receipt,
    Registration,
)

MAX_PARTITIONS = 1 << 20

MAX_DEPARTURES = 8
"""How many past stays a history keeps."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_REASONS: dict[EndReason, pb.LeaveReason] = {
    "health_check_failure": pb.LEAVE_REASON_HEALTH_CHECK_FAILURE,
    "graceful_shutdown": pb.LEAVE_REASON_GRACEFUL_SHUTDOWN,
    "removed_by_admin": pb.LEAVE_REASON_REMOVED_BY_ADMIN,
    "replaced": pb.LEAVE_REASON_REPLACED,
}
_REASON_NAMES = {number: name for name, number in _REASONS.items()}

M = TypeVar("M", bound=Message)


class CodecError(ValueError):
    """The bytes are not a value of this kind."""


def _parse(message: M, data: bytes) -> M:
    try:
        message.ParseFromString(data)
    except DecodeError as e:
        raise CodecError(f"not a {type(message).__name__} message: {e}") from e
    return message


def to_micros(when: datetime | None) -> int:
    """Microseconds since 1970 in UTC; 0 for None."""
    return 0 if when is None else (when - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime | None:
    """The reverse of :func:`to_micros`."""
    if not micros:
        return None
    try:
        return _EPOCH + timedelta(microseconds=micros)
    except OverflowError as e:
        raise CodecError(f"the time {micros} is out of range") from e


def _time(micros: int) -> datetime:
    return from_micros(micros) or _EPOCH


def _registration_pb(r: Registration) -> pb.Registration:
    return pb.Registration(
        nonce=r.nonce, incarnation=r.incarnation, joined_at=to_micros(r.joined_at)
    )


def _registration(m: pb.Registration) -> Registration:
    if not m.nonce or not m.incarnation:
        raise CodecError("a registration without nonce or incarnation")
    return Registration(m.nonce, m.incarnation, _time(m.joined_at))


def _departure_pb(d: Departure) -> pb.Departure:
    return pb.Departure(
        registration=_registration_pb(d.registration),
        reason=_REASONS[d.reason],
        left_at=to_micros(d.left_at),
        left_revision=d.left_revision,
        partitions=d.partitions,
    )


def _departure(m: pb.Departure) -> Departure:
    reason = _REASON_NAMES.get(m.reason)
    if reason is None:
        raise CodecError(f"a departure with the unknown reason {m.reason}")
    return Departure(
        registration=_registration(m.registration),
        reason=reason,
        left_at=from_micros(m.left_at),
        left_revision=m.left_revision,
        partitions=tuple(m.partitions),
    )


def encode_config(c: ClusterConfig, created_at: datetime) -> bytes:
    return pb.ClusterConfig(
        partitions=c.partitions,
        replication_factor=c.replication_factor,
        key_hash=c.key_hash,
        algorithm_version=c.algorithm_version,
        seed=c.seed,
        created_at=to_micros(created_at),
        balance_percent=c.balance_percent or 0,
        balance_primaries=c.balance_primaries,
    ).SerializeToString(deterministic=True)


def config_with(raw: bytes, c: ClusterConfig) -> bytes:
    """The config ``raw`` with what may change in a cluster's life as in ``c``."""
    m = _parse(pb.ClusterConfig(), raw)
    m.replication_factor = c.replication_factor
    m.balance_percent = c.balance_percent or 0
    m.balance_primaries = c.balance_primaries
    return m.SerializeToString(deterministic=True)


def decode_config(data: bytes) -> ClusterConfig:
    m = _parse(pb.ClusterConfig(), data)
    if not (m.partitions and m.replication_factor and m.key_hash and m.algorithm_version):
        raise CodecError("a cluster config without partitions, replication factor, hash or version")
    if m.partitions > MAX_PARTITIONS or m.key_hash not in KEY_HASHES:
        raise CodecError(
            f"a cluster config with {m.partitions} partitions and the key hash {m.key_hash!r}, "
            "which this release cannot serve"
        )
    return ClusterConfig(
        m.partitions,
        m.replication_factor,
        m.key_hash,
        m.algorithm_version,
        m.seed,
        balance_percent=m.balance_percent or None,
        balance_primaries=m.balance_primaries,
    )


def encode_cordon(c: Cordon) -> bytes:
    return pb.Cordon(reason=c.reason, since=to_micros(c.since)).SerializeToString()


def decode_cordon(data: bytes) -> Cordon:
    m = _parse(pb.Cordon(), data)
    return Cordon(m.reason, _time(m.since))


def encode_node(r: NodeRecord) -> bytes:
    n = r.node
    return pb.Node(
        address=n.address,
        services=n.services,
        zone=n.zone or "",
        weight=n.weight,
        labels=n.labels,
        state=pb.NODE_STATE_DRAINING if n.state == "draining" else pb.NODE_STATE_ACTIVE,
        storage=pb.STORAGE_DISK if r.storage == "disk" else pb.STORAGE_MEMORY,
        registration=_registration_pb(r.registration),
        previous=None if r.previous is None else _departure_pb(r.previous),
        bootstrap=r.bootstrap,
        process=pb.Process(
            boot_id=r.process.boot_id,
            pid_namespace=r.process.pid_namespace,
            pid=r.process.pid,
            started=r.process.started,
            host=r.process.host,
        ),
    ).SerializeToString(deterministic=True)


def decode_node(node_id: str, data: bytes) -> NodeRecord:
    m = _parse(pb.Node(), data)
    registration = _registration(m.registration)
    if m.weight > MAX_WEIGHT:
        raise CodecError(f"a node with the weight {m.weight}; the most is {MAX_WEIGHT}")
    p = m.process
    return NodeRecord(
        node=Node(
            id=node_id,
            address=m.address,
            services=MappingProxyType(dict(sorted(m.services.items()))),
            zone=m.zone or None,
            weight=m.weight,
            labels=MappingProxyType(dict(sorted(m.labels.items()))),
            incarnation=registration.incarnation,
            state="draining" if m.state == pb.NODE_STATE_DRAINING else "active",
            joined_at=registration.joined_at,
        ),
        nonce=registration.nonce,
        storage="disk" if m.storage == pb.STORAGE_DISK else "memory",
        previous=_departure(m.previous) if m.HasField("previous") else None,
        bootstrap=m.bootstrap,
        process=Process(p.boot_id, p.pid_namespace, p.pid, p.started, p.host),
    )


def encode_alive(a: Alive) -> bytes:
    return pb.Alive(nonce=a.nonce, failing_checks=a.failing_checks).SerializeToString()


def decode_alive(data: bytes) -> Alive:
    m = _parse(pb.Alive(), data)
    return Alive(m.nonce, tuple(m.failing_checks))


def decode_history(data: bytes) -> History:
    m = _parse(pb.History(), data)
    return History(
        open=_registration(m.open) if m.HasField("open") else None,
        departures=tuple(_departure(d) for d in m.departures),
        raw=data,
    )


def history_with(
    raw: bytes, *, ended: Departure | None = None, opened: Registration | None = None
) -> bytes:
    """The history ``raw`` (empty if there is none) after a stay ended, or began, or both.

    Whatever was open is closed by this: the caller passes its end in ``ended``.
    """
    m = _parse(pb.History(), raw)
    if ended is not None:
        for d in m.departures:
            del d.partitions[:]  # only the newest keeps them: they are what is long
        m.departures.append(_departure_pb(ended))
        del m.departures[:-MAX_DEPARTURES]
    m.ClearField("open")
    if opened is not None:
        m.open.CopyFrom(_registration_pb(opened))
    return m.SerializeToString(deterministic=True)


def encode_receipt(r: Receipt) -> bytes:
    return pb.Applied(nonce=r.nonce, epoch=r.epoch).SerializeToString()


def decode_receipt(data: bytes) -> Receipt:
    m = _parse(pb.Applied(), data)
    return Receipt(m.nonce, m.epoch)


def encode_membership(node_id: str, changed_at: datetime) -> bytes:
    return pb.Membership(node_id=node_id, changed_at=to_micros(changed_at)).SerializeToString()


def encode_rebalance(r: RebalanceRequest) -> bytes:
    return pb.Rebalance(
        node_id=r.node_id, reason=r.reason, requested_at=to_micros(r.requested_at)
    ).SerializeToString()


def decode_rebalance(data: bytes) -> RebalanceRequest:
    m = _parse(pb.Rebalance(), data)
    return RebalanceRequest(m.node_id, m.reason, _time(m.requested_at))
