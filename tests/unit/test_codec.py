"""The values in etcd: what is written is read again, by this release and by later ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clusterkit._pb import cluster_pb2 as pb
from clusterkit.core import codec
from clusterkit.core.codec import CodecError
from clusterkit.core.placement import MAX_WEIGHT
from clusterkit.core.records import (
    Alive,
    ClusterConfig,
    Departure,
    EndReason,
    History,
    NodeRecord,
    Process,
    RebalanceRequest,
    Receipt,
    Registration,
)
from clusterkit.model import Node

T0 = datetime(2024, 5, 17, 12, 30, 15, 123456, UTC)
T1 = datetime(2024, 5, 17, 13, 0, tzinfo=UTC)
STAY = Registration("nonce-1", "inc-1", T0)
NEXT = Registration("nonce-2", "inc-2", T1)
END = Departure(STAY, "graceful_shutdown", T1, 17, (0, 3, 300))

CONFIG = ClusterConfig(64, 3, "crc32", 1, 0xFEDC_BA98_7654_3210)
NODE = NodeRecord(
    Node(
        id="pod-0",
        address="10.0.0.1:8080",
        services=MappingProxyType({"admin": "10.0.0.1:9", "http": "10.0.0.1:80"}),
        zone="eu-1",
        weight=250,
        labels=MappingProxyType({"rack": "r1"}),
        incarnation="inc-2",
        state="draining",
        joined_at=T1,
    ),
    nonce="nonce-2",
    storage="disk",
    previous=END,
    bootstrap=True,
    process=Process("boot", "pid:[1]", 42, 1234567890123, "host-1"),
)
PLAIN = NodeRecord(
    Node("pod-1", "h:1", MappingProxyType({}), None, 0, MappingProxyType({}), "i", "active", T0),
    nonce="n",
    storage="memory",
    previous=None,
    bootstrap=False,
    process=Process(),
)
ALIVE = Alive("nonce-1", ("db", "disk"))
HISTORY = History(NEXT, (END,))
RECEIPT = Receipt("nonce-1", (7 << 16) + 65533)
REQUEST = RebalanceRequest("pod-0", "to see whether it works", T0)

GOLDEN = Path(__file__).parents[1] / "golden" / "records.json"

# name in the golden file → (the record, its bytes today, how it is read)
KINDS: dict[str, tuple[object, bytes, Callable[[bytes], object]]] = {
    "config": (CONFIG, codec.encode_config(CONFIG, T0), codec.decode_config),
    "nodes": (NODE, codec.encode_node(NODE), lambda b: codec.decode_node("pod-0", b)),
    "nodes, the least": (PLAIN, codec.encode_node(PLAIN), lambda b: codec.decode_node("pod-1", b)),
    "alive": (ALIVE, codec.encode_alive(ALIVE), codec.decode_alive),
    "history": (HISTORY, codec.history_with(b"", ended=END, opened=NEXT), codec.decode_history),
    "applied": (RECEIPT, codec.encode_receipt(RECEIPT), codec.decode_receipt),
    "rebalance": (REQUEST, codec.encode_rebalance(REQUEST), codec.decode_rebalance),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_again(kind: str) -> None:
    record, data, decode = KINDS[kind]
    assert decode(data) == record


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_first_release_wrote_is_still_read(kind: str) -> None:
    # Never change a line of the file: its bytes are in people's clusters. Only add to it.
    golden = cast("dict[str, str]", json.loads(GOLDEN.read_text(encoding="utf-8")))
    record, _, decode = KINDS[kind]
    assert decode(bytes.fromhex(golden[kind])) == record


def test_membership_is_never_read_but_says_who_and_when() -> None:
    golden = cast("dict[str, str]", json.loads(GOLDEN.read_text(encoding="utf-8")))
    data = codec.encode_membership("pod-0", T0)
    for each in (data, bytes.fromhex(golden["membership"])):
        m = pb.Membership.FromString(each)
        assert (m.node_id, codec.from_micros(m.changed_at)) == ("pod-0", T0)


def test_the_golden_file_has_every_kind_and_no_other() -> None:
    assert set(json.loads(GOLDEN.read_text(encoding="utf-8"))) == {*KINDS, "membership"}


texts = st.text(max_size=8)
names = st.text(min_size=1, max_size=8)
times = st.integers(1, 2**57).map(codec.from_micros).map(lambda t: t or T0)
registrations = st.builds(Registration, names, names, times)
reasons = st.sampled_from(
    cast(
        "list[EndReason]",
        ["health_check_failure", "graceful_shutdown", "removed_by_admin", "replaced"],
    )
)
departures = st.builds(
    Departure,
    registrations,
    reasons,
    st.none() | times,
    st.integers(0, 2**63 - 1),
    st.lists(st.integers(0, 2**32 - 1), max_size=4).map(tuple),
)
mappings = st.dictionaries(texts, texts, max_size=3).map(MappingProxyType)


@st.composite
def node_records(draw: st.DrawFn) -> NodeRecord:
    stay = draw(registrations)
    node = Node(
        id=draw(names),
        address=draw(texts),
        services=draw(mappings),
        zone=draw(st.none() | names),
        weight=draw(st.integers(0, MAX_WEIGHT)),
        labels=draw(mappings),
        incarnation=stay.incarnation,
        state=draw(st.sampled_from(["active", "draining"])),
        joined_at=stay.joined_at,
    )
    return NodeRecord(
        node=node,
        nonce=stay.nonce,
        storage="disk" if draw(st.booleans()) else "memory",
        previous=draw(st.none() | departures),
        bootstrap=draw(st.booleans()),
        process=draw(
            st.builds(
                Process, texts, texts, st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), texts
            )
        ),
    )


@given(node_records())
def test_any_node_comes_back(record: NodeRecord) -> None:
    assert codec.decode_node(record.node.id, codec.encode_node(record)) == record


@given(mappings)
def test_the_order_of_a_mapping_does_not_show(labels: MappingProxyType[str, str]) -> None:
    turned = MappingProxyType(dict(reversed(list(labels.items()))))
    one = codec.encode_node(replace(PLAIN, node=replace(PLAIN.node, labels=labels)))
    other = codec.encode_node(replace(PLAIN, node=replace(PLAIN.node, labels=turned)))
    assert one == other
    assert list(codec.decode_node("a", one).node.labels) == sorted(labels)


@pytest.mark.parametrize("when", [None, T0, datetime(1969, 1, 1, tzinfo=UTC)])
def test_times_come_back_to_the_microsecond_and_0_is_not_known(when: datetime | None) -> None:
    assert codec.from_micros(codec.to_micros(when)) == when


# -- histories -----------------------------------------------------------------------------------


def stay(number: int) -> Registration:
    return Registration(f"nonce-{number}", f"inc-{number}", T0)


def test_a_history_keeps_the_newest_stays_oldest_first() -> None:
    raw = b""
    for number in range(codec.MAX_DEPARTURES + 3):
        raw = codec.history_with(raw, opened=stay(number))
        assert codec.decode_history(raw).open == stay(number)
        ended = Departure(stay(number), "graceful_shutdown", T1, 0, (number, 99))
        raw = codec.history_with(raw, ended=ended)
        assert codec.decode_history(raw).open is None
    found = codec.decode_history(raw)
    numbers = range(3, codec.MAX_DEPARTURES + 3)
    assert [d.registration for d in found.departures] == [stay(n) for n in numbers]
    # Only the newest keeps its partitions: they are what is long.
    assert [d.partitions for d in found.departures[:-1]] == [()] * (codec.MAX_DEPARTURES - 1)
    assert found.departures[-1].partitions == (codec.MAX_DEPARTURES + 2, 99)
    assert found.end_of("nonce-5") == found.departures[2]
    assert found.end_of("nonce-0") is None


def test_a_takeover_ends_one_stay_and_opens_the_next() -> None:
    raw = codec.history_with(b"", opened=STAY)
    raw = codec.history_with(raw, ended=replace(END, reason="replaced"), opened=NEXT)
    assert codec.decode_history(raw) == History(NEXT, (replace(END, reason="replaced"),))


# A field of a release to come: number 2047, in each place where one may stand.
UNKNOWN = b"\xfa\x7f\x05later"


def test_writing_a_history_again_keeps_what_this_release_does_not_know() -> None:
    known = pb.History.FromString(codec.history_with(b"", ended=END)).departures[0]
    departure = pb.Departure.FromString(known.SerializeToString() + UNKNOWN)
    raw = pb.History(departures=[departure]).SerializeToString() + UNKNOWN
    later = Departure(NEXT, "removed_by_admin", T1, 0)
    for written in (
        codec.history_with(raw, opened=NEXT),
        codec.history_with(raw, ended=later),
        codec.history_with(raw, ended=later, opened=stay(3)),
    ):
        assert written.count(UNKNOWN) == 2
        assert codec.decode_history(written).departures[0].registration == STAY


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_of_a_later_release_does_not_hinder_reading(kind: str) -> None:
    record, data, decode = KINDS[kind]
    assert decode(data + UNKNOWN) == record


# -- damage --------------------------------------------------------------------------------------

DAMAGED: list[tuple[str, Callable[[bytes], object], bytes, str]] = [
    ("no message", codec.decode_config, b"\xff\xff", "ClusterConfig"),
    ("no message", codec.decode_alive, b"\xff\xff", "Alive"),
    ("an empty config", codec.decode_config, b"", "without partitions"),
    (
        "a config without a replication factor",
        codec.decode_config,
        codec.encode_config(replace(CONFIG, replication_factor=0), T0),
        "replication factor",
    ),
    (
        "more partitions than can be served",
        codec.decode_config,
        codec.encode_config(replace(CONFIG, partitions=codec.MAX_PARTITIONS + 1), T0),
        "1048577 partitions",
    ),
    (
        "an unknown hash",
        codec.decode_config,
        codec.encode_config(replace(CONFIG, key_hash="md5"), T0),
        "'md5'",
    ),
    ("a node without a registration", lambda b: codec.decode_node("a", b), b"", "nonce"),
    (
        "a node without an incarnation",
        lambda b: codec.decode_node("a", b),
        pb.Node(registration=pb.Registration(nonce="n")).SerializeToString(),
        "incarnation",
    ),
    (
        "too heavy",
        lambda b: codec.decode_node("a", b),
        codec.encode_node(replace(PLAIN, node=replace(PLAIN.node, weight=MAX_WEIGHT + 1))),
        "weight 1000001",
    ),
    (
        "a time beyond the calendar",
        codec.decode_rebalance,
        pb.Rebalance(requested_at=2**63 - 1).SerializeToString(),
        "out of range",
    ),
    (
        "a time before the calendar",
        codec.decode_rebalance,
        pb.Rebalance(requested_at=-(2**63)).SerializeToString(),
        "out of range",
    ),
    (
        "a history that opens nothing",
        codec.decode_history,
        pb.History(open=pb.Registration()).SerializeToString(),
        "nonce",
    ),
    ("a text that is no UTF-8", codec.decode_alive, b"\x0a\x01\xff", "Alive"),
]


@pytest.mark.parametrize(
    "decode, data, told", [d[1:] for d in DAMAGED], ids=[d[0] for d in DAMAGED]
)
def test_damage_is_told(decode: Callable[[bytes], object], data: bytes, told: str) -> None:
    with pytest.raises(CodecError, match=told):
        decode(data)


DECODERS: list[Callable[[bytes], object]] = [
    codec.decode_config,
    lambda data: codec.decode_node("a", data),
    codec.decode_alive,
    codec.decode_history,
    codec.decode_receipt,
    codec.decode_rebalance,
    lambda data: codec.history_with(data, ended=END, opened=NEXT),
]


def decode_or_codec_error(data: bytes) -> None:
    for decode in DECODERS:
        try:
            decode(data)
        except CodecError:
            continue


@given(st.binary(max_size=60))
@example(b"")
def test_random_bytes_never_raise_anything_else(data: bytes) -> None:
    decode_or_codec_error(data)


@given(st.sampled_from(sorted(KINDS)), st.data())
def test_a_value_with_a_few_damaged_bytes_never_raises_anything_else(
    kind: str, data: st.DataObject
) -> None:
    damaged = bytearray(KINDS[kind][1])
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    decode_or_codec_error(bytes(damaged))
    decode_or_codec_error(bytes(damaged[:cut]))
