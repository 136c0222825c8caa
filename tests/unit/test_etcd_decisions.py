"""What the adapter decides without a server: meanings of errors, addresses, whole revisions."""

from __future__ import annotations

import grpc
import pytest

from clusterkit.core.keys import range_end
from clusterkit.errors import (
    CompactedError,
    OptionError,
    StoreAuthError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from clusterkit.etcd import EtcdStore, TLSFiles
from clusterkit.etcd._pb import rpc_pb2 as pb
from clusterkit.etcd.access import Access, access_of
from clusterkit.etcd.endpoints import channel_options, parse_endpoint
from clusterkit.etcd.translate import Kind, classify, to_error
from clusterkit.etcd.watch import Assembler, refusal
from clusterkit.ports import Compare, Delete, Get, Put, Txn

Code = grpc.StatusCode


@pytest.mark.parametrize(
    "code, details, kind, unsent",
    [
        (Code.UNAVAILABLE, "failed to connect to all addresses; last error: …",
         Kind.UNAVAILABLE, True),
        (Code.UNAVAILABLE, "DNS resolution failed for etcd:2379", Kind.UNAVAILABLE, True),
        (Code.UNAVAILABLE, "etcdserver: no leader", Kind.UNAVAILABLE, True),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests", Kind.UNAVAILABLE, True),
        (Code.UNAVAILABLE, "errors resolving etcd:2379: [field:hostname lookup error: …]",
         Kind.UNAVAILABLE, True),
        # It was sent, and whether it was carried out nobody knows.
        (Code.UNAVAILABLE, "Socket closed", Kind.UNAVAILABLE, False),
        (Code.UNAVAILABLE, "etcdserver: request timed out", Kind.UNAVAILABLE, False),
        (Code.UNAVAILABLE, "etcdserver: leader changed", Kind.UNAVAILABLE, False),
        (Code.UNAVAILABLE, "a text that nobody has seen yet", Kind.UNAVAILABLE, False),
        (Code.INTERNAL, "stream broken", Kind.UNAVAILABLE, False),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", Kind.TIMEOUT, False),
        (Code.UNAUTHENTICATED, "etcdserver: invalid auth token", Kind.TOKEN, True),
        (Code.INVALID_ARGUMENT, "etcdserver: user name is empty", Kind.TOKEN, True),
        (Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", Kind.TOKEN, True),
        (Code.PERMISSION_DENIED, "etcdserver: permission denied", Kind.DENIED, True),
        (Code.INVALID_ARGUMENT,
         "etcdserver: authentication failed, invalid user ID or password", Kind.AUTH, True),
        (Code.NOT_FOUND, "etcdserver: requested lease not found", Kind.LEASE_GONE, True),
        (Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request",
         Kind.REFUSED, True),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded",
         Kind.NO_SPACE, True),
    ],
)  # fmt: skip
def test_what_a_status_means(code: Code, details: str, kind: Kind, unsent: bool) -> None:
    failure = classify(code, details, "h:1")
    assert (failure.kind, failure.unsent, failure.endpoint) == (kind, unsent, "h:1")


@pytest.mark.parametrize(
    "code, details, error",
    [
        (Code.UNAVAILABLE, "Socket closed", StoreUnavailableError),
        (Code.DEADLINE_EXCEEDED, "", StoreTimeoutError),
        (Code.PERMISSION_DENIED, "etcdserver: permission denied", StoreAuthError),
        (Code.UNAUTHENTICATED, "etcdserver: invalid auth token", StoreAuthError),
        (Code.INVALID_ARGUMENT, "etcdserver: request is too large", StoreError),
    ],
)
def test_which_error_it_becomes(code: Code, details: str, error: type[StoreError]) -> None:
    made = to_error("a read", [classify(code, details, "h:1")], reads_only=True, within=2)
    assert type(made) is error
    assert "a read" in str(made)
    assert "h:1" in str(made)


def test_an_etcd_that_is_overloaded_may_be_asked_again_after_a_pause() -> None:
    """Too many requests are turned away unread, so a write too may be sent again."""
    turned_away = classify(Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests", "h:1")
    made = to_error("a transaction", [turned_away], reads_only=False)
    assert type(made) is StoreUnavailableError
    assert made.retryable
    assert "overloaded: ask again after a pause" in str(made)


def test_what_a_transaction_needs_of_the_role() -> None:
    put, get = Put(b"/p/c/x/1", b""), Get(b"/p/c/y/2")
    compare = Compare(b"/p/c/z", "mod", "==", 0, b"/p/c/{")
    for txn, access in (
        (Txn((), (put,)), Access("write", b"/p/c/x/1")),
        (Txn((), (), (put,)), Access("write", b"/p/c/x/1")),
        (Txn((), (get,)), Access("read", b"/p/c/y/2")),
        (Txn((compare,), ()), Access("read", b"/p/c/")),
        (Txn((compare,), (put,)), Access("readwrite", b"/p/c/")),
        (Txn((), (Delete(b"/p/c/a", b"/p/c/b"), get)), Access("readwrite", b"/p/c/")),
        (Txn((), (put, Put(b"other", b""))), Access("write", b"")),
        (Txn((), ()), Access("read", b"")),
    ):
        assert access_of(txn) == access
    assert "all keys" in str(Access("read", b""))


@pytest.mark.parametrize(
    "details, reads_only, retryable",
    [
        ("failed to connect to all addresses", False, True),
        ("Socket closed", False, False),
        ("Socket closed", True, True),
    ],
)
def test_an_error_is_retryable_only_if_that_does_no_harm(
    details: str, reads_only: bool, retryable: bool
) -> None:
    failures = [
        classify(Code.UNAVAILABLE, "failed to connect to all addresses", "h:1"),
        classify(Code.UNAVAILABLE, details, "h:2"),
    ]
    made = to_error("a transaction", failures, reads_only=reads_only)
    assert made.retryable is retryable
    assert ("may or may not" in str(made)) is not retryable


@pytest.mark.parametrize(
    "text, parts",
    [
        ("etcd:2379", ("etcd", 2379)),
        ("etcd-0.etcd.default.svc.cluster.local:2379",
         ("etcd-0.etcd.default.svc.cluster.local", 2379)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[::1]:2379", ("[::1]", 2379)),
    ],
)  # fmt: skip
def test_an_endpoint(text: str, parts: tuple[str, int]) -> None:
    assert parse_endpoint(text) == parts


@pytest.mark.parametrize(
    "text",
    ["", "etcd", ":2379", "etcd:", "etcd:0", "etcd:65536", "etcd:-1", "etcd:²", "::1:2379",
     "http://etcd:2379", "a b:2379", "a/b:2379", "a\0:1"],
)  # fmt: skip
def test_what_is_no_endpoint_is_refused_by_name(text: str) -> None:
    with pytest.raises(OptionError, match="endpoint") as caught:
        EtcdStore([text])
    assert caught.value.option == "endpoints"
    assert caught.value.value == text


def test_options_that_cannot_work_together() -> None:
    for make in (
        lambda: EtcdStore([]),
        lambda: EtcdStore(["h:1"], username="u"),
        lambda: EtcdStore(["h:1"], password="p"),
        lambda: EtcdStore(["h:1"], connect_timeout=0),
        lambda: TLSFiles(cert="c"),
        lambda: TLSFiles(key="k"),
    ):
        with pytest.raises(OptionError):
            make()


@pytest.mark.parametrize(
    "prefix, end",
    [
        (b"/a/", b"/a0"),
        (b"a\xff", b"b"),
        (b"a\xfe\xff\xff", b"a\xff"),
        (b"\xff", b"\0"),
        (b"", b"\0"),
    ],
)
def test_the_end_of_a_prefix(prefix: bytes, end: bytes) -> None:
    assert range_end(prefix) == end


def answer(*revisions: int, fragment: bool = False, header: int = 99) -> pb.WatchResponse:
    return pb.WatchResponse(
        header=pb.ResponseHeader(revision=header, cluster_id=7),
        fragment=fragment,
        events=[pb.Event(kv=pb.KeyValue(key=b"k", mod_revision=at)) for at in revisions],
    )


def test_one_answer_with_several_revisions_is_a_batch_for_each() -> None:
    made = Assembler().feed(answer(5, 5, 6, 8, 8, 8))
    assert [(b.revision, len(b.events), b.cluster_id) for b in made] == [
        (5, 2, 7),
        (6, 1, 7),
        (8, 3, 7),
    ]


def test_a_revision_that_is_split_over_fragments_is_held_back_until_it_is_whole() -> None:
    assembler = Assembler()
    assert assembler.feed(answer(5, 6, fragment=True)) == []
    assert assembler.feed(answer(6, 6, fragment=True)) == []
    made = assembler.feed(answer(6, 7))
    assert [(b.revision, len(b.events)) for b in made] == [(5, 1), (6, 4), (7, 1)]
    assert [b.revision for b in assembler.feed(answer(8))] == [8]


def test_an_answer_without_events_is_progress() -> None:
    (batch,) = Assembler().feed(answer(header=12))
    assert (batch.revision, batch.events, batch.cluster_id) == (12, (), 7)


def test_why_a_server_cancels_a_watch() -> None:
    compacted = refusal(pb.WatchResponse(canceled=True, compact_revision=9), "h:1")
    assert isinstance(compacted, CompactedError)
    assert compacted.compact_revision == 9

    denied = refusal(
        pb.WatchResponse(
            created=True,
            canceled=True,
            cancel_reason="rpc error: code = PermissionDenied desc = etcdserver: permission denied",
        ),
        "h:1",
    )
    assert not isinstance(denied, CompactedError)
    assert denied.failure.kind is Kind.DENIED

    unknown = refusal(pb.WatchResponse(canceled=True), "h:1")
    assert not isinstance(unknown, CompactedError)
    assert unknown.failure.kind is Kind.UNAVAILABLE


@pytest.mark.parametrize("connect, ping", [(0.5, 3_000), (5.0, 3_000), (120.0, 72_000)])
def test_whoever_gives_etcd_more_time_gives_it_to_a_connection_too(
    connect: float, ping: int
) -> None:
    assert dict(channel_options(None, connect))["grpc.http2.ping_timeout_ms"] == ping
