"""The types that options are checked by: how each is read, and what it refuses.

A check that needs another option looks at those declared before it, in ``info.data``; an option
that was refused itself is missing there, and then the check says nothing, so that one mistake is
not reported twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    SecretStr,
    ValidationInfo,
)

from . import _texts
from ._variables import Variable

__all__ = [
    "TTL",
    "Address",
    "Admin",
    "Balance",
    "CountOrNone",
    "Endpoints",
    "FenceMargin",
    "Flag",
    "Grace",
    "KeyHash",
    "Name",
    "NodeId",
    "OnConflict",
    "Ownership",
    "Password",
    "Path",
    "Pause",
    "Storage",
    "Texts",
    "Timeout",
    "TimeoutOrNone",
    "Username",
    "Whole",
    "Zone",
    "read_balance",
]

_LONGEST: Final = timedelta(days=1)
_RECORD_BYTES: Final = 32 * 1024  # services and labels each: far below etcd's 1.5 MiB a request
_LEAST_MARGIN: Final = timedelta(seconds=0.5)


def _whole(value: object) -> object:
    return _texts.whole_number(value) if isinstance(value, Variable) else value


def _choice(value: object) -> object:
    # Strict choices are of plain texts: older releases of pydantic refuse a subclass.
    return str(value) if isinstance(value, Variable) else value


def _duration(value: object) -> timedelta:
    if isinstance(value, Variable):
        return _texts.duration(value)
    if isinstance(value, timedelta):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("it is neither a number of seconds nor a timedelta")
    try:
        return timedelta(seconds=value)
    except (OverflowError, ValueError):
        raise ValueError("it is not a length of time that can be counted") from None


def _duration_or_none(value: object) -> timedelta | None:
    if value is None or (isinstance(value, Variable) and value.strip() == "none"):
        return None
    return _duration(value)


def _whole_seconds(value: timedelta) -> timedelta:
    if value.microseconds:
        raise ValueError("it is not whole seconds, which is how etcd counts leases")
    return value


def _fence_margin(value: object, info: ValidationInfo) -> timedelta:
    ttl: timedelta | None = info.data.get("lease_ttl")
    if value is None or (isinstance(value, Variable) and value.strip() == "default"):
        return max(_LEAST_MARGIN, (ttl or _LONGEST) / 10)
    margin = _duration(value)
    if margin <= timedelta(0):
        raise ValueError("it is not greater than 0: nothing would keep two owners apart")
    if ttl is not None and margin >= ttl / 2:
        raise ValueError(
            f"it is not less than half of lease_ttl={ttl.total_seconds():g}: between two "
            "keep-alives, a third of that apart, there would be no time to act as an owner"
        )
    return margin


def read_balance(value: object) -> float | None:
    """Reads a factor from 1 to 100 with at most two decimals, or nothing."""
    if isinstance(value, Variable):
        if value.strip() == "none":
            return None
        value = _texts.decimal(value)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("it is not a number")
    if not 1 <= value <= 100:
        raise ValueError("it is not from 1 to 100")
    if round(value, 2) != value:
        raise ValueError("it has more than two decimals")
    return float(value)


def _flag(value: object) -> object:
    if isinstance(value, Variable):
        found = {"true": True, "false": False}.get(value.strip().lower())
        if found is None:
            raise ValueError("it is neither true nor false")
        return found
    return value


def _whole_or_none(value: object) -> object:
    if isinstance(value, Variable) and value.strip() == "none":
        return None
    return _whole(value)


def _not_yet(value: str) -> str:
    if value in ("exclusive", "disk"):
        raise ValueError(f"{value!r} is not available in this release")
    return value


def _endpoints(value: object, info: ValidationInfo) -> tuple[str, ...]:
    """Keeps ``host:port`` alone: whether TLS is spoken is one question for all endpoints."""
    if isinstance(value, str):
        found = [item.strip() for item in value.split(",")] if value.strip() else []
    elif isinstance(value, Sequence) and all(isinstance(item, str) for item in value):
        found = list(value)
    else:
        raise ValueError("it is neither a text nor a sequence of texts")
    if not found:
        raise ValueError("it names no endpoint")
    unique = dict.fromkeys(
        _endpoint(item, f"endpoint {i} of {len(found)}" if len(found) > 1 else "it", info)
        for i, item in enumerate(found, start=1)
    )
    return tuple(unique)


def _endpoint(text: str, which: str, info: ValidationInfo) -> str:
    scheme, found, address = text.rpartition("://")
    if found and scheme not in ("http", "https"):
        raise ValueError(f"{which} has a scheme other than http and https")
    if found and "tls" in info.data and (scheme == "https") != (info.data["tls"] is not None):
        raise ValueError(
            f"{which} says https, but TLS is not set up: give tls=TLS(ca=...), or set "
            "CLUSTERKIT_TLS_CA"
            if scheme == "https"
            else f"{which} says http, but tls is given, and holds for all endpoints"
        )
    try:
        return _texts.host_port(address)
    except ValueError as problem:
        prefix = "" if which == "it" else f"{which}: "
        raise ValueError(f"{prefix}{problem}") from None


def _address(value: str) -> str:
    _texts.host_port(value)
    if value.startswith(("0.0.0.0:", "[::]:")):
        raise ValueError("it says where a server listens, not where peers reach this node")
    return value


def _admin(value: str) -> str:
    """Whoever names no host gets no more than this machine: what is served asks for no password."""
    return _texts.host_port(f"127.0.0.1{value}" if value.startswith(":") else value)


def _node_id(value: str) -> str:
    if "/" in value:
        raise ValueError("it has a '/', which separates the parts of etcd's keys")
    return _texts.plain(value)


def _password(value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
    if "username" in info.data and (value is None) != (info.data["username"] is None):
        missing = "password" if value is None else "username"
        raise ValueError(f"username and password belong together, and there is no {missing}")
    if value is not None and not value.get_secret_value():
        raise ValueError("it is empty")
    return value


def _mapping(value: object) -> Mapping[str, str]:
    if isinstance(value, Variable):
        value = _texts.pairs(value)
    if not isinstance(value, Mapping):
        raise ValueError("it is not a mapping of names to texts")
    return MappingProxyType(_texts.texts(value, limit=_RECORD_BYTES))


Name: TypeAlias = Annotated[str, AfterValidator(_texts.name)]
Path: TypeAlias = Annotated[str, AfterValidator(_texts.path)]
NodeId: TypeAlias = Annotated[str, AfterValidator(_node_id)]
Zone: TypeAlias = Annotated[str, AfterValidator(_texts.plain)] | None
Username: TypeAlias = Annotated[str, AfterValidator(_texts.plain)] | None
Password: TypeAlias = Annotated[SecretStr | None, AfterValidator(_password)]
Address: TypeAlias = Annotated[str, AfterValidator(_address)] | None
Admin: TypeAlias = Annotated[str, AfterValidator(_admin)] | None
Endpoints: TypeAlias = Annotated[tuple[str, ...], PlainValidator(_endpoints)]
Texts: TypeAlias = Annotated[Mapping[str, str], PlainValidator(_mapping)]
Whole: TypeAlias = Annotated[int, BeforeValidator(_whole)]
Balance: TypeAlias = Annotated[float | None, PlainValidator(read_balance)]
Flag: TypeAlias = Annotated[bool, BeforeValidator(_flag)]
CountOrNone: TypeAlias = Annotated[
    Annotated[int, Field(ge=1, le=1000)] | None, BeforeValidator(_whole_or_none)
]

KeyHash: TypeAlias = Annotated[Literal["crc32", "blake2b"], BeforeValidator(_choice)]
OnConflict: TypeAlias = Annotated[Literal["takeover", "wait", "fail"], BeforeValidator(_choice)]
Ownership: TypeAlias = Annotated[
    Literal["assigned", "exclusive"], BeforeValidator(_choice), AfterValidator(_not_yet)
]
Storage: TypeAlias = Annotated[Literal["memory", "disk"], BeforeValidator(_choice)]

TTL: TypeAlias = Annotated[
    timedelta,
    Field(ge=timedelta(seconds=2), le=timedelta(hours=1)),
    BeforeValidator(_duration),
    AfterValidator(_whole_seconds),
]
FenceMargin: TypeAlias = Annotated[timedelta, PlainValidator(_fence_margin)]
Grace: TypeAlias = Annotated[
    timedelta,
    Field(ge=timedelta(0), le=timedelta(hours=1)),
    BeforeValidator(_duration),
    AfterValidator(_whole_seconds),
]
Pause: TypeAlias = Annotated[timedelta, Field(ge=timedelta(0)), BeforeValidator(_duration)]
_Limit: TypeAlias = Annotated[timedelta, Field(gt=timedelta(0), le=_LONGEST)]
Timeout: TypeAlias = Annotated[_Limit, BeforeValidator(_duration)]
TimeoutOrNone: TypeAlias = Annotated[_Limit | None, BeforeValidator(_duration_or_none)]
