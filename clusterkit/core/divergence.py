"""Where a state and a reading of etcd differ, key by key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from ..ports import RangeResult
from . import membership
from .keys import Keys
from .membership import State


def differences(keys: Keys, state: State, read: RangeResult) -> dict[bytes, int]:
    """The keys that mean something else in the reading than in the state.

    What has been agreed on stays in force when its key is gone or damaged: that is no difference.

    Returns:
        For each key, in order, the revision that put it in etcd; 0 if it is not there.
    """
    there = membership.read(keys, read.kvs, read.revision, read.cluster_id)
    ours, theirs = _meaning(keys, state), _meaning(keys, membership.agreed(state, there))
    put_at = {kv.key: kv.mod_revision for kv in read.kvs}
    return {
        key: put_at.get(key, 0)
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    }


def _meaning(keys: Keys, state: State) -> Mapping[bytes, list[object]]:
    """All that a state says, by the key that says it."""
    found: dict[bytes, list[object]] = defaultdict(list)
    for node_id, stored in state.stored.items():
        found[keys.node(node_id)] += [stored, state.members.get(node_id)]
    for (node_id, incarnation), alive in state.alive.items():
        found[keys.alive(node_id, incarnation)].append(alive)
    for node_id, revision in state.history_revisions.items():
        found[keys.history(node_id)] += [revision, state.history.get(node_id)]
    for node_id, receipt in state.receipts.items():
        found[keys.applied(node_id)].append(receipt)
    for node_id, cordon in state.cordons.items():
        found[keys.cordon(node_id)].append(cordon)
    for key, why in state.ignored.items():
        found[key].append(why)
    found[keys.config].append(state.config)
    found[keys.membership].append(state.membership_revision)
    found[keys.rebalance] += [state.rebalance_revision, state.rebalance]
    return found
