"""What all answers share: JSON, errors, ETags and pages. Whatever a request has in it, it is data.

A request that cannot be answered raises ``RefusedError``; nothing of its text is repeated to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from zlib import crc32

from starlette.requests import Request
from starlette.responses import Response

from .._version import __version__
from ..engine.snapshot import Snapshot

LIMIT: Final = 100
MOST: Final = 1000
"""How many entries a page has unless asked, and at most."""

_LIMIT = re.compile("[1-9][0-9]{0,3}", re.ASCII)
_TAG = re.compile(r'(?:W/)?("[^"]*")')
_LONGEST_CURSOR: Final = 1024


class RefusedError(Exception):
    """An answer that is an error.

    Attributes:
        status: The HTTP status.
        error: A short name for programs.
        message: For people.
        headers: Further headers.
    """

    def __init__(
        self, status: int, error: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.message = message
        self.headers = headers

    def response(self) -> Response:
        """The error as it is sent."""
        return answer({"error": self.error, "message": self.message}, self.status, self.headers)


def answer(
    document: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """JSON that nobody may keep."""
    return Response(
        json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")),
        status,
        {"Cache-Control": "no-store", **(headers or {})},
        "application/json",
    )


def tagged(
    request: Request, snapshot: Snapshot, about: str, make: Callable[[], Mapping[str, Any]]
) -> Response:
    """What follows from a revision alone, with its ETag; 304 without making it if known already.

    Args:
        request: What may know the newest answer already.
        snapshot: Where the document comes from.
        about: What else the document depends on, beside the address that was asked for.
        make: Makes the document.
    """
    # An etcd that was restored has the same revisions again, with other things in them.
    rest = (__version__, about, snapshot.state.cluster_id, snapshot.epoch)
    unhealthy = snapshot.health.unhealthy_node_ids
    tag = f'"{snapshot.view.revision}-{crc32(repr((*rest, unhealthy)).encode()):08x}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    known = ",".join(request.headers.getlist("If-None-Match"))
    if known.strip() == "*" or tag in _TAG.findall(known):
        return Response(status_code=304, headers=headers)
    return answer(make(), headers=headers)


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list was asked for.

    Attributes:
        limit: How many entries, at most.
        cursor: The id of the last entry of the page before; None for the first page.
    """

    limit: int
    cursor: str | None

    def cut(self, start: int, total: int) -> tuple[range, int | None]:
        """The places of a page that begins at ``start``, and the last of them if more follow."""
        places = range(start, min(start + self.limit, total))
        return places, places[-1] if places and places[-1] + 1 < total else None


def page_of(request: Request) -> Page:
    """Reads ``limit`` and ``cursor``.

    Raises:
        RefusedError: One of them cannot be.
    """
    limit = _only(request, "limit")
    cursor = _only(request, "cursor")
    if limit is not None and not (_LIMIT.fullmatch(limit) and int(limit) <= MOST):
        raise RefusedError(400, "bad_limit", f"limit must be a whole number from 1 to {MOST}")
    if cursor is not None and not 0 < len(cursor) <= _LONGEST_CURSOR:
        raise RefusedError(
            400, "bad_cursor", "cursor must be what the page before has as 'next'; or leave it out"
        )
    return Page(LIMIT if limit is None else int(limit), cursor)


def _only(request: Request, name: str) -> str | None:
    given = request.query_params.getlist(name)
    if len(given) > 1:
        raise RefusedError(400, f"bad_{name}", f"{name} may be given once")
    return given[0] if given else None
