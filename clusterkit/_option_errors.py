"""How a wrong option is told: its name and value, where that came from, why, and what to do."""

from __future__ import annotations

import reprlib
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from .errors import OptionError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["ARGUMENT", "problem_in", "refusal"]

ARGUMENT: Final = "given as an argument"
_MASK: Final = "***"
_SECRET: Final = frozenset({"password", "environ"})
_MAY_HOLD_URLS: Final = frozenset({"admin", "endpoints", "address", "services", "labels"})

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 100


def refusal(
    option: str,
    value: object,
    source: str,
    problem: str,
    remedy: str,
    others: Collection[str] = (),
    *,
    secret: bool = False,
) -> OptionError:
    """The error for an option. A value that is, or may carry, a secret is in none of its parts.

    Args:
        option: The name of the option.
        value: What was given.
        source: Where it came from, in words.
        problem: What is wrong, in words that go on after "cannot work:".
        remedy: What to do, a sentence.
        others: The names of further options that are wrong as well.
        secret: True if the value may be a secret although the option is none.
    """
    shown = _MASK if secret else _shown(option, value)
    if isinstance(value, str):
        value = str(value)  # no more than a text, whatever it was marked as on its way
    text = f"{option}={shown} ({source}) cannot work: {problem}. {remedy}"
    if others:
        more = "more option is" if len(others) == 1 else "more options are"
        text += f" {len(others)} {more} wrong: {', '.join(others)}."
    return OptionError(text, option=option, value=_MASK if shown == _MASK else value)


def problem_in(error: ErrorDetails) -> str:
    """pydantic's word for what is wrong with one option, without the value, or our own."""
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, ValueError):
        return str(cause)
    return error["msg"].replace("Input should", "it should").rstrip(".")


def _shown(option: str, value: object) -> str:
    if option in _SECRET and value is not None:
        return _MASK
    try:
        if option in _MAY_HOLD_URLS and "@" in repr(value):
            return _MASK  # as in http://user:password@host
        return _short.repr(value)
    except Exception:  # an application's __repr__ may do anything, and is not what is wrong here
        return _MASK if option in _MAY_HOLD_URLS else f"<{type(value).__name__}>"
