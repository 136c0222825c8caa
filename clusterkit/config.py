"""Options: what a kit can be told, from where, and which values can work.

An option is a keyword argument, else the variable ``CLUSTERKIT_<NAME>``, else its default. All of
them are read and checked in one place, :meth:`Options.resolve`; behind it everything is typed,
immutable and known to be sound, alone and together. pydantic does the checking and stays inside:
whatever is wrong comes out as one ``OptionError``.

Rooms for later: ``ownership="exclusive"`` is in the surface, so that programs can be written and
type-checked, but is refused in this release rather than accepted and not honoured.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from . import _option_types as types
from . import _tls
from ._option_errors import ARGUMENT, problem_in, refusal
from ._options_dict import OptionsDict, refuse_unknown
from ._tls import TLS
from ._variables import Variable, find_variable, warn_of_unknown_variables
from .hooks import Duration, Hooks
from .metrics import Metrics

__all__ = ["TLS", "Duration", "Options", "OptionsDict", "balance_percent_of"]


def _option(default: Any, remedy: str, **limits: Any) -> Any:
    """A field whose description is what errors tell people to do."""
    return Field(default=default, description=remedy, **limits)


_TIME: Final = "Give seconds, or a timedelta, greater than 0 and of at most a day."
_TIME_OR_NONE: Final = f"{_TIME[:-1]}; or None (in a variable: none) for no limit."
_AS_PAIRS: Final = (
    "Give names and texts that can be printed, in a variable as a=b,c=d; at most 32 KiB in all."
)


class Options(BaseModel):
    """What a kit was told: checked, immutable, all lengths of time as ``timedelta``.

    Made by :meth:`resolve`. The attributes are those of :class:`OptionsDict`, which tells their
    meaning; ``endpoints`` is a tuple of ``host:port`` without schemes, ``password`` a pydantic
    ``SecretStr`` (``get_secret_value()``), and services and labels are read-only mappings.
    """

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        validate_default=True,
        hide_input_in_errors=True,
    )

    cluster: types.Name = _option(
        "default", "Give 1 to 253 of the characters A-Z, a-z, 0-9, '.', '-' and '_'."
    )
    prefix: types.Path = _option("/clusterkit", "Give a path such as /clusterkit.")
    tls: _tls.TLSOrNone = _option(None, _tls.REMEDY)
    endpoints: types.Endpoints = _option(
        "127.0.0.1:2379",
        "Give etcd's host:port, IPv6 in brackets, http:// or https:// before it if you like; "
        "several with commas between them or as a sequence.",
    )
    username: types.Username = _option(None, "Give the name of an etcd user, or leave it out.")
    password: types.Password = _option(
        None, "Give username and password, or neither; CLUSTERKIT_PASSWORD keeps it out of code."
    )
    node_id: types.NodeId = Field(
        default_factory=lambda: socket.gethostname(),
        description="Give a stable name that no other node of the cluster has, such as the pod's: "
        "1 to 253 bytes that can be printed, no '/', no white space at its ends.",
    )
    address: types.Address = _option(
        None, "Give the host:port at which peers reach this node, IPv6 in brackets."
    )
    services: types.Texts = Field(default_factory=dict, description=_AS_PAIRS)
    zone: types.Zone = _option(None, "Give a text of 1 to 253 bytes that can be printed.")
    weight: types.Whole = _option(100, "Give a whole number from 0 to 1000000.", ge=0, le=1_000_000)
    labels: types.Texts = Field(default_factory=dict, description=_AS_PAIRS)
    partitions: types.Whole = _option(
        64, "Give a whole number from 1 to 1048576.", ge=1, le=1_048_576
    )
    replication_factor: types.Whole = _option(3, "Give a whole number from 1 to 64.", ge=1, le=64)
    balance: types.Balance = _option(
        None,
        "Give a number from 1 to 100 with at most two decimals, such as 1.25; or None (in a "
        "variable: none) for no bound.",
    )
    balance_primaries: types.Flag = _option(
        False, "Give True or False; in a variable true or false."
    )
    key_hash: types.KeyHash = _option("crc32", "Give 'crc32' or 'blake2b'.")
    ownership: types.Ownership = _option("assigned", "Give 'assigned', or leave it out.")
    storage: types.Storage = _option("memory", "Give 'memory' or 'disk'.")
    on_conflict: types.OnConflict = _option("takeover", "Give 'takeover', 'wait' or 'fail'.")
    lease_ttl: types.TTL = _option(10, "Give whole seconds from 2 to 3600.")
    fence_margin: types.FenceMargin = _option(
        None,
        "Give seconds, or a timedelta, greater than 0 and less than half of lease_ttl; or leave it "
        "out (in a variable: default) for a tenth of lease_ttl, at least half a second.",
    )
    restart_grace: types.Grace = _option(0, "Give whole seconds from 0 to 3600.")
    settle_time: types.Pause = _option(
        0.25, "Give seconds, or a timedelta, from 0 to 60.", le=timedelta(seconds=60)
    )
    hook_timeout: types.TimeoutOrNone = _option(30, _TIME_OR_NONE)
    migration_timeout: types.TimeoutOrNone = _option(600, _TIME_OR_NONE)
    slow_hook_after: types.Timeout = _option(5, _TIME)
    max_concurrent_hooks: types.Whole = _option(
        50,
        "Give a whole number from 3 to 1000: two places are kept for urgent news, and partition "
        "changes need one.",
        ge=3,
        le=1000,
    )
    max_moves_in_flight: types.CountOrNone = _option(
        None,
        "Give a whole number from 1 to 1000; or None (in a variable: none) for no limit.",
    )
    connect_timeout: types.Timeout = _option(5, _TIME)
    drain_timeout: types.Pause = _option(
        30, "Give seconds, or a timedelta, from 0 to a day.", le=timedelta(days=1)
    )
    admin: types.Admin = _option(
        None, "Give the host:port to listen on, IPv6 in brackets, or :port for this machine alone."
    )
    ready_when_fenced: types.Flag = _option(
        False, "Give True or False; in a variable true or false."
    )
    hooks: Hooks | None = _option(None, "Give a clusterkit.Hooks.")
    metrics: Metrics | None = _option(None, "Give an object with the method of clusterkit.Metrics.")

    @classmethod
    def resolve(cls, **given: object) -> Options:
        """Reads every option from the arguments, else from the environment, else its default.

        A variable of the form ``CLUSTERKIT_...`` that is no option is logged as a warning, except
        for those that Kubernetes sets for services.

        Args:
            **given: The options of :class:`OptionsDict`. An option that is given is never read
                from the environment, not even if it is given as None.

        Raises:
            OptionError: A value cannot work, an option is not known, or a file of ``tls`` cannot
                be read. Of several mistakes the first is told, in the order of ``OptionsDict``,
                and the text names the others.
        """
        environ = _take_environ(given)
        refuse_unknown(given)
        values: dict[str, object] = {}
        sources: dict[str, str] = {}
        for name in cls.model_fields:
            if name in given:
                values[name], sources[name] = given[name], ARGUMENT
            elif found := find_variable(name, environ):
                values[name], sources[name] = found
        warn_of_unknown_variables(cls.model_fields, environ)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = {str(e["loc"][0]): problem_in(e) for e in error.errors()}
        # Out here, so that pydantic's error, which knows the values, is not chained to ours.
        name, *others = problems
        field = cls.model_fields[name]
        if name not in values:
            values[name] = field.get_default(call_default_factory=True)
            sources[name] = "this machine's host name" if name == "node_id" else "its default"
        remedy = field.description or ""
        raise refusal(name, values[name], sources[name], problems[name], remedy, others)

    def require_address(self) -> str:
        """The address, which a node must have to join.

        Raises:
            OptionError: There is none.
        """
        if self.address is None:
            raise refusal(
                "address",
                None,
                "not given",
                "peers could not reach this node",
                "Give address='host:port', or set CLUSTERKIT_ADDRESS.",
            )
        return self.address

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, "***" if isinstance(value, SecretStr) else value


def balance_percent_of(given: str | float) -> int:
    """A bound on the load in hundredths; 0 for ``none``.

    Raises:
        OptionError: It is no such number.
    """
    try:
        balance = types.read_balance(Variable(given) if isinstance(given, str) else given)
    except ValueError as problem:
        remedy = Options.model_fields["balance"].description or ""
        raise refusal("balance", given, ARGUMENT, str(problem), remedy) from None
    return 0 if balance is None else round(balance * 100)


def _take_environ(given: dict[str, object]) -> Mapping[str, str]:
    environ = given.pop("environ", os.environ)
    if not isinstance(environ, Mapping) or not all(
        isinstance(text, str) for item in environ.items() for text in item
    ):
        raise refusal(
            "environ",
            environ,
            ARGUMENT,
            "it is not a mapping of texts to texts",
            "Give a mapping such as os.environ, or leave it out.",
        )
    return environ
