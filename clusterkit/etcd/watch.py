"""ClusterKit's own watch: one stream, whole revisions, and an end that always says why.

etcd3's watcher loses the watch and the events of the gap when a connection breaks; this one never
resumes by itself. Whoever iterates resumes, from the last revision that it has applied.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import grpc

from clusterkit.core.keys import range_end
from clusterkit.errors import CompactedError, StoreError
from clusterkit.ports import WatchBatch

from ._pb import rpc_pb2 as pb
from .access import Access
from .channels import (
    SETTLE_SECONDS,
    Channels,
    Connection,
    Metadata,
    TryFailedError,
    failure_of,
)
from .convert import batches
from .translate import Failure, Kind, classify, to_error


class Assembler:
    """Makes whole revisions of a stream's answers. Pure.

    With ``fragment`` a server may split an answer that is too large, in the middle of a revision:
    all but the last piece say so. An answer that is not split always holds whole revisions,
    possibly many.
    """

    def __init__(self) -> None:
        self._pieces: list[pb.Event] = []

    def feed(self, answer: pb.WatchResponse) -> list[WatchBatch]:
        """The batches that are complete with this answer."""
        self._pieces += answer.events
        if answer.fragment:
            return []
        events, self._pieces = self._pieces, []
        return batches(answer.header.revision, answer.header.cluster_id, events)


class EtcdWatch:
    """A running watch; see :class:`clusterkit.ports.Watch`.

    ::

        new ──first next()──► opening ──created──► streaming ──► over
                                 │ next endpoint, or a new token     ▲
                                 └──────────── all failed ───────────┘   close() ──► over, from any
    """

    def __init__(self, channels: Channels, prefix: bytes, start_revision: int) -> None:
        self._channels = channels
        self._access = Access("read", prefix)
        self._name = (
            f"the watch of {prefix.decode(errors='backslashreplace') or '(all keys)'} "
            f"from revision {start_revision}"
        )
        self._start_revision = start_revision
        self._request = pb.WatchRequest(
            create_request=pb.WatchCreateRequest(
                key=prefix or b"\0",
                range_end=range_end(prefix),
                start_revision=start_revision,
                progress_notify=True,
                fragment=True,
            )
        )
        self._assembler = Assembler()
        self._ready: deque[WatchBatch] = deque()
        self._lock = threading.Lock()
        self._closed = False
        self._stream: _Stream | None = None
        self._failure: StoreError | None = None

    def __iter__(self) -> Iterator[WatchBatch]:
        return self

    def __next__(self) -> WatchBatch:
        try:
            if self._failure is not None:
                raise self._failure
            while not self._closed:
                if self._stream is None:
                    self._open()
                if self._ready:
                    return self._ready.popleft()
                self._ready.extend(self._assembler.feed(self._read()))
        except StoreError as e:
            # Whatever goes wrong after close() is the close.
            if not self._closed:
                self._failure = e
                self._end_stream()
                raise
        raise StopIteration

    def close(self) -> None:
        """Ends the watch from any thread; idempotent; wakes the iterating thread."""
        self._closed = True
        self._end_stream()

    def _end_stream(self) -> None:
        with self._lock:
            stream = self._stream
        if stream is not None:
            stream.cancel()

    def _read(self) -> pb.WatchResponse:
        stream = self._stream
        assert stream is not None
        try:
            return stream.read()
        except TryFailedError as e:
            self._channels.note_failed(stream.number, e.failure)
            raise self._error([e.failure]) from e

    def _error(self, failures: list[Failure]) -> StoreError:
        return to_error(
            self._name,
            failures,
            reads_only=True,
            within=self._channels.connect_timeout,
            access=self._access,
        )

    def _open(self) -> None:
        """Opens the stream, on the first endpoint that says ``created``."""
        failures: list[Failure] = []
        cause: Exception | None = None
        for number in self._channels.order():
            try:
                self._open_at(number)
                return
            except TryFailedError as e:
                failures.append(e.failure)
                cause = e
            except ValueError:
                # So grpcio says that a channel has been closed.
                self._channels.check_open(self._name)
                raise
            if failures[-1].kind not in (Kind.UNAVAILABLE, Kind.TIMEOUT):
                break
            self._channels.note_failed(number, failures[-1])
        raise self._error(failures) from cause

    def _open_at(self, number: int) -> None:
        """Opens the stream on one endpoint; with a new token if the first is refused."""
        with self._channels.using(number) as connection:
            self._open_on(connection, number)

    def _open_on(self, connection: Connection, number: int) -> None:
        limit = self._channels.connect_timeout
        if connection.failed:
            connection.settle(min(SETTLE_SECONDS, limit / 2))
        for may_renew in (self._channels.has_user, False):
            metadata = self._channels.metadata(connection, limit)
            stream = _Stream(self._channels, connection, number, self._request, metadata)
            with self._lock:
                self._stream = stream
            # close() may have come before there was a stream to cancel.
            if self._closed:
                stream.cancel()
            try:
                created = stream.read(limit)
            except TryFailedError as e:
                stream.cancel()
                # etcd 3.5.1 calls a token that it does not know "permission denied" here.
                if not may_renew or e.failure.kind not in (Kind.TOKEN, Kind.DENIED):
                    raise
                self._channels.forget_token(metadata)
            else:
                self._channels.note_served(number)
                if created.header.revision < self._start_revision - 1:
                    # It has no events, so this is progress: how far this server is.
                    self._ready.extend(self._assembler.feed(created))
                return


class _Stream:
    """One call of Watch with one watch on it. ``cancel`` may come from any thread."""

    def __init__(
        self,
        channels: Channels,
        connection: Connection,
        number: int,
        request: pb.WatchRequest,
        metadata: Metadata,
    ) -> None:
        self.number = number
        self._endpoint = connection.name
        self._over = threading.Event()
        self._gave_up = False
        self._call: Any = connection.watch.Watch(self._requests(request), metadata=metadata)
        # However the call ends, its connection is then free to be closed.
        channels.retain(connection)

        def over() -> None:
            self._over.set()
            channels.release(connection)

        if not self._call.add_callback(over):
            over()

    def _requests(self, request: pb.WatchRequest) -> Iterator[pb.WatchRequest]:
        """Our side of the stream: one request, and then open until the call is over.

        etcd itself would not mind its end, but proxies take that for the end of the watch.
        """
        yield request
        self._over.wait()

    def read(self, limit: float | None = None) -> pb.WatchResponse:
        """The next answer; waits ``limit`` seconds, or as long as the connection lives.

        Raises:
            CompactedError: The revision asked for is gone.
            TryFailedError: The stream is over for any other reason.
        """
        timer = None if limit is None else threading.Timer(limit, self._give_up)
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            answer: pb.WatchResponse = next(self._call)
        except StopIteration:
            raise TryFailedError(
                Failure(Kind.UNAVAILABLE, True, "the stream ended without a reason", self._endpoint)
            ) from None
        except grpc.RpcError as e:
            failure = failure_of(e, self._endpoint)
            if self._gave_up:
                failure = Failure(Kind.TIMEOUT, True, "no answer", self._endpoint)
            raise TryFailedError(failure) from e
        finally:
            if timer is not None:
                timer.cancel()
        if answer.canceled:
            raise refusal(answer, self._endpoint)
        return answer

    def _give_up(self) -> None:
        self._gave_up = True
        self._call.cancel()

    def cancel(self) -> None:
        self._call.cancel()


def refusal(answer: pb.WatchResponse, endpoint: str) -> CompactedError | TryFailedError:
    """Why a server canceled a watch; that is final, even when it says ``created`` as well."""
    if answer.compact_revision:
        return CompactedError(
            f"revision asked for is older than {answer.compact_revision}, the oldest that etcd at "
            f"{endpoint} keeps: read the present state and watch from there",
            compact_revision=answer.compact_revision,
        )
    reason = answer.cancel_reason or "the server canceled the watch without a reason"
    return TryFailedError(classify(grpc.StatusCode.UNKNOWN, reason, endpoint))
