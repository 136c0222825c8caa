"""The options by which every command finds a cluster, declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, TypeAlias

import typer

from clusterkit.config import TLS, Options

_Text: TypeAlias = str | None

_CONNECTION: dict[str, Any] = {
    "cluster": Annotated[_Text, typer.Option(help="The cluster's name.")],
    "prefix": Annotated[_Text, typer.Option(help="Where in etcd all clusters are kept.")],
    "endpoints": Annotated[
        _Text, typer.Option(metavar="HOST:PORT,…", help="etcd's addresses, with commas between.")
    ],
    "username": Annotated[
        _Text, typer.Option(help="The etcd user; the password only as CLUSTERKIT_PASSWORD.")
    ],
    "tls_ca": Annotated[_Text, typer.Option(metavar="FILE", help="Trust these certificates.")],
    "tls_cert": Annotated[_Text, typer.Option(metavar="FILE", help="This client's certificate.")],
    "tls_key": Annotated[_Text, typer.Option(metavar="FILE", help="Its private key.")],
    "tls_server_name": Annotated[
        _Text, typer.Option(metavar="NAME", help="The name in etcd's certificate.")
    ],
}


def connection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of the connection, in place of its parameter ``options``.

    What is not given on the command line comes from ``CLUSTERKIT_…`` variables, else from the
    library's defaults; the command gets all of it resolved and checked.
    """

    @wraps(command)
    def with_options(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in _CONNECTION}
        command(options=resolve(**given), **arguments)

    own = inspect.signature(command, eval_str=True).parameters
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(name, keyword, default=None, annotation=annotation)
        for name, annotation in _CONNECTION.items()
    ]
    parameters += [p.replace(kind=keyword) for name, p in own.items() if name != "options"]
    # typer reads either of these, depending on its version.
    vars(with_options)["__signature__"] = inspect.Signature(parameters)
    with_options.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_options


def resolve(**given: str | None) -> Options:
    """Options from what was given on the command line; None is not given.

    Raises:
        OptionError: A value cannot work.
    """
    tls = {name: given.pop(f"tls_{name}", None) for name in ("ca", "cert", "key", "server_name")}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if any(value is not None for value in tls.values()):
        chosen["tls"] = TLS(**tls)
    return Options.resolve(**chosen)
