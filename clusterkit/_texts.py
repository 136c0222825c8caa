"""Reads the texts that options and ``CLUSTERKIT_*`` variables are written in.

Pure functions. Each refuses with a ``ValueError`` whose text says what is wrong, in words that
fit behind "cannot work:". Texts that may carry a secret are never quoted; whoever reports the
error decides whether the value is shown.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from datetime import timedelta

__all__ = [
    "decimal",
    "duration",
    "host_port",
    "name",
    "pairs",
    "path",
    "plain",
    "texts",
    "whole_number",
]

_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_DURATION = re.compile(rf"(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?(?:{_NUMBER}ms)?")
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_.])?")
_LONGEST_NAME = 253
"""As long as a DNS name may be, which is what pods and their namespaces are named by."""


def whole_number(text: str) -> int:
    """Reads ``64`` or ``-1``: decimal digits, nothing between them."""
    text = text.strip()
    if not _WHOLE.fullmatch(text):
        raise ValueError("it is not a whole number")
    return int(text)


def decimal(text: str) -> float:
    """Reads ``1`` or ``1.25``: decimal digits, with at most one point between them."""
    text = text.strip()
    if not re.fullmatch(_NUMBER, text):
        raise ValueError("it is not a number")
    return float(text)


def duration(text: str) -> timedelta:
    """Reads ``10`` or ``0.25`` (seconds), ``10s``, ``500ms``, ``1m30s``, ``2h``."""
    text = text.strip()
    if re.fullmatch(_NUMBER, text):
        text += "s"
    found = _DURATION.fullmatch(text)
    if not text or found is None:
        raise ValueError("it is not a length of time such as 10, 10s, 1m30s or 500ms")
    h, m, s, ms = (float(number or 0) for number in found.groups())
    try:
        return timedelta(hours=h, minutes=m, seconds=s, milliseconds=ms)
    except OverflowError:
        raise ValueError("it is too long to be counted") from None


def pairs(text: str) -> dict[str, str]:
    """Reads ``a=b,c=d``; white space around names and values does not count. Empty is no pair."""
    found: dict[str, str] = {}
    for i, item in enumerate(text.split(",") if text.strip() else (), start=1):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError(f"item {i} has no '='")
        if key in found:
            raise ValueError(f"item {i} gives a name for the second time")
        found[key] = value
    return found


def plain(text: str, *, limit: int = _LONGEST_NAME) -> str:
    """A text that people can read back from a log: printable Unicode, kept byte for byte."""
    if not text:
        raise ValueError("it is empty")
    if not text.isprintable():
        raise ValueError("it has a control character, or another one that cannot be printed")
    if text != text.strip():
        raise ValueError("it begins or ends with white space")
    if len(text.encode()) > limit:
        raise ValueError(f"it is longer than {limit} bytes")
    return text


def name(text: str) -> str:
    """A name of ASCII letters, digits and ``.-_``, which needs no quoting anywhere."""
    if not text:
        raise ValueError("it is empty")
    if not _NAME.fullmatch(text):
        raise ValueError("it has characters other than letters, digits, '.', '-' and '_'")
    if len(text) > _LONGEST_NAME:
        raise ValueError(f"it is longer than {_LONGEST_NAME} characters")
    return text


def path(text: str) -> str:
    """Names with one slash before each: ``/clusterkit`` or ``/team/clusterkit``."""
    if not text.startswith("/"):
        raise ValueError("it does not begin with '/'")
    if text.endswith("/"):
        raise ValueError("it ends with '/'")
    for segment in text[1:].split("/"):
        if not segment:
            raise ValueError("it has an empty part between two slashes")
        name(segment)
    if len(text) > _LONGEST_NAME:
        raise ValueError(f"it is longer than {_LONGEST_NAME} characters")
    return text


def host_port(text: str) -> str:
    """An address ``host:port``, ``10.0.0.1:port`` or ``[::1]:port``, as it was given."""
    host, colon, port = text.rpartition(":")
    if "://" in text:
        raise ValueError("it has a scheme, where only host:port belongs")
    if not colon or (text.startswith("[") and text.endswith("]")):
        raise ValueError("it has no port")
    if "@" in text:
        raise ValueError("it carries a user or a password; username= and password= are for those")
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError("its port is not a number from 1 to 65535")
    if not host:
        raise ValueError("it has no host before the port")
    if host.startswith("[") and host.endswith("]"):
        _check_ip(host[1:-1], 6)
    elif ":" in host:
        raise ValueError("its host has a ':'; an IPv6 address stands in brackets, as in [::1]:2379")
    elif re.fullmatch(r"[0-9.]+", host):
        _check_ip(host, 4)
    elif len(host) > _LONGEST_NAME or not _HOST.fullmatch(host) or ".." in host:
        raise ValueError("its host is not a name as DNS knows them, nor an IP address")
    return text


def _check_ip(host: str, version: int) -> None:
    try:
        # A scope such as %eth0 means something on one machine only, and in its own words.
        good = "%" not in host and ipaddress.ip_address(host).version == version
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"its host is not an IPv{version} address")


def texts(value: Mapping[object, object], *, limit: int) -> dict[str, str]:
    """A copy of names and texts, all printable, together no longer than ``limit`` bytes."""
    found: dict[str, str] = {}
    for key, text in value.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise ValueError("its names and values are not all texts")
        try:
            plain(key)
        except ValueError as problem:
            raise ValueError(f"one of its names cannot be: {problem}") from None
        if not text.isprintable():
            raise ValueError("one of its values has a character that cannot be printed")
        found[key] = text
    if sum(len(k.encode()) + len(v.encode()) for k, v in found.items()) > limit:
        raise ValueError(f"its names and values are longer than {limit} bytes in all")
    return found
