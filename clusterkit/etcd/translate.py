"""What a gRPC error means: whether to go on, and the error of ours that it becomes.

Pure decisions. A code alone says too little: etcd gives UNAVAILABLE for a dozen reasons, and
whether a request may be sent again depends on which. So texts are looked at, those of etcd
(``etcdserver: …``) and two of gRPC; an unknown text is always taken for the worse case.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import grpc

from clusterkit.errors import (
    StoreAuthError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)

from .access import Access


class Kind(Enum):
    """What can be done about a failed call."""

    UNAVAILABLE = auto()  # this endpoint does not serve; another may
    TIMEOUT = auto()  # no answer in time; another endpoint may answer
    TOKEN = auto()  # the token is not, or no longer, good: a new one may be
    AUTH = auto()  # the user or the password will not do
    DENIED = auto()  # the role will not do (or, from some releases, the token)
    LEASE_GONE = auto()  # there is no such lease
    NO_SPACE = auto()  # etcd's database is as large as it may be
    REFUSED = auto()  # etcd will not do this, nor would another endpoint


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed try. ``unsent`` is True only if etcd certainly did not carry the request out."""

    kind: Kind
    unsent: bool
    text: str
    endpoint: str = ""


# The name of an endpoint's host leads nowhere; the text depends on gRPC's release.
_NO_ADDRESS = ("dns resolution failed", "errors resolving", "address lookup failed")

# gRPC found no connection to send the request on. (A request that it had sent, and that it sends
# again by itself, was refused unread.)
_NEVER_SENT = ("failed to connect to all addresses", *_NO_ADDRESS)

# etcd turned the request away before it went to consensus.
_TURNED_AWAY = (
    "etcdserver: no leader",
    "etcdserver: not capable",
    "etcdserver: too many requests",
    "etcdserver: rpc not supported for learner",
)

_BAD_TOKEN = (
    "etcdserver: invalid auth token",
    "etcdserver: revision of auth store is old",
    # Auth was switched on after we had found it off.
    "etcdserver: user name is empty",
)

_BAD_USER = (
    "etcdserver: authentication failed",
    "etcdserver: user name not found",
    "etcdserver: no password was given",
    "etcdserver: root user does not have root role",
)

_AUTH_CODES = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
# Codes of a server that is going down or of a broken stream, whatever the text.
_GONE_CODES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
)


def classify(code: grpc.StatusCode, details: str, endpoint: str = "") -> Failure:
    """What one gRPC status means."""
    text = details.strip() or code.name
    low = text.lower()

    def found(needles: tuple[str, ...]) -> bool:
        return any(needle in low for needle in needles)

    if found(_BAD_TOKEN):
        return Failure(Kind.TOKEN, True, text, endpoint)
    if "permission denied" in low:
        return Failure(Kind.DENIED, True, text, endpoint)
    if code in _AUTH_CODES or found(_BAD_USER):
        return Failure(Kind.AUTH, True, text, endpoint)
    if "requested lease not found" in low:
        return Failure(Kind.LEASE_GONE, True, text, endpoint)
    if "database space exceeded" in low:
        return Failure(Kind.NO_SPACE, True, text, endpoint)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Failure(Kind.TIMEOUT, False, text, endpoint)
    unsent = found(_NEVER_SENT) or found(_TURNED_AWAY)
    if code in _GONE_CODES:
        return Failure(Kind.UNAVAILABLE, unsent, text, endpoint)
    if "too many requests" in low:
        return Failure(Kind.UNAVAILABLE, True, text, endpoint)
    return Failure(Kind.REFUSED, True, text, endpoint)


# What to do about endpoints that do not serve, by what they or gRPC said. The first that fits.
_REMEDIES = (
    (("too many requests",), "etcd is overloaded: ask again after a pause"),
    (_NO_ADDRESS, "Check the host names of the endpoints, and that DNS knows them"),
    (("no leader",), "Check that a majority of etcd's members run and reach each other"),
)
_REMEDY = "Check that etcd runs, that the endpoints are right, and that both sides agree on TLS"


def to_error(
    operation: str,
    failures: list[Failure],
    *,
    reads_only: bool,
    within: float | None = None,
    access: Access | None = None,
) -> StoreError:
    """The error for a call whose tries all failed; the last try decides what it is.

    Args:
        operation: What was asked of etcd, in a word or two.
        failures: The tries, at least one.
        reads_only: Whether sending it again can do no harm whatever became of it.
        within: The seconds that the caller allowed.
        access: What it needs of the user's role, None where that cannot be told.
    """
    last = failures[-1]
    tries = "; ".join(f"{f.endpoint}: {f.text}" for f in failures)
    harmless = reads_only or all(f.unsent for f in failures)
    unsure = "" if harmless else " The write may or may not have been applied."
    if last.kind is Kind.DENIED:
        needs = "" if access is None else f"the user's role needs {access}; if it has that, "
        return StoreAuthError(
            f"etcd refused {operation} ({tries}): {needs}check username and password"
        )
    if last.kind in (Kind.AUTH, Kind.TOKEN):
        return StoreAuthError(f"etcd refused {operation} ({tries}): check username and password")
    if last.kind is Kind.NO_SPACE:
        return StoreError(
            f"etcd is out of space (NOSPACE alarm): compact, defragment, disarm. It refused "
            f"{operation} ({tries}), and refuses every write until then: `etcdctl compact`, "
            "`etcdctl defrag`, `etcdctl alarm disarm`, or a larger --quota-backend-bytes",
            retryable=True,
        )
    if last.kind in (Kind.REFUSED, Kind.LEASE_GONE):
        return StoreError(f"etcd refused {operation} ({tries})")
    if any(f.kind is Kind.TIMEOUT for f in failures):
        limit = "" if within is None else f" within {within:g} s"
        return StoreTimeoutError(
            f"etcd did not answer {operation}{limit} ({tries}).{unsure} "
            "Check that etcd is healthy and reachable, or allow more time",
            retryable=harmless,
        )
    said = tries.lower()
    fitting = (text for needles, text in _REMEDIES if any(needle in said for needle in needles))
    remedy = next(fitting, _REMEDY)
    return StoreUnavailableError(
        f"no etcd endpoint served {operation} ({tries}).{unsure} {remedy}",
        retryable=harmless,
    )
