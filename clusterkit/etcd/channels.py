"""Connections to the endpoints: one channel each, used in turn, with deadlines and the token.

Which endpoint is next, what a failure means for the call, and when a token is renewed are
decided here, for all calls alike. A call stays with the endpoint that last served; when that
fails, the next one is tried, each at most once a call.

* Calls that only read, and those of leases, go to the next endpoint after any failure. Each try
  gets an even share of the time that is left, so that a server that is frozen leaves time for
  the others.
* Writes go on only after a failure that says that the request was not carried out. So that as
  much as possible is found out before a write is sent, an endpoint that has not just served is
  first asked for its status.

When the TLS files change, an endpoint gets a new connection at its next call. The old one is closed
once nothing runs on it any more; a watch stays on it until it breaks, and is opened on the new one.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import grpc

from clusterkit.errors import StoreError

from . import _stubs
from ._etcd3 import Etcd3Client, Etcd3Exception
from ._pb import rpc_pb2 as pb
from .access import Access
from .certificates import Certificates, Material
from .endpoints import TLSFiles, channel_options, parse_endpoints
from .translate import Failure, Kind, classify, to_error

_log = logging.getLogger(__name__)

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]

# A member without a leader then answers at once that it has none, instead of holding the call.
_REQUIRE_LEADER: Metadata = (("hasleader", "true"),)


SETTLE_SECONDS = 0.25


class TryFailedError(Exception):
    """A try on one endpoint failed, for a reason that is understood already. Stays in here."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


class Call:
    """One try of one call on one endpoint: what to send it with."""

    def __init__(self, connection: Connection, timeout: float, metadata: Metadata) -> None:
        self.connection = connection
        self.timeout = timeout
        self.metadata = metadata

    @property
    def etcd3(self) -> Any:
        """etcd3's client for this try.

        Its deadline and metadata are attributes of the client, ours differ from call to call and
        from thread to thread: hence a copy, which shares the channel and the stubs.
        """
        client = copy.copy(self.connection.client)
        client.timeout = self.timeout
        client.metadata = self.metadata
        return client


class Connection:
    """One endpoint: etcd3's client with its channel, and our stubs on the same channel."""

    def __init__(
        self, host: str, port: int, options: list[tuple[str, int | str]], tls: Material | None
    ) -> None:
        self.name = f"{host}:{port}"
        self.tls = tls
        # The calls and streams that run on it; Channels counts them.
        self.users = 0
        # Whether the last call was served: then a write may be sent without a question first.
        self.proven = False
        # Whether the last call was not.
        self.failed = False
        if tls is None:
            self.client = Etcd3Client(host, port, grpc_options=options)
        else:
            # etcd3 takes TLS only with files, one of authorities among them; ours may be the
            # system's, and have been read already.
            credentials = tls.credentials()
            secure = type(
                "SecureEtcd3Client",
                (Etcd3Client,),
                {"_get_secure_creds": lambda *_: credentials},
            )
            self.client = secure(host, port, ca_cert="given", grpc_options=options)
        self.auth = _stubs.AuthStub(self.client.channel)
        self.keep_alive_once = _stubs.KeepAliveOnceStub(self.client.channel)
        self.watch = _stubs.WatchStub(self.client.channel)

    def settle(self, timeout: float) -> None:
        """Gives a broken connection a moment to come back; no more than that if it does not.

        grpcio goes on with a connection only while some call waits for it, and calls on a broken
        one fail without waiting: up to 1.76 at least, retries alone never find out that a server
        is back (measured: not within 40 s).
        """
        # Any answer will do; if there is none, the call that comes next says why.
        with contextlib.suppress(grpc.RpcError):
            self.client.maintenancestub.Status(pb.StatusRequest(), timeout, wait_for_ready=True)

    def close(self) -> None:
        self.client.close()


def rpc_error(error: Exception) -> grpc.RpcError | None:
    """The gRPC error behind an exception of etcd3, which wraps some and drops their text."""
    if isinstance(error, grpc.RpcError):
        return error
    if isinstance(error, Etcd3Exception) and isinstance(error.__context__, grpc.RpcError):
        return error.__context__
    return None


def failure_of(error: grpc.RpcError, endpoint: str) -> Failure:
    """What a gRPC error means; every error that a call raises has a code and details."""
    status: Any = error
    return classify(status.code(), status.details() or "", endpoint)


class Channels:
    """The connections of one store. May be used from any thread; opens them when first needed."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: TLSFiles | None,
        username: str | None,
        password: str | None,
        connect_timeout: float,
    ) -> None:
        self._addresses = parse_endpoints(endpoints)
        self._certificates = None if tls is None else Certificates(tls)
        self._options = channel_options(tls, connect_timeout)
        self._user = None if username is None else (username, password or "")
        self.connect_timeout = connect_timeout
        self._lock = threading.Lock()
        self._connections: list[Connection | None] = [None] * len(self._addresses)
        # Made with TLS files that have been replaced, and still in use perhaps.
        self._retired: list[Connection] = []
        self._current = 0
        self._closed = False
        self._token_lock = threading.Lock()
        self._token: str | None = None
        _opened.add(self)

    @property
    def has_user(self) -> bool:
        return self._user is not None

    def check_open(self, operation: str) -> None:
        if self._closed:
            raise StoreError(f"{operation}: this etcd store has been closed; make a new one")

    def order(self) -> list[int]:
        """The endpoints by number, in the order in which a call is to try them."""
        count = len(self._addresses)
        return [(self._current + step) % count for step in range(count)]

    @contextlib.contextmanager
    def using(self, number: int) -> Iterator[Connection]:
        """The connection to an endpoint, for the time of one call."""
        connection = self.acquire(number)
        try:
            yield connection
        finally:
            self.release(connection)

    def acquire(self, number: int) -> Connection:
        """The connection to an endpoint, made with the present TLS files, until ``release``."""
        if _inherited:
            raise StoreError(_INHERITED)
        with self._lock:
            self.check_open("no connection to etcd")
            tls = None if self._certificates is None else self._certificates.current()
            found = self._connections[number]
            if found is not None and found.tls is not tls:
                self._retired.append(found)
                found = None
            if found is None:
                host, port = self._addresses[number]
                found = Connection(host, port, self._options, tls)
                self._connections[number] = found
            found.users += 1
            unused = [c for c in self._retired if not c.users]
            self._retired = [c for c in self._retired if c.users]
        for connection in unused:
            connection.close()
        return found

    def retain(self, connection: Connection) -> None:
        """One more use of a connection that is in use."""
        with self._lock:
            connection.users += 1

    def release(self, connection: Connection) -> None:
        """The call on it is over. May come from a thread of gRPC's, so it does nothing else."""
        with self._lock:
            connection.users -= 1

    def note_served(self, number: int) -> None:
        self._current = number
        connection = self._connections[number]
        if connection is not None:
            connection.proven, connection.failed = True, False

    def note_failed(self, number: int, failure: Failure) -> None:
        """Later calls begin with the next endpoint, unless another one has been chosen already."""
        with self._lock:
            found = self._connections[number]
            if found is not None:
                found.proven, found.failed = False, True
            if self._current == number:
                self._current = (number + 1) % len(self._addresses)
        _log.debug("an etcd endpoint failed", extra={"ck_failure": failure})

    def metadata(self, connection: Connection, timeout: float) -> Metadata:
        """What a request carries; fetches a token if there is a user and none is at hand."""
        if self._user is None:
            return _REQUIRE_LEADER
        token = self._token
        if token is None:
            token = self._authenticate(connection, timeout)
        # No token: auth is off at this server.
        return (*_REQUIRE_LEADER, ("token", token)) if token else _REQUIRE_LEADER

    def forget_token(self, metadata: Metadata) -> None:
        """The token in ``metadata`` is no longer good. A newer one, fetched since, is kept."""
        if (dict(metadata).get("token") or "") == (self._token or ""):
            self._token = None

    def _authenticate(self, connection: Connection, timeout: float) -> str:
        assert self._user is not None
        name, password = self._user
        end = time.monotonic() + timeout
        if not self._token_lock.acquire(timeout=timeout):
            # Another thread's fetch is under way and has not been answered.
            raise TryFailedError(Failure(Kind.TIMEOUT, True, "no token yet", connection.name))
        try:
            if self._token is None:
                try:
                    self._token = connection.auth.Authenticate(
                        pb.AuthenticateRequest(name=name, password=password),
                        max(0.0, end - time.monotonic()),
                    ).token
                except grpc.RpcError as e:
                    failure = failure_of(e, connection.name)
                    if "authentication is not enabled" not in failure.text:
                        # The request that wanted the token has not been sent.
                        raise TryFailedError(
                            Failure(failure.kind, True, failure.text, failure.endpoint)
                        ) from e
                    self._token = ""
            return self._token or ""
        finally:
            self._token_lock.release()

    def call(
        self,
        operation: str,
        send: Callable[[Call], T],
        *,
        timeout: float,
        reads_only: bool,
        access: Access | None = None,
    ) -> T:
        """Carries out one unary call, on one endpoint after the other until one serves it.

        Args:
            operation: What is done, for the text of errors.
            send: Sends the request.
            timeout: Seconds for all tries together.
            reads_only: Whether it may be sent again whatever became of it.
            access: What it needs of the user's role, for the text of errors.

        Raises:
            StoreError: Or one of its kinds.
        """
        self.check_open(operation)
        end = time.monotonic() + timeout
        failures: list[Failure] = []
        cause: Exception | None = None
        order = self.order()
        for position, number in enumerate(order):
            left = end - time.monotonic()
            if left <= 0 and failures:
                break
            share = left / (len(order) - position)
            try:
                answer = self._try(number, send, share, left, reads_only=reads_only)
            except Exception as e:
                failure = self._understand(e, number, operation)
                failures.append(failure)
                cause = e
                if failure.kind not in (Kind.UNAVAILABLE, Kind.TIMEOUT):
                    break
                self.note_failed(number, failure)
                if not (reads_only or failure.unsent):
                    break
            else:
                self.note_served(number)
                return answer
        raise to_error(
            operation, failures, reads_only=reads_only, within=timeout, access=access
        ) from cause

    def _understand(self, error: Exception, number: int, operation: str) -> Failure:
        if isinstance(error, TryFailedError):
            return error.failure
        status = rpc_error(error)
        # grpcio says with a ValueError, or a cancelled call, that the channel has been closed.
        if self._closed and (status is not None or isinstance(error, ValueError)):
            raise StoreError(f"{operation} was ended: this etcd store has been closed") from error
        if status is None:
            raise error
        host, port = self._addresses[number]
        return failure_of(status, f"{host}:{port}")

    def _try(
        self, number: int, send: Callable[[Call], T], share: float, left: float, *, reads_only: bool
    ) -> T:
        """One endpoint, and once more there if only the token was out of date."""
        with self.using(number) as connection:
            return self._try_on(connection, send, share, left, reads_only=reads_only)

    def _try_on(
        self,
        connection: Connection,
        send: Callable[[Call], T],
        share: float,
        left: float,
        *,
        reads_only: bool,
    ) -> T:
        begin = time.monotonic()
        budget = share if reads_only else left
        if connection.failed:
            connection.settle(min(SETTLE_SECONDS, share / 2))
        for renewed in (False, True):
            metadata = self.metadata(connection, share)
            try:
                if not reads_only and not connection.proven:
                    self._probe(connection, min(share, self.connect_timeout), metadata)
                remaining = budget - (time.monotonic() - begin)
                return send(Call(connection, max(0.001, remaining), metadata))
            except Exception as e:
                status = rpc_error(e)
                if status is None or renewed or not self.has_user:
                    raise
                if failure_of(status, connection.name).kind is not Kind.TOKEN:
                    raise
                self.forget_token(metadata)
        raise AssertionError("unreachable: the second round returns or raises")

    def _probe(self, connection: Connection, timeout: float, metadata: Metadata) -> None:
        try:
            connection.client.maintenancestub.Status(pb.StatusRequest(), timeout, metadata=metadata)
        except grpc.RpcError as e:
            failure = failure_of(e, connection.name)
            if failure.kind in (Kind.UNAVAILABLE, Kind.TIMEOUT):
                unsent = Failure(failure.kind, True, failure.text, failure.endpoint)
                raise TryFailedError(unsent) from e
            # It answers; whether it lets us write is for the write to find out.
        connection.proven = True

    def has_connections(self) -> bool:
        """Whether gRPC has work to do for this store."""
        return not self._closed and any(c is not None for c in self._connections)

    def close(self) -> None:
        """Lets go of all connections, which ends their calls; idempotent."""
        with self._lock:
            self._closed = True
            connections = [c for c in (*self._connections, *self._retired) if c is not None]
        for connection in connections:
            connection.close()


_opened: weakref.WeakSet[Channels] = weakref.WeakSet()
_inherited = False
_INHERITED = (
    "this process was forked while connections to etcd were open, and gRPC may hang for ever in "
    "such a process. Fork before the first kit is started, or start processes with 'spawn'"
)


def _after_fork() -> None:
    # Measured with grpcio 1.85: a call in the child can hang, with no regard to its deadline.
    global _inherited
    _inherited = _inherited or any(channels.has_connections() for channels in list(_opened))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
