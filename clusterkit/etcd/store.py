"""``EtcdStore``: the port ``clusterkit.ports.Store`` on a real etcd."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

from clusterkit.core.keys import range_end
from clusterkit.errors import OptionError
from clusterkit.ports import LeaseGrant, RangeResult, Txn, TxnResult

from ._pb import rpc_pb2 as pb
from .access import Access, access_of
from .channels import Call, Channels, failure_of, rpc_error
from .convert import (
    BuiltCompare,
    compare_message,
    etcd3_ops,
    range_result,
    txn_result,
    writes,
)
from .endpoints import TLSFiles
from .translate import Kind
from .watch import EtcdWatch


class EtcdStore:
    """An etcd cluster, over gRPC; :class:`clusterkit.ports.Store` says what each method promises.

    Making one does no I/O: connections are opened by the first call that needs them. A call stays
    with the endpoint that last served and goes to the next one when that fails. It may be used
    from any thread, but not across a fork.

    Args:
        endpoints: ``host:port`` of each etcd member, or of what stands before them.
        tls: The files of a TLS connection; None for plain text.
        username: The user of etcd's own authentication; None where it is off.
        password: The user's password.
        connect_timeout: Seconds that one attempt to connect, or to open a watch, may take.

    Raises:
        OptionError: An argument cannot work.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: TLSFiles | None = None,
        username: str | None = None,
        password: str | None = None,
        connect_timeout: float = 5.0,
    ) -> None:
        if (username is None) != (password is None):
            given, missing = (
                ("username", "password") if password is None else ("password", "username")
            )
            raise OptionError(
                f"{given} is given but no {missing}: give both or neither",
                option=missing,
                value=None,
            )
        if connect_timeout <= 0:
            raise OptionError(
                f"connect_timeout is {connect_timeout:g} s, and must be more than 0",
                option="connect_timeout",
                value=connect_timeout,
            )
        self._channels = Channels(
            endpoints,
            tls=tls,
            username=username,
            password=password,
            connect_timeout=connect_timeout,
        )
        self._watches: weakref.WeakSet[EtcdWatch] = weakref.WeakSet()
        self._watches_lock = threading.Lock()

    def range(self, prefix: bytes, *, timeout: float) -> RangeResult:
        def send(call: Call) -> pb.RangeResponse:
            answer: pb.RangeResponse = call.etcd3.get_range_response(
                prefix or b"\0", range_end(prefix), sort_order="ascend"
            )
            return answer

        answer = self._channels.call(
            f"the read of prefix {_shown(prefix)}",
            send,
            timeout=timeout,
            reads_only=True,
            access=Access("read", prefix),
        )
        return range_result(answer)

    def txn(self, txn: Txn, *, timeout: float) -> TxnResult:
        compares = [BuiltCompare(compare_message(compare)) for compare in txn.compares]
        success, failure = etcd3_ops(txn.success), etcd3_ops(txn.failure)

        def send(call: Call) -> pb.TxnResponse:
            client = call.etcd3
            client.kvstub = kept = _KeptAnswer(client.kvstub)
            client.transaction(compares, success, failure)
            answer: pb.TxnResponse = kept.answer
            return answer

        answer = self._channels.call(
            "a transaction",
            send,
            timeout=timeout,
            reads_only=not writes(txn),
            access=access_of(txn),
        )
        return txn_result(answer)

    def grant(self, ttl_seconds: int, *, timeout: float) -> LeaseGrant:
        # Sent again after a lost answer it leaves a lease behind that nobody renews: harmless.
        lease = self._channels.call(
            f"a lease of {ttl_seconds} s",
            lambda call: call.etcd3.lease(ttl_seconds),
            timeout=timeout,
            reads_only=True,
        )
        return LeaseGrant(id=lease.id, ttl_seconds=lease.ttl)

    def revoke(self, lease_id: int, *, timeout: float) -> None:
        def send(call: Call) -> None:
            try:
                call.etcd3.revoke_lease(lease_id)
            except Exception as e:
                status = rpc_error(e)
                if status is None or failure_of(status, "").kind is not Kind.LEASE_GONE:
                    raise

        self._channels.call(
            f"the end of lease {lease_id:x}", send, timeout=timeout, reads_only=True
        )

    def keep_alive(self, lease_id: int, *, timeout: float) -> int:
        # Not etcd3's: its refresh is a stream that is read until somebody ends it.
        def send(call: Call) -> int:
            answer: pb.LeaseKeepAliveResponse = call.connection.keep_alive_once.LeaseKeepAlive(
                pb.LeaseKeepAliveRequest(ID=lease_id), call.timeout, metadata=call.metadata
            )
            return answer.TTL

        return self._channels.call(
            f"the renewal of lease {lease_id:x}", send, timeout=timeout, reads_only=True
        )

    def watch(self, prefix: bytes, start_revision: int) -> EtcdWatch:
        self._channels.check_open("a watch")
        watch = EtcdWatch(self._channels, prefix, start_revision)
        with self._watches_lock:
            self._watches.add(watch)
        return watch

    def server_version(self, *, timeout: float) -> str:
        # etcd3's ``status`` asks for the members too, with a deadline of its own: its stub does.
        def send(call: Call) -> str:
            answer: pb.StatusResponse = call.connection.client.maintenancestub.Status(
                pb.StatusRequest(), call.timeout, metadata=call.metadata
            )
            return answer.version

        return self._channels.call("its version", send, timeout=timeout, reads_only=True)

    def close(self) -> None:
        with self._watches_lock:
            watches = list(self._watches)
        for watch in watches:
            watch.close()
        self._channels.close()


class _KeptAnswer:
    """Keeps the answer that etcd3's ``transaction`` takes apart: its header has the revision."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self.answer: Any = None

    def Txn(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 - the stub's name for it
        self.answer = self._stub.Txn(*args, **kwargs)
        return self.answer


def _shown(key: bytes) -> str:
    return key.decode("utf-8", errors="backslashreplace") or "(all keys)"
