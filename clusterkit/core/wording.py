"""How lists of names are told to people."""

from __future__ import annotations

from collections.abc import Sequence

_NAMED = 10


def named(names: Sequence[str]) -> str:
    """The first ten names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
