"""Whatever is given to options, the answer is options that hold, or one ``OptionError``."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import event, given
from hypothesis import strategies as st

from clusterkit._variables import variables_of
from clusterkit.config import TLS, Options, OptionsDict
from clusterkit.errors import OptionError
from clusterkit.hooks import Hooks

_NAMES = [*OptionsDict.__annotations__]
_VARIABLES = [v for name in Options.model_fields for v in variables_of(name)]

# Texts near to the grammars reach further into them than random ones do.
_TEXTS = st.one_of(
    st.text(),
    st.from_regex(r"[0-9]{0,4}(\.[0-9]+)?(h|m|s|ms)?([0-9]{1,3}s)?"),
    st.from_regex(r"(https?://)?[\[\]a-z0-9.:@%-]{0,12}:[0-9]{0,6}(,[a-z]:1)?"),
    st.from_regex(r"/?[a-z/ ]{0,6}=?,?[a-z]?=?"),
    st.sampled_from(["none", "default", "memory", "disk", "crc32", "wait", "/clusterkit", "a:1"]),
)
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 100),
    st.integers(),
    st.floats(),
    st.timedeltas(),
    st.timedeltas(timedelta(0), timedelta(minutes=2)),
    _TEXTS,
    st.text(st.characters(categories=["Cs", "Cc", "Cf"]), max_size=3),
    st.binary(),
    st.builds(Hooks),
    st.builds(TLS),
    st.builds(object),
)
_ANYTHING = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(), st.integers()), inner, max_size=3),
    ),
    max_leaves=5,
)


def _resolve(given: dict[str, object]) -> Options | OptionError:
    try:
        return Options.resolve(**given)
    except OptionError as error:
        return error


def _check(environ: object, arguments: dict[str, object]) -> None:
    options = _resolve({"environ": environ, **arguments})
    if isinstance(options, OptionError):
        event("refused")
        assert options.option in {*OptionsDict.__annotations__, *arguments}
        assert f"{options.option}=" in str(options)
        return
    event("accepted")
    assert 1 <= options.partitions <= 1_048_576
    assert 1 <= options.replication_factor <= 64
    assert timedelta(seconds=2) <= options.lease_ttl <= timedelta(hours=1)
    assert timedelta(0) < options.fence_margin < options.lease_ttl / 2
    assert options.prefix.startswith("/")
    assert not options.prefix.endswith("/")
    assert "/" not in options.cluster + options.node_id
    assert options.endpoints
    for text in (options.cluster, options.node_id, *options.labels, *options.labels.values()):
        assert text.isprintable()
        text.encode()
    for limit in (options.hook_timeout, options.migration_timeout, options.connect_timeout):
        assert limit is None or timedelta(0) < limit <= timedelta(days=1)
    assert (options.username is None) == (options.password is None)


@given(name=st.sampled_from(_NAMES), value=_ANYTHING)
def test_one_argument(name: str, value: object) -> None:
    _check({}, {name: value})


@given(arguments=st.dictionaries(st.sampled_from(_NAMES), _ANYTHING, max_size=4))
def test_some_arguments(arguments: dict[str, object]) -> None:
    _check({}, arguments)


@given(arguments=st.dictionaries(st.text(max_size=8), _ANYTHING, min_size=1, max_size=3))
def test_arguments_of_any_name(arguments: dict[str, object]) -> None:
    _check({}, arguments)


@given(environ=st.dictionaries(st.sampled_from(_VARIABLES), _TEXTS, max_size=3))
def test_some_variables(environ: dict[str, str]) -> None:
    _check(environ, {})


@given(
    environ=st.dictionaries(st.text(max_size=8).map("CLUSTERKIT_{}".format), st.text(), max_size=3)
)
def test_variables_of_any_name(environ: dict[str, str]) -> None:
    _check(environ, {})
