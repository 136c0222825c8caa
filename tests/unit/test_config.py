"""Options: what is accepted, from where, and how everything else is refused."""

from __future__ import annotations

import logging
import os
import re
import socket
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest
from pydantic import ValidationError

from clusterkit import ClusterKit, sync
from clusterkit.config import TLS, Options, OptionsDict
from clusterkit.errors import ClusterKitError, OptionError
from clusterkit.hooks import Hooks


def resolve(environ: Mapping[str, str] | None = None, /, **given: object) -> Options:
    return Options.resolve(environ=environ or {}, **given)


def refused(environ: Mapping[str, str] | None = None, /, **given: object) -> OptionError:
    with pytest.raises(OptionError) as caught:
        resolve(environ, **given)
    return caught.value


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


# --- defaults -------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_design() -> None:
    options = resolve()
    assert {name: getattr(options, name) for name in Options.model_fields} == {
        "cluster": "default",
        "prefix": "/clusterkit",
        "tls": None,
        "endpoints": ("127.0.0.1:2379",),
        "username": None,
        "password": None,
        "node_id": socket.gethostname(),
        "address": None,
        "services": {},
        "zone": None,
        "weight": 100,
        "labels": {},
        "partitions": 64,
        "replication_factor": 3,
        "balance": None,
        "balance_primaries": False,
        "key_hash": "crc32",
        "ownership": "assigned",
        "storage": "memory",
        "on_conflict": "takeover",
        "lease_ttl": seconds(10),
        "fence_margin": seconds(1),
        "restart_grace": seconds(0),
        "settle_time": seconds(0.25),
        "hook_timeout": seconds(30),
        "migration_timeout": seconds(600),
        "slow_hook_after": seconds(5),
        "max_concurrent_hooks": 50,
        "max_moves_in_flight": None,
        "connect_timeout": seconds(5),
        "drain_timeout": seconds(30),
        "admin": None,
        "ready_when_fenced": False,
        "hooks": None,
        "metrics": None,
    }


def test_every_option_has_an_attribute_a_remedy_and_a_line_in_the_documentation() -> None:
    assert [*Options.model_fields, "environ"] == list(OptionsDict.__annotations__)
    documented = re.findall(r"^\s+(\w+): ", OptionsDict.__doc__ or "", flags=re.MULTILINE)
    assert documented == list(OptionsDict.__annotations__)
    for name, field in Options.model_fields.items():
        assert re.fullmatch(r"[A-Z].*\.", field.description or ""), name


# --- where a value comes from ---------------------------------------------------------------------


def test_an_argument_beats_a_variable_and_a_variable_beats_the_default() -> None:
    environ = {"CLUSTERKIT_CLUSTER": "from-variable", "CLUSTERKIT_ZONE": "eu"}
    assert resolve(environ).cluster == "from-variable"
    assert resolve(environ, cluster="from-argument").cluster == "from-argument"
    assert resolve(environ, zone=None).zone is None


def test_the_environment_of_the_process_is_read_when_no_other_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLUSTERKIT_CLUSTER", "from-process")
    assert Options.resolve().cluster == "from-process"
    assert Options.resolve(environ={}).cluster == "default"


def test_an_argument_that_is_given_hides_a_variable_that_is_wrong() -> None:
    assert resolve({"CLUSTERKIT_WEIGHT": "heavy"}, weight=7).weight == 7


VARIABLES: list[tuple[str, str, object]] = [
    ("cluster", "kv", "kv"),
    ("prefix", "/team/ck", "/team/ck"),
    ("endpoints", "a:1, http://b:2,[::1]:3,a:1", ("a:1", "b:2", "[::1]:3")),
    ("node_id", "pod-0", "pod-0"),
    ("address", "pod-0.svc:8080", "pod-0.svc:8080"),
    (
        "services",
        "http=10.0.0.1:80, grpc = 10.0.0.1:90",
        {"http": "10.0.0.1:80", "grpc": "10.0.0.1:90"},
    ),
    ("zone", "eu/west-1", "eu/west-1"),
    ("weight", " 0 ", 0),
    ("labels", "a=b=c,d=", {"a": "b=c", "d": ""}),
    ("labels", "", {}),
    ("partitions", "1048576", 1_048_576),
    ("replication_factor", "64", 64),
    ("balance", "1.25", 1.25),
    ("balance", " 2 ", 2.0),
    ("balance", "none", None),
    ("balance_primaries", "True", True),
    ("balance_primaries", "false", False),
    ("key_hash", "blake2b", "blake2b"),
    ("ownership", "assigned", "assigned"),
    ("storage", "disk", "disk"),
    ("on_conflict", "fail", "fail"),
    ("lease_ttl", "1m30s", seconds(90)),
    ("lease_ttl", "1h", seconds(3600)),
    ("lease_ttl", "10", seconds(10)),
    ("fence_margin", "500ms", seconds(0.5)),
    ("fence_margin", "default", seconds(1)),
    ("restart_grace", "1m", seconds(60)),
    ("settle_time", "0.25", seconds(0.25)),
    ("hook_timeout", "none", None),
    ("hook_timeout", "1.5m", seconds(90)),
    ("migration_timeout", "1h1m1s1ms", seconds(3661.001)),
    ("slow_hook_after", "5s", seconds(5)),
    ("max_concurrent_hooks", "3", 3),
    ("max_moves_in_flight", "2", 2),
    ("max_moves_in_flight", "none", None),
    ("connect_timeout", "1", seconds(1)),
    ("drain_timeout", "0", seconds(0)),
    ("admin", ":8080", "127.0.0.1:8080"),
    ("ready_when_fenced", "true", True),
]


@pytest.mark.parametrize("name,text,expected", VARIABLES)
def test_a_variable_is_read(name: str, text: str, expected: object) -> None:
    value = getattr(resolve({f"CLUSTERKIT_{name.upper()}": text}), name)
    assert value == expected
    assert type(value) in (str, int, float, bool, tuple, timedelta, type(None)) or isinstance(
        value, Mapping
    )


def test_every_option_with_a_variable_is_in_the_table_above() -> None:
    elsewhere = {"tls", "username", "password", "hooks", "metrics"}
    assert {name for name, _, _ in VARIABLES} | elsewhere == set(Options.model_fields)


def test_user_and_password_are_read_from_variables_as_they_are() -> None:
    options = resolve({"CLUSTERKIT_USERNAME": "ann", "CLUSTERKIT_PASSWORD": " pass word\n"})
    assert options.username == "ann"
    assert options.password is not None
    assert options.password.get_secret_value() == " pass word\n"


# --- arguments that are good ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,given,expected",
    [
        ("lease_ttl", 2.0, seconds(2)),
        ("lease_ttl", timedelta(minutes=1), seconds(60)),
        ("settle_time", 0, seconds(0)),
        ("fence_margin", None, seconds(1)),
        ("fence_margin", 4.999, seconds(4.999)),
        ("hook_timeout", None, None),
        ("migration_timeout", timedelta(milliseconds=1), seconds(0.001)),
        (
            "endpoints",
            ["etcd-0.etcd:2379", "http://10.0.0.1:2379"],
            ("etcd-0.etcd:2379", "10.0.0.1:2379"),
        ),
        ("endpoints", ("[2001:db8::1]:2379",), ("[2001:db8::1]:2379",)),
        ("address", "[::1]:80", "[::1]:80"),
        ("address", "my_service:80", "my_service:80"),
        ("admin", "0.0.0.0:8080", "0.0.0.0:8080"),
        ("admin", "[::1]:8080", "[::1]:8080"),
        ("admin", "localhost:1", "localhost:1"),
        ("admin", ":65535", "127.0.0.1:65535"),
        ("node_id", "Knoten-Ä 7", "Knoten-Ä 7"),
        ("node_id", "ä" * 126, "ä" * 126),
        ("cluster", "a.b-c_D9", "a.b-c_D9"),
        ("on_conflict", "wait", "wait"),
        ("weight", 1_000_000, 1_000_000),
        ("services", {"http": "http://10.0.0.1:80/"}, {"http": "http://10.0.0.1:80/"}),
    ],
)
def test_a_good_argument_is_taken(name: str, given: object, expected: object) -> None:
    assert getattr(resolve(**{name: given}), name) == expected


@pytest.mark.parametrize("ttl,margin", [(2, 0.5), (5, 0.5), (10, 1), (30, 3)])
def test_the_fence_margin_is_a_tenth_of_the_ttl_but_half_a_second_at_least(
    ttl: int, margin: float
) -> None:
    assert resolve(lease_ttl=ttl).fence_margin == seconds(margin)


def test_hooks_are_kept_as_the_object_that_was_given() -> None:
    hooks = Hooks()
    assert resolve(hooks=hooks).hooks is hooks


def test_options_cannot_be_changed() -> None:
    labels = {"a": "b"}
    options = resolve(labels=labels, endpoints=["a:1"])
    labels["a"] = "changed"
    assert options.labels == {"a": "b"}
    with pytest.raises(ValidationError):
        options.weight = 5
    with pytest.raises(TypeError):
        cast("dict[str, str]", options.labels)["a"] = "changed"
    assert resolve(labels={"a": "b"}, endpoints=["a:1"]) == options


# --- the address ----------------------------------------------------------------------------------


def test_the_address_is_demanded_with_both_ways_to_give_it() -> None:
    with pytest.raises(OptionError, match=r"address='host:port'.*CLUSTERKIT_ADDRESS") as caught:
        resolve().require_address()
    assert (caught.value.option, caught.value.value) == ("address", None)
    assert resolve(address="h:1").require_address() == "h:1"


# --- bad input ------------------------------------------------------------------------------------

BAD: list[tuple[str, object, str]] = [
    ("cluster", "", "empty"),
    ("cluster", "a/b", "letters, digits"),
    ("cluster", "ä", "letters, digits"),
    ("cluster", "a\n", "letters, digits"),
    ("cluster", "a" * 254, "longer than 253"),
    ("cluster", None, "string"),
    ("cluster", b"kv", "string"),
    ("prefix", "", "begin with '/'"),
    ("prefix", "clusterkit", "begin with '/'"),
    ("prefix", "/", "ends with '/'"),
    ("prefix", "/a/", "ends with '/'"),
    ("prefix", "/a//b", "empty part"),
    ("prefix", "/a b", "letters, digits"),
    ("prefix", "/" + "a/" * 130 + "a", "longer than 253"),
    ("endpoints", "", "no endpoint"),
    ("endpoints", [], "no endpoint"),
    ("endpoints", "etcd", "no port"),
    ("endpoints", "a:1,,b:1", "endpoint 2 of 3: it has no port"),
    ("endpoints", ["a:1", "b"], "endpoint 2 of 2: it has no port"),
    ("endpoints", ["a:1", 5], "neither a text nor a sequence"),
    ("endpoints", 2379, "neither a text nor a sequence"),
    ("endpoints", b"a:1", "neither a text nor a sequence"),
    ("endpoints", "[::1]", "no port"),
    ("endpoints", "::1:2379", "brackets"),
    ("endpoints", "[10.0.0.1]:2379", "IPv6"),
    ("endpoints", "[fe80::1%eth0]:2379", "IPv6"),
    ("endpoints", "10.0.0.256:2379", "IPv4"),
    ("endpoints", "1234:2379", "IPv4"),
    ("endpoints", ":2379", "no host"),
    ("endpoints", "a:0", "port is not a number from 1 to 65535"),
    ("endpoints", "a:65536", "port is not a number from 1 to 65535"),
    ("endpoints", "a:http", "port is not a number from 1 to 65535"),
    ("endpoints", "a:٣", "port is not a number from 1 to 65535"),
    ("endpoints", "-a:1", "DNS"),
    ("endpoints", "a..b:1", "DNS"),
    ("endpoints", "a b:1", "DNS"),
    ("endpoints", "ftp://a:1", "scheme"),
    ("endpoints", "http://http://a:1", "scheme"),
    ("endpoints", "http://a:1/", "port is not a number from 1 to 65535"),
    ("endpoints", "https://a:1", "CLUSTERKIT_TLS_CA"),
    ("tls", True, "TLS"),
    ("tls", {"ca": "x"}, "TLS"),
    ("username", "", "empty"),
    ("username", "ann", "there is no password"),
    ("node_id", "", "empty"),
    ("node_id", "a/b", "'/'"),
    ("node_id", "a\x00b", "control character"),
    ("node_id", "a\nb", "control character"),
    ("node_id", "a\x7f", "control character"),
    ("node_id", "a\u202eb", "printed"),
    ("node_id", "\udc80", "printed|unicode"),
    ("node_id", " a", "white space"),
    ("node_id", "a ", "white space"),
    ("node_id", "ä" * 127, "longer than 253 bytes"),
    ("node_id", None, "string"),
    ("address", "10.0.0.1", "no port"),
    ("address", "", "no port"),
    ("address", "a:0", "port"),
    ("address", "http://a:1", "scheme"),
    ("address", "0.0.0.0:80", "where a server listens"),
    ("address", "[::]:80", "where a server listens"),
    ("address", "::1:80", "brackets"),
    ("address", ("a", 1), "string"),
    ("services", "http=a:1", "mapping"),
    ("services", {"http": 80}, "texts"),
    ("services", {1: "a"}, "texts"),
    ("services", {"": "a"}, "empty"),
    ("services", {"a": "b\x1b[31m"}, "printed"),
    ("labels", {"a\n": "b"}, "printed"),
    ("labels", {"a": "x" * 40_000}, "32768 bytes"),
    ("labels", None, "mapping"),
    ("labels", [("a", "b")], "mapping"),
    ("zone", "", "empty"),
    ("zone", "a\tb", "printed"),
    ("zone", 5, "string"),
    ("weight", -1, "greater than or equal to 0"),
    ("weight", 1_000_001, "less than or equal to 1000000"),
    ("weight", True, "integer"),
    ("weight", 1.0, "integer"),
    ("weight", "5", "integer"),
    ("partitions", 0, "greater than or equal to 1"),
    ("partitions", -(10**5000), "greater than or equal to 1"),
    ("partitions", 1_048_577, "less than or equal to 1048576"),
    ("partitions", None, "integer"),
    ("replication_factor", 0, "greater than or equal to 1"),
    ("replication_factor", 65, "less than or equal to 64"),
    ("replication_factor", False, "integer"),
    ("key_hash", "md5", "'crc32' or 'blake2b'"),
    ("ownership", "exclusive", "not available in this release"),
    ("ownership", "shared", "'assigned'"),
    ("ownership", ["assigned"], "'assigned'"),
    ("storage", "tape", "'memory'"),
    ("on_conflict", "ask", "'takeover'"),
    ("lease_ttl", 1, "2 seconds"),
    ("lease_ttl", 1.5, "2 seconds"),
    ("lease_ttl", 2.5, "whole seconds"),
    ("lease_ttl", timedelta(milliseconds=10_001), "whole seconds"),
    ("lease_ttl", 3601, "1 hour"),
    ("lease_ttl", -10, "2 seconds"),
    ("lease_ttl", True, "number of seconds"),
    ("lease_ttl", "10", "number of seconds"),
    ("lease_ttl", None, "number of seconds"),
    ("lease_ttl", float("nan"), "length of time"),
    ("lease_ttl", float("inf"), "length of time"),
    ("lease_ttl", 10**400, "length of time"),
    ("fence_margin", 0, "greater than 0"),
    ("fence_margin", -1, "greater than 0"),
    ("fence_margin", 5, "half of lease_ttl=10"),
    ("fence_margin", "default", "number of seconds"),
    ("restart_grace", 3601, "1 hour"),
    ("restart_grace", 0.5, "whole seconds"),
    ("restart_grace", -1, "0 seconds"),
    ("settle_time", -0.1, "0 seconds"),
    ("settle_time", 60.1, "1 minute"),
    ("hook_timeout", 0, "greater than 0"),
    ("hook_timeout", 1e-9, "greater than 0"),
    ("hook_timeout", timedelta(days=1, microseconds=1), "1 day"),
    ("migration_timeout", -1, "greater than 0"),
    ("migration_timeout", False, "number of seconds"),
    ("slow_hook_after", 0, "greater than 0"),
    ("slow_hook_after", None, "number of seconds"),
    ("max_concurrent_hooks", 2, "greater than or equal to 3"),
    ("max_concurrent_hooks", 1001, "less than or equal to 1000"),
    ("balance", 0.99, "from 1 to 100"),
    ("balance", 100.01, "from 1 to 100"),
    ("balance", float("nan"), "from 1 to 100"),
    ("balance", 1.125, "two decimals"),
    ("balance", True, "not a number"),
    ("balance", "1.25", "not a number"),
    ("balance_primaries", 1, "bool"),
    ("balance_primaries", "true", "bool"),
    ("balance_primaries", None, "bool"),
    ("max_moves_in_flight", 0, "greater than or equal to 1"),
    ("max_moves_in_flight", 1001, "less than or equal to 1000"),
    ("connect_timeout", 0, "greater than 0"),
    ("connect_timeout", None, "number of seconds"),
    ("ready_when_fenced", "yes", "bool"),
    ("drain_timeout", -1, "0 seconds"),
    ("drain_timeout", None, "number of seconds"),
    ("admin", "8080", "no port"),
    ("admin", "", "no port"),
    ("admin", ":0", "port"),
    ("admin", ":65536", "port"),
    ("admin", "http://127.0.0.1:8080", "scheme"),
    ("admin", "::1:80", "brackets"),
    ("admin", 8080, "string"),
    ("hooks", "a text", "Hooks"),
    ("hooks", Hooks, "Hooks"),
    ("metrics", Hooks(), "Metrics"),
    ("environ", ["CLUSTERKIT_ZONE=a"], "mapping"),
    ("environ", {"CLUSTERKIT_WEIGHT": 5}, "texts"),
    ("environ", {1: "5"}, "texts"),
    ("environ", None, "mapping"),
]


def identify(value: object) -> str:
    return ascii(value)[:30] if not isinstance(value, int) or abs(value) < 10**20 else "huge"


@pytest.mark.parametrize("name,given,problem", BAD, ids=identify)
def test_a_bad_argument_is_one_error_that_says_everything(
    name: str, given: object, problem: str
) -> None:
    with pytest.raises(OptionError) as caught:
        Options.resolve(**{"environ": {}, name: given})
    error = caught.value
    text = str(error)
    told = "password" if name == "username" and given else name  # one of a pair: told at its end
    assert isinstance(error, ClusterKitError | ValueError)
    assert error.option == told
    assert text.startswith(f"{told}=")
    assert re.search(problem, text)
    assert " cannot work: " in text
    assert re.search(r"\. Give ", text)
    assert len(text) < 800
    assert "more option" not in text
    if told == name and name != "environ":
        assert error.value is given
        assert "given as an argument" in text


def test_every_option_but_the_password_is_in_the_table_of_bad_input() -> None:
    assert {name for name, _, _ in BAD} == set(OptionsDict.__annotations__) - {"password"}


@pytest.mark.parametrize(
    "name,text,problem",
    [
        ("weight", "", "whole number"),
        ("weight", "1_000", "whole number"),
        ("weight", "1.0", "whole number"),
        ("weight", "٣", "whole number"),
        ("weight", "9" * 5000, "whole number"),
        ("weight", "-1", "greater than or equal to 0"),
        ("lease_ttl", "", "length of time"),
        ("lease_ttl", "soon", "length of time"),
        ("lease_ttl", "1m30", "length of time"),
        ("lease_ttl", "30s1m", "length of time"),
        ("lease_ttl", "-10s", "length of time"),
        ("lease_ttl", "1e3", "length of time"),
        ("lease_ttl", "1 m", "length of time"),
        ("lease_ttl", "9" * 400, "too long"),
        ("lease_ttl", "none", "length of time"),
        ("lease_ttl", "1s", "2 seconds"),
        ("fence_margin", "none", "length of time"),
        ("labels", "a", "item 1 has no '='"),
        ("labels", "a=b,", "item 2 has no '='"),
        ("labels", "a=b,a=c", "item 2 gives a name for the second time"),
        ("labels", "=b", "empty"),
        ("endpoints", "", "no endpoint"),
        ("cluster", "", "empty"),
        ("node_id", "", "empty"),
        ("ownership", "exclusive", "not available"),
    ],
)
def test_a_bad_variable_is_named(name: str, text: str, problem: str) -> None:
    variable = f"CLUSTERKIT_{name.upper()}"
    error = refused({variable: text})
    assert (error.option, error.value) == (name, text)
    assert type(error.value) is str
    assert f"(from {variable}) cannot work: " in str(error)
    assert re.search(problem, str(error))


def test_a_host_name_that_cannot_be_a_node_id_is_told_as_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "")
    error = refused()
    assert (error.option, error.value) == ("node_id", "")
    assert "this machine's host name" in str(error)


def test_of_several_mistakes_the_first_is_told_and_the_others_are_named() -> None:
    error = refused({"CLUSTERKIT_CLUSTER": "a/b"}, lease_ttl=1, partitions=0)
    assert error.option == "cluster"
    assert str(error).endswith("2 more options are wrong: partitions, lease_ttl.")
    assert str(refused(weight=-1, zone="")).endswith("1 more option is wrong: weight.")


def test_a_mistake_does_not_make_an_option_that_depends_on_it_wrong_too() -> None:
    assert "more option" not in str(refused(lease_ttl=1, fence_margin=100))
    assert "more option" not in str(refused(endpoints="https://a:1", tls=5))
    assert "more option" not in str(refused(username="", password="p"))


@pytest.mark.parametrize(
    "given,near",
    [
        ("adress", "address"),
        ("lease_tl", "lease_ttl"),
        ("NODE_ID", "node_id"),
        ("nodeid", "node_id"),
    ],
)
def test_an_unknown_argument_is_refused_with_the_name_that_was_meant(given: str, near: str) -> None:
    error = refused(**{given: "x"})
    assert error.option == given
    assert f"Did you mean {near}?" in str(error)


def test_an_unknown_argument_that_is_near_to_nothing_lists_the_options() -> None:
    error = refused(qqq=1, zzz=2)
    assert "cluster, prefix, " in str(error)
    assert "1 more option is wrong: zzz." in str(error)


@pytest.mark.parametrize("face", [ClusterKit, sync.ClusterKit])
def test_an_unknown_argument_of_a_kit_is_refused_before_anything_is_started(
    face: Callable[..., object],
) -> None:
    with pytest.raises(OptionError, match="Did you mean address"):
        face(adress="127.0.0.1:1")
    face(address="a value is looked at by the start", partitions=0)


# --- unknown variables ----------------------------------------------------------------------------


def test_an_unknown_variable_is_one_warning_that_names_the_nearest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG):
        resolve({"CLUSTERKIT_ADRESS": "hunter2", "CLUSTERKIT_QQQQ": "", "OTHER_ADRESS": "h:1"})
    texts = [(r.levelname, r.getMessage()) for r in caplog.records]
    assert [level for level, _ in texts] == ["WARNING", "WARNING"]
    assert "CLUSTERKIT_ADRESS" in texts[0][1]
    assert "was CLUSTERKIT_ADDRESS meant?" in texts[0][1]
    assert "CLUSTERKIT_QQQQ" in texts[1][1]
    assert "meant" not in texts[1][1]
    assert "hunter2" not in caplog.text
    assert vars(caplog.records[0])["ck_nearest"] == "CLUSTERKIT_ADDRESS"


def test_the_misspelt_variable_is_told_even_when_the_options_are_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refused({"CLUSTERKIT_ADRESS": "h:1"}, weight=-1)
    assert "CLUSTERKIT_ADDRESS" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "CLUSTERKIT_PORT",
        "CLUSTERKIT_PORT_8080_TCP_ADDR",
        "CLUSTERKIT_SERVICE_HOST",
        "CLUSTERKIT_SERVICE_PORT_HTTP",
        "CLUSTERKIT_ETCD_PORT_2379_TCP",
        "CLUSTERKIT_ETCD_SERVICE_HOST",
        "CLUSTERKIT_KV_SERVICE_HOST",
        "CLUSTERKIT_KV_SERVICE_PORT_HTTP",
        "CLUSTERKIT_KV_PORT",
        "CLUSTERKIT_KV_PORT_80_TCP_PROTO",
    ],
)
def test_what_kubernetes_sets_for_services_is_no_mistake(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert resolve({name: "tcp://10.0.0.1:80"}) == resolve()
    assert not caplog.records


def test_known_variables_are_no_mistake(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("x")
    environ = {f"CLUSTERKIT_{name.upper()}": text for name, text, _ in VARIABLES}
    del environ["CLUSTERKIT_ENDPOINTS"]  # the table's say http
    resolve({**environ, "CLUSTERKIT_TLS_CA": str(ca), "CLUSTERKIT_TLS_SERVER_NAME": "etcd"})
    assert not caplog.records


# --- secrets --------------------------------------------------------------------------------------

SECRET = "hunter2-s3cret"


@pytest.mark.parametrize(
    "environ,given",
    [
        ({}, {"password": SECRET}),
        ({"CLUSTERKIT_PASSWORD": SECRET}, {}),
        ({}, {"username": "ann", "password": [SECRET]}),
        ({}, {"username": 5, "password": SECRET}),
        ({}, {"passwort": SECRET}),
        ({}, {"endpoints": f"http://ann:{SECRET}@etcd:2379"}),
        ({}, {"endpoints": ["etcd:2379", f"ann:{SECRET}@etcd"]}),
        ({"CLUSTERKIT_ENDPOINTS": f"https://ann:{SECRET}@etcd:2379"}, {}),
        ({}, {"services": {"db": f"postgres://ann:{SECRET}@db\n"}}),
        ({"CLUSTERKIT_SERVICES": f"db=postgres://ann:{SECRET}@db,db=x"}, {}),
        ({"CLUSTERKIT_PASSWORD": SECRET, "CLUSTERKIT_USERNAME": "ann"}, {"weight": -1}),
        ({"CLUSTERKIT_PASSWORT": SECRET}, {"weight": -1}),
    ],
)
def test_a_secret_is_in_no_error_and_in_no_log(
    environ: dict[str, str], given: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        error = refused(environ, **given)
    if error.option not in ("weight", "username"):
        assert error.value == "***"
        assert f"{error.option}=***" in str(error)
    everything = [str(error), repr(error), repr(vars(error)), caplog.text]
    everything += traceback.TracebackException.from_exception(error).format()
    everything += [repr(vars(r)) for r in caplog.records]
    assert error.__context__ is None
    assert error.__cause__ is None
    assert not [text for text in everything if SECRET in text]


def test_the_environment_itself_is_never_shown() -> None:
    with pytest.raises(OptionError) as caught:
        Options.resolve(environ={"AWS_SECRET": SECRET, "CLUSTERKIT_WEIGHT": 5})
    assert caught.value.value == "***"
    assert SECRET not in str(caught.value)


def test_a_secret_is_in_no_text_of_the_options() -> None:
    options = resolve(username="ann", password=SECRET)
    shown = f"{options} {options!r} {vars(options)}"
    assert SECRET not in shown
    assert "password='***'" in repr(options)
    assert options.password is not None
    assert options.password.get_secret_value() == SECRET


def test_a_value_that_cannot_be_shown_is_refused_all_the_same() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError("no text of me")

    for name in ("weight", "hooks", "endpoints", "lease_ttl", "services"):
        assert refused(**{name: Hostile()}).option == name


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture
def pem(tmp_path: Path) -> str:
    file = tmp_path / "file.pem"
    file.write_text("x")
    return str(file)


def test_tls_is_a_value() -> None:
    tls = TLS(ca="/ca", cert="/cert", key="/key", server_name="etcd")
    assert tls == TLS(ca="/ca", cert="/cert", key="/key", server_name="etcd")
    assert tls != TLS(ca="/ca")
    assert hash(tls) == hash(TLS(ca="/ca", cert="/cert", key="/key", server_name="etcd"))
    assert repr(tls) == "TLS(ca='/ca', cert='/cert', key='/key', server_name='etcd')"
    with pytest.raises(AttributeError):
        tls.ca = "/other"  # type: ignore[misc]  # that it is refused is what is tested


@pytest.mark.parametrize(
    "given",
    [{"cert": "/c"}, {"key": "/k"}, {"ca": ""}, {"ca": 5}, {"ca": "a\x00b"}, {"server_name": ""}],
)
def test_tls_that_cannot_work_is_refused_when_it_is_made(given: dict[str, str]) -> None:
    with pytest.raises(OptionError) as caught:
        TLS(**given)
    assert caught.value.option == "tls"
    assert "Give TLS(" in str(caught.value)


def test_files_of_tls_are_looked_for_when_the_options_are_resolved(
    pem: str, tmp_path: Path
) -> None:
    assert resolve(tls=TLS(ca=pem, cert=pem, key=pem)).tls == TLS(ca=pem, cert=pem, key=pem)
    missing = str(tmp_path / "missing.pem")
    error = refused(tls=TLS(ca=pem, cert=pem, key=missing))
    assert error.option == "tls"
    assert f"its key cannot be read: {missing}: No such file" in str(error)
    assert "is not a file" in str(refused(tls=TLS(ca=str(tmp_path))))
    assert "too long" in str(refused(tls=TLS(ca="/" + "a" * 5000)))


def test_a_pipe_in_the_place_of_a_certificate_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in str(refused(tls=TLS(ca=str(tmp_path / "pipe"))))


def test_tls_is_read_from_its_variables(pem: str) -> None:
    environ = {
        "CLUSTERKIT_TLS_CA": pem,
        "CLUSTERKIT_TLS_CERT": pem,
        "CLUSTERKIT_TLS_KEY": pem,
        "CLUSTERKIT_TLS_SERVER_NAME": "etcd",
    }
    expected = TLS(ca=pem, cert=pem, key=pem, server_name="etcd")
    options = resolve(environ, endpoints="https://a:1,b:1")
    assert (options.tls, options.endpoints) == (expected, ("a:1", "b:1"))
    assert resolve(environ, tls=None).tls is None
    error = refused({"CLUSTERKIT_TLS_CERT": pem})
    assert error.option == "tls"
    assert "from CLUSTERKIT_TLS_CERT" in str(error)
    assert "from CLUSTERKIT_TLS_CA" in str(refused({"CLUSTERKIT_TLS_CA": ""}))


def test_an_endpoint_says_https_with_tls_and_http_without(pem: str) -> None:
    assert resolve(endpoints="https://a:1", tls=TLS(ca=pem)).endpoints == ("a:1",)
    error = refused(endpoints=["b:1", "http://a:1"], tls=TLS(ca=pem))
    assert error.option == "endpoints"
    assert "endpoint 2 of 2 says http, but tls is given" in str(error)
