"""Where things are kept: every key comes back as what it is, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterkit.core.keys import Keys, Kind, Parsed, range_end

KEYS = Keys.of("/clusterkit", "shop")
ROOT = b"/clusterkit/shop/c/"

BUILT = [
    (KEYS.config, b"config", Parsed("config")),
    (KEYS.membership, b"membership", Parsed("membership")),
    (KEYS.rebalance, b"rebalance", Parsed("rebalance")),
    (KEYS.node("pod-0"), b"nodes/pod-0", Parsed("nodes", "pod-0")),
    (KEYS.history("pod-0"), b"history/pod-0", Parsed("history", "pod-0")),
    (KEYS.applied("pod-0"), b"applied/pod-0", Parsed("applied", "pod-0")),
    (KEYS.alive("pod-0", "f00d"), b"alive/pod-0/f00d", Parsed("alive", "pod-0", "f00d")),
    (KEYS.node("knoten-ß"), "nodes/knoten-ß".encode(), Parsed("nodes", "knoten-ß")),
]


@pytest.mark.parametrize("key, name, parsed", BUILT)
def test_a_key_is_where_releases_before_have_put_it(
    key: bytes, name: bytes, parsed: Parsed
) -> None:
    assert key == ROOT + name
    assert KEYS.parse(key) == parsed


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"nodes",
        b"nodes/",
        b"nodes//",
        b"nodes/a/b",
        b"/nodes/a",
        b"config/",
        b"config/a",
        b"alive/a",
        b"alive/a/",
        b"alive//f00d",
        b"alive/a/f00d/x",
        b"owners/partition-1",
        b"Config",
        b"nodes/\xff",
    ],
)
def test_what_is_no_key_of_ours_is_none(name: bytes) -> None:
    assert KEYS.parse(ROOT + name) is None


@pytest.mark.parametrize(
    "key", [b"", b"/clusterkit/shop/c", b"/clusterkit/shop/x/nodes/a", b"/clusterkit/sho/c/config"]
)
def test_what_is_outside_the_root_is_none(key: bytes) -> None:
    assert KEYS.parse(key) is None


def test_the_folders_hold_the_keys_of_their_kind() -> None:
    assert KEYS.node("a").startswith(KEYS.nodes)
    assert KEYS.history("a").startswith(KEYS.histories)


@given(st.binary(max_size=40))
def test_parsing_never_raises_and_never_finds_a_key_that_would_not_be_built_so(name: bytes) -> None:
    parsed = KEYS.parse(ROOT + name)
    if parsed is None:
        return
    built: dict[Kind, bytes] = {
        "config": KEYS.config,
        "membership": KEYS.membership,
        "rebalance": KEYS.rebalance,
        "nodes": KEYS.node(parsed.node_id),
        "history": KEYS.history(parsed.node_id),
        "applied": KEYS.applied(parsed.node_id),
        "alive": KEYS.alive(parsed.node_id, parsed.incarnation),
    }
    assert built[parsed.kind] == ROOT + name


node_ids = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1)


@given(node_ids, node_ids)
def test_any_node_id_without_a_slash_comes_back(node_id: str, incarnation: str) -> None:
    assert KEYS.parse(KEYS.node(node_id)) == Parsed("nodes", node_id)
    alive = KEYS.parse(KEYS.alive(node_id, incarnation))
    assert alive == Parsed("alive", node_id, incarnation)


@pytest.mark.parametrize(
    "prefix, end",
    [
        (b"a", b"b"),
        (b"nodes/", b"nodes0"),
        (b"a\xff", b"b"),
        (b"\x00", b"\x01"),
        (b"\xff\xff", b"\x00"),  # no key is beyond: etcd's word for "to the end"
        (b"", b"\x00"),
    ],
)
def test_the_end_of_a_range(prefix: bytes, end: bytes) -> None:
    assert range_end(prefix) == end


@given(st.binary(max_size=3), st.integers(0, 254), st.binary(max_size=6))
def test_a_range_holds_exactly_the_keys_with_the_prefix(head: bytes, last: int, key: bytes) -> None:
    prefix = head + bytes([last])
    for each in (key, prefix + key):
        assert (prefix <= each < range_end(prefix)) == each.startswith(prefix)
