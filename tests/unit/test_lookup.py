"""The short way from a key to its partition ends where the long one does, in refusals too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterkit import ClusterHealth, ClusterKit, KitState, KitStateError
from clusterkit.core.hashing import KEY_HASHES, key_indexer
from clusterkit.core.membership import State
from clusterkit.core.ownership import rows_of
from clusterkit.core.records import ClusterConfig
from clusterkit.engine.snapshot import Snapshot, Snapshots
from tests.bench.state import cluster, joined

STATE = cluster(["a", "b"], partitions=7)


def snapshot_of(state: State) -> Snapshot:
    made = Snapshots("a").next(
        state,
        rows_of(state),
        kit_state=KitState.JOINED,
        session=None,
        initial_copies_done=True,
        was_ready=True,
        health=ClusterHealth("healthy", 2, 0, 2, (), ()),
    )
    assert made is not None
    return made


def kit_with(key_hash: str, partitions: int = 7) -> ClusterKit:
    """A kit as it is after a start, without an etcd."""
    kit = ClusterKit(address="here:1")
    config = ClusterConfig(partitions, 2, key_hash, 1, 7)
    kit._lookup.follow(snapshot_of(replace(STATE, config=config)))
    return kit


KITS = {(h, p): kit_with(h, p) for h in KEY_HASHES for p in (1, 7, 1024)}


@given(
    st.sampled_from(sorted(KITS)),
    st.one_of(st.text(), st.binary(), st.text(st.characters(categories=["Cs", "Ll"]), min_size=1)),
)
def test_it_is_where_the_key_is_hashed_to(which: tuple[str, int], key: str | bytes) -> None:
    kit, (key_hash, partitions) = KITS[which], which
    index = key_indexer(key_hash, partitions, 7)(key)
    for _ in "made", "found":
        found = kit.partition_for(key)
        assert found.index == index
        assert found.nodes
    assert kit.partition_for(key) is found


@pytest.mark.parametrize("key_hash", KEY_HASHES)
def test_keys_of_types_derived_from_text_are_keys(key_hash: str) -> None:
    class Text(str):
        __slots__ = ()

    class Octets(bytes):
        __slots__ = ()

    kit = kit_with(key_hash)
    assert kit.partition_for(Text("k")) is kit.partition_for("k")
    assert kit.partition_for(Octets(b"k")) is kit.partition_for("k")


@pytest.mark.parametrize("key_hash", KEY_HASHES)
@pytest.mark.parametrize("key", [7, None, bytearray(b"x"), ("a",), memoryview(b"x")])
def test_what_is_no_key_is_refused_with_the_remedy(key_hash: str, key: Any) -> None:
    with pytest.raises(TypeError, match=r"keys are str or bytes; got .*; use str\(key\)"):
        kit_with(key_hash).partition_for(key)


def test_it_goes_with_the_view() -> None:
    kit = ClusterKit(address="here:1")
    kit._lookup.follow(snapshot_of(STATE))
    before = kit.partition_for("k")
    assert {node.id for node in before.nodes} == {"a", "b"}
    kit._lookup.follow(snapshot_of(joined(STATE, "c")))
    assert {node.id for node in kit.partition_for("k").nodes} == {"a", "b", "c"}
    # An etcd with another cluster in it, without one, and a fork.
    kit._lookup.follow(snapshot_of(cluster(["a"], partitions=1)))
    assert {kit.partition_for(str(i)).index for i in range(9)} == {0}
    kit._lookup.close()
    with pytest.raises(KitStateError, match="has not been started"):
        kit.partition_for("k")


def test_before_the_start_it_says_so() -> None:
    with pytest.raises(KitStateError, match="has not been started"):
        ClusterKit(address="here:1").partition_for("k")
