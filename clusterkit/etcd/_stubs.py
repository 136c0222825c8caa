"""The few gRPC stubs, by hand, under the names that etcd3 expects of generated ones.

``protoc``'s own would set a floor on grpcio's release. Only the method paths are etcd's; names
of messages do not travel.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ._pb import rpc_pb2 as pb

__all__ = ["AuthStub", "ClusterStub", "KVStub", "LeaseStub", "MaintenanceStub", "WatchStub"]

_Methods = dict[str, tuple[Any, Any]]


class _Stub:
    """Has one attribute for each method: a callable of grpcio."""

    service: ClassVar[str]
    unary: ClassVar[_Methods] = {}
    streams: ClassVar[_Methods] = {}

    # Any: grpcio's own types for multi-callables differ between its releases and its stub packages.
    def __init__(self, channel: Any) -> None:
        for make, methods in (
            (channel.unary_unary, self.unary),
            (channel.stream_stream, self.streams),
        ):
            for name, (request, response) in methods.items():
                call = make(
                    f"/etcdserverpb.{self.service}/{name}",
                    request_serializer=request.SerializeToString,
                    response_deserializer=response.FromString,
                )
                setattr(self, name, call)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"ClusterKit's stub of etcd's {self.service} has no method {name}")


class KVStub(_Stub):
    service = "KV"
    unary: ClassVar[_Methods] = {
        "Range": (pb.RangeRequest, pb.RangeResponse),
        "Put": (pb.PutRequest, pb.PutResponse),
        "DeleteRange": (pb.DeleteRangeRequest, pb.DeleteRangeResponse),
        "Txn": (pb.TxnRequest, pb.TxnResponse),
        "Compact": (pb.CompactionRequest, pb.CompactionResponse),
    }


class LeaseStub(_Stub):
    service = "Lease"
    unary: ClassVar[_Methods] = {
        "LeaseGrant": (pb.LeaseGrantRequest, pb.LeaseGrantResponse),
        "LeaseRevoke": (pb.LeaseRevokeRequest, pb.LeaseRevokeResponse),
        "LeaseTimeToLive": (pb.LeaseTimeToLiveRequest, pb.LeaseTimeToLiveResponse),
        "LeaseLeases": (pb.LeaseLeasesRequest, pb.LeaseLeasesResponse),
    }
    streams: ClassVar[_Methods] = {
        "LeaseKeepAlive": (pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse),
    }


class KeepAliveOnceStub(_Stub):
    """LeaseKeepAlive as one question with one answer.

    On the wire a stream of one message each way is a unary call: etcd answers what it has read
    when it sees our side end, then ends its own. So a renewal has a plain deadline, needs no
    thread, and cannot be taken for the answer to another one.
    """

    service = "Lease"
    unary: ClassVar[_Methods] = {
        "LeaseKeepAlive": (pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse),
    }


class WatchStub(_Stub):
    service = "Watch"
    streams: ClassVar[_Methods] = {"Watch": (pb.WatchRequest, pb.WatchResponse)}


class AuthStub(_Stub):
    service = "Auth"
    unary: ClassVar[_Methods] = {
        "Authenticate": (pb.AuthenticateRequest, pb.AuthenticateResponse),
    }


class ClusterStub(_Stub):
    service = "Cluster"
    unary: ClassVar[_Methods] = {"MemberList": (pb.MemberListRequest, pb.MemberListResponse)}


class MaintenanceStub(_Stub):
    service = "Maintenance"
    unary: ClassVar[_Methods] = {
        "Status": (pb.StatusRequest, pb.StatusResponse),
        "Alarm": (pb.AlarmRequest, pb.AlarmResponse),
    }
