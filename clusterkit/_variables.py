"""The environment: which ``CLUSTERKIT_*`` variables there are, and which look like a mistake."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Mapping
from typing import Final

__all__ = [
    "TLS_FIELDS",
    "Variable",
    "VariableGroup",
    "find_variable",
    "nearest",
    "variables_of",
    "warn_of_unknown_variables",
]

_log = logging.getLogger(__name__)

_PREFIX: Final = "CLUSTERKIT_"
TLS_FIELDS: Final = ("ca", "cert", "key", "server_name")
_NO_TEXT: Final = frozenset({"hooks", "metrics", "environ"})
"""Options that are objects of the program, and so have no variable."""

# Kubernetes sets variables for each service of the namespace. A service named clusterkit, or
# clusterkit-anything, thereby fills our name space with what nobody wrote.
_KUBERNETES: Final = re.compile(
    r"CLUSTERKIT_(?:(?:PORT|SERVICE_|ETCD_).*"
    r"|.+_SERVICE_(?:HOST|PORT)(?:_.+)?"
    r"|.+_PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_.+)?)?)"
)


class Variable(str):
    """A text that comes from a variable, and so stands for a number, a duration or a mapping."""

    __slots__ = ()


class VariableGroup(dict[str, str]):
    """The texts of the variables that make up one option together, by the name of its field."""


def variables_of(option: str) -> tuple[str, ...]:
    """The variables that an option is read from; none for what only a program can give."""
    if option in _NO_TEXT:
        return ()
    if option == "tls":
        return tuple(f"{_PREFIX}TLS_{field.upper()}" for field in TLS_FIELDS)
    return (_PREFIX + option.upper(),)


def find_variable(
    option: str, environ: Mapping[str, str]
) -> tuple[Variable | VariableGroup, str] | None:
    """The value that the environment has for an option, and where it was found; None if nowhere."""
    found = [variable for variable in variables_of(option) if variable in environ]
    if not found:
        return None
    source = f"from {' and '.join(found)}"
    if option != "tls":
        return Variable(environ[found[0]]), source
    fields = zip(TLS_FIELDS, variables_of("tls"), strict=True)
    return VariableGroup({f: str(environ[v]) for f, v in fields if v in environ}), source


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that somebody who wrote ``name`` may have meant."""
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.5)), None)


def warn_of_unknown_variables(options: Collection[str], environ: Mapping[str, str]) -> None:
    """Logs one warning for each variable that looks like an option and is none. Never its value."""
    known = {
        variable.removeprefix(_PREFIX): variable
        for option in options
        for variable in variables_of(option)
    }
    for name in sorted(environ):
        rest = name.removeprefix(_PREFIX)
        ours = name.startswith(_PREFIX) and not _KUBERNETES.fullmatch(name)
        if not ours or rest in known:
            continue
        # Without the prefix: with it, all names would be alike.
        near = known.get(nearest(rest.upper(), known) or "")
        extra = {"ck_variable": name, "ck_nearest": near}
        if near is None:
            _log.warning("variable %r is not an option of ClusterKit: ignored", name, extra=extra)
        else:
            _log.warning(
                "variable %r is not an option of ClusterKit: ignored; was %s meant?",
                name,
                near,
                extra=extra,
            )
