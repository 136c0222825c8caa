"""Faults. Each injects, waits for its effect, mends, and says whether the effect was observed.

An effect is an election, an expiry, a takeover, a broken stream or a compaction error, as etcd's
revisions, the members' own metrics or a node's record show it. A fault without one does not count.
"""

from __future__ import annotations

import contextlib
import random
import time
import urllib.error
from collections.abc import Callable
from typing import Final, TypeAlias

from clusterkit.core import codec
from clusterkit.core.records import RebalanceRequest
from clusterkit.engine.clock import SystemClock
from tests.support.secured import gateway

from .nodes import Life, until
from .records import now
from .stays import KEYS
from .world import SECONDS, World

Fault: TypeAlias = Callable[[World, random.Random], bool]


# -- of etcd's members ---------------------------------------------------------------------------


def member_kill(world: World, rng: random.Random) -> bool:
    """SIGKILL of a follower, and its return: streams break."""
    leader = until(world.members.leader, SECONDS)
    member = rng.choice([m for m in world.members.all if m is not leader])
    began = now()
    member.kill()
    broke = until(lambda: any(_broke(life, began) for life in list(world.lives.values())), 2.0)
    world.members.start([member])
    return bool(broke)


def leader_kill(world: World, rng: random.Random) -> bool:
    """SIGKILL of the leader, and its return: an election."""
    leader = until(world.members.leader, SECONDS)
    if leader is None:
        return False
    leader.kill()
    elected = until(world.members.leader, SECONDS)
    _hold(rng, 1.0)
    world.members.start([leader])
    return elected is not None


def leader_stop(world: World, rng: random.Random) -> bool:
    """SIGSTOP of the leader: an election, while its connections stand."""
    leader = until(world.members.leader, SECONDS)
    if leader is None:
        return False
    leader.etcd.pause()
    leader.up = False
    elected = until(world.members.leader, SECONDS)
    _hold(rng, 3.0)
    leader.etcd.resume()
    leader.up = True
    return elected is not None


def quorum_loss(world: World, rng: random.Random) -> bool:
    """SIGKILL of two members: nobody leads until they are back."""
    killed = rng.sample(world.members.all, 2)
    (left,) = (m for m in world.members.all if m not in killed)
    for member in killed:
        member.kill()
    lost = until(lambda: not left.has_leader(), SECONDS)
    _hold(rng, 4.0)
    world.members.start(killed)
    return bool(lost)


# -- of nodes and their connections --------------------------------------------------------------


def node_kill(world: World, rng: random.Random) -> bool:
    """SIGKILL of a node: its lease expires."""
    life = _any(world, rng)
    nonce = world.nonce_of(life)
    del world.lives[life.node_id]
    life.kill()
    expired = world.ended(nonce, "health_check_failure")
    if rng.random() < 0.7:
        world.join(life.node_id)
    return expired


def node_replace(world: World, rng: random.Random) -> bool:
    """SIGKILL of a node, and its return within the TTL: a takeover."""
    life = _any(world, rng)
    successor = world.spawn(life.node_id)
    nonce = world.nonce_of(life)
    life.kill()
    successor.go()
    world.lives[life.node_id] = successor
    return world.ended(nonce, "replaced")


def node_zombie(world: World, rng: random.Random) -> bool:
    """A node is stopped, another process takes its id over, and then it runs on."""
    life = _any(world, rng)
    successor = world.spawn(life.node_id)
    nonce = world.nonce_of(life)
    life.pause()
    successor.go()
    world.lives[life.node_id] = successor
    replaced = world.ended(nonce, "replaced")
    life.resume()
    out = until(lambda: life.has("view", kit="removed"), SECONDS) if replaced else None
    life.kill()
    return bool(out)


def node_stall(world: World, rng: random.Random) -> bool:
    """SIGSTOP of a node until its lease has expired."""
    life = _any(world, rng)
    nonce = world.nonce_of(life)
    life.pause()
    expired = world.ended(nonce, "health_check_failure")
    _hold(rng, 1.0)
    life.resume()
    return expired


def node_deaf(world: World, rng: random.Random) -> bool:
    """Nothing comes through between a node and etcd until its lease has expired."""
    life = _any(world, rng)
    nonce = world.nonce_of(life)
    life.proxy.swallow()
    expired = world.ended(nonce, "health_check_failure")
    _hold(rng, 1.0)
    life.proxy.heal()
    return expired


def cut_long(world: World, rng: random.Random) -> bool:
    """A node cannot reach etcd until its lease has expired."""
    life = _any(world, rng)
    nonce = world.nonce_of(life)
    life.proxy.cut()
    expired = world.ended(nonce, "health_check_failure")
    _hold(rng, 1.0)
    life.proxy.heal()
    return expired


def cut_short(world: World, rng: random.Random) -> bool:
    """A node's connections end, while something happens that it must hear of later."""
    life = _any(world, rng)
    began = now()
    life.proxy.cut()
    broke = until(lambda: _broke(life, began), SECONDS)
    if rng.random() < 0.5:
        _request_rebalance(world)
    life.proxy.heal()
    return bool(broke)


def compaction(world: World, rng: random.Random) -> bool:
    """What a node has not read yet is compacted away, while it is cut off and perhaps stopped."""
    life = _any(world, rng)
    began = now()
    stopped = rng.random() < 0.5
    if stopped:
        life.pause()
    life.proxy.cut()
    try:
        written = _request_rebalance(world) and _request_rebalance(world)
        compacted = written and until(lambda: _compact(world, rng), SECONDS)
    finally:
        life.proxy.heal()
        life.resume()
    return bool(compacted and until(lambda: life.has("reread", began), SECONDS))


MEMBER_FAULTS: Final[dict[str, Fault]] = {
    f.__name__: f for f in (member_kill, leader_kill, leader_stop, quorum_loss)
}
NODE_FAULTS: Final[dict[str, Fault]] = {
    f.__name__: f
    for f in (
        node_kill,
        node_replace,
        node_zombie,
        node_stall,
        node_deaf,
        cut_long,
        cut_short,
        compaction,
    )
}


def _any(world: World, rng: random.Random) -> Life:
    """A node that is a member now."""
    life = world.lives[rng.choice(sorted(world.lives))]
    world.joined(life)
    return life


def _hold(rng: random.Random, seconds: float) -> None:
    """The fault lasts for a while: how long is a part of what is tried."""
    time.sleep(rng.random() * seconds)


def _broke(life: Life, since: float) -> bool:
    return life.has("broke", since)


def _request_rebalance(world: World) -> bool:
    request = RebalanceRequest("", "chaos", SystemClock().now())
    return world.put(KEYS.rebalance, codec.encode_rebalance(request))


def _compact(world: World, rng: random.Random) -> bool:
    """Compacts what the truth has read."""
    member = rng.choice(world.members.all)
    if not member.up:
        return False
    with contextlib.suppress(OSError):
        try:
            gateway(member.etcd.endpoint, "kv/compaction", revision=world.truth.revision)
        except urllib.error.HTTPError as e:
            e.close()
            return False
        return True
    return False
