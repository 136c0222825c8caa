"""TLS: which files and names to use for it, and whether they can be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeAlias

from pydantic import AfterValidator, BeforeValidator

from ._option_errors import ARGUMENT, refusal
from ._variables import VariableGroup

__all__ = ["REMEDY", "TLS", "TLSOrNone"]

REMEDY: Final = (
    "Give TLS(ca=..., cert=..., key=...) with the names of files that this process can read."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """How to talk TLS to etcd. Files in PEM form; they are looked for when options are resolved.

    Attributes:
        ca: The file of certificates to trust; None for those that gRPC brings along.
        cert: The file of this client's certificate, for mutual TLS; with ``key`` or not at all.
        key: The file of its private key.
        server_name: The name that the server's certificate must bear, where it is not the host
            of the endpoint.

    Raises:
        OptionError: A value is no text or is empty, or one of ``cert`` and ``key`` is missing.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        given = {"ca": self.ca, "cert": self.cert, "key": self.key, "server_name": self.server_name}
        if problem := _problem(given):
            raise refusal("tls", given, ARGUMENT, problem, REMEDY)


def _problem(given: Mapping[str, object]) -> str | None:
    for field, value in given.items():
        if value is not None and not (isinstance(value, str) and value and value.isprintable()):
            return f"its {field} is not a text, is empty, or has a character that cannot be printed"
    if (given.get("cert") is None) != (given.get("key") is None):
        return "it has only one of cert and key, and neither is of use without the other"
    return None


def _from_variables(value: object) -> object:
    if not isinstance(value, VariableGroup):
        return value
    if problem := _problem(value):
        raise ValueError(problem)
    return TLS(**value)


def _with_files(value: TLS | None) -> TLS | None:
    files = {"ca": value.ca, "cert": value.cert, "key": value.key} if value is not None else {}
    for field, file in files.items():
        if file is None:
            continue
        try:
            # A pipe would block here, and a directory be found out only when it is read.
            if Path(file).exists() and not Path(file).is_file():
                raise ValueError(f"its {field} is not a file: {file}")
            Path(file).open("rb").close()
        except OSError as error:
            raise ValueError(f"its {field} cannot be read: {file}: {error.strerror}") from None
    return value


TLSOrNone: TypeAlias = Annotated[
    TLS | None, BeforeValidator(_from_variables), AfterValidator(_with_files)
]
