"""Where etcd is: addresses, the names of TLS files, the options of a connection. No I/O."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from clusterkit.errors import OptionError

StrPath: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """The files of a TLS connection. They may be replaced at any time: see ``certificates``.

    Attributes:
        ca: The certificates that the server's must descend from; None for the system's.
        cert: This client's certificate, for servers that ask for one.
        key: The private key of ``cert``.
        server_name: The name that the server's certificate must bear, where it is not the host
            of the endpoint.

    Raises:
        OptionError: ``cert`` without ``key``, or the other way round.
    """

    ca: StrPath | None = None
    cert: StrPath | None = None
    key: StrPath | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            given, missing = ("cert", "key") if self.key is None else ("key", "cert")
            raise OptionError(
                f"tls has {given}={getattr(self, given)!s} but no {missing}: give both or neither",
                option="tls",
                value=self,
            )


def parse_endpoint(text: str) -> tuple[str, int]:
    """``host:port`` as its two parts; an IPv6 address stands in brackets, and keeps them.

    Raises:
        OptionError: It is not of that form.
    """
    host, colon, port = text.strip().rpartition(":")
    problem = None
    if "://" in text:
        problem = "leave out the scheme, and give tls for TLS"
    elif not colon or not host:
        problem = "the port is missing" if not colon else "the host is missing"
    elif not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        problem = f"the port {port!r} is not a number from 1 to 65535"
    elif ":" in host and not (host.startswith("[") and host.endswith("]")):
        problem = "put an IPv6 address in brackets"
    elif "/" in host or any(c.isspace() or not c.isprintable() for c in host):
        problem = "the host has a character that no host has"
    if problem is not None:
        raise OptionError(
            f"the etcd endpoint {text!r} must be host:port: {problem}",
            option="endpoints",
            value=text,
        )
    return host, int(port)


def parse_endpoints(endpoints: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """All endpoints, without repetitions, in their order.

    Raises:
        OptionError: There is none, or one is not ``host:port``.
    """
    if isinstance(endpoints, str):
        endpoints = endpoints.split(",")
    if not endpoints:
        raise OptionError(
            "endpoints is empty: give at least one host:port of etcd",
            option="endpoints",
            value=endpoints,
        )
    return tuple(dict.fromkeys(parse_endpoint(text) for text in endpoints))


def channel_options(tls: TLSFiles | None, connect_timeout: float) -> list[tuple[str, int | str]]:
    """How a connection behaves. The figures are measured: a frozen server is noticed in 12 s,
    at a ``connect_timeout`` of 5 s or less.

    ``grpc.keepalive_timeout_ms`` has no effect here, ``grpc.http2.ping_timeout_ms`` has; and
    pings without calls would be answered by GOAWAY.
    """
    options: list[tuple[str, int | str]] = [
        ("grpc.keepalive_time_ms", 10_000),
        # Whoever gives etcd more time to answer than most means it: on a machine with too much to
        # do every answer is late, and a connection that is opened anew is more to do.
        ("grpc.http2.ping_timeout_ms", max(3_000, int(connect_timeout * 600))),
        ("grpc.keepalive_permit_without_calls", 0),
        # gRPC would wait up to two minutes between two attempts: too long after an outage.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # A restarted pod has a new address, and gRPC would ask for it every 30 s at most.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        # In spite of its name, how long one attempt may take.
        ("grpc.min_reconnect_backoff_ms", max(100, int(connect_timeout * 1_000))),
        # A prefix may hold more than gRPC's 4 MiB.
        ("grpc.max_receive_message_length", -1),
        # Two stores in one process share no connection, so no fate.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options
