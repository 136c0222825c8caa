"""The names of the options and what they mean, apart from what checks their values.

A kit can be made, and told that it has no such option, before anything that checks is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

from ._option_errors import ARGUMENT, refusal
from ._variables import nearest

if TYPE_CHECKING:
    from ._tls import TLS
    from .hooks import Duration, Hooks
    from .metrics import Metrics


class OptionsDict(TypedDict, total=False):
    """The keyword arguments of a kit. Each may be left out; numbers of time are seconds.

    Attributes:
        cluster: The name of the cluster, ``default`` unless set. Clusters share nothing.
        prefix: Where in etcd all of ClusterKit's keys lie, ``/clusterkit`` unless set.
        tls: How to talk TLS to etcd; None, the default, for plain text.
        endpoints: etcd's addresses, a text with commas or a sequence; ``127.0.0.1:2379``.
        username: The etcd user, together with ``password``; None for no authentication.
        password: Its password. It appears in no text that ClusterKit makes.
        node_id: This node's stable name, unique in the cluster; the host name unless set. Any
            printable Unicode without a slash; compared byte for byte, so never normalised.
        address: ``host:port`` at which peers reach this node. Whoever joins must give it.
        services: Further addresses of this node by name, such as ``{"http": "10.0.0.1:80"}``.
        zone: The failure zone that this node is in.
        weight: This node's share of partitions relative to others; 100. 0 holds nothing.
        labels: The application's own facts about this node.
        partitions: How many partitions the cluster has; 64. Fixed when the cluster is made.
        replication_factor: How many nodes hold each partition; 3.
        balance: No node holds more than so many times its fair share, such as 1.25, rounded up;
            None, the default, for no bound. Taken when the cluster is made, and changed by
            ``clusterkit settings``, as ``replication_factor`` and ``balance_primaries`` are.
        balance_primaries: Whether primaries are evened out among the holders; False.
        key_hash: How keys become partitions: ``crc32``, or ``blake2b`` where an attacker chooses
            keys. Fixed when the cluster is made.
        ownership: ``assigned``; ``exclusive`` is not available in this release.
        storage: ``memory``: a new process begins without data; or ``disk``: it still has what the
            one before it had, and a restart within ``restart_grace`` moves nothing.
        on_conflict: When another process has the node id: ``takeover``, ``wait`` or ``fail``.
        lease_ttl: After how long without a sign of life a node has left; whole seconds, 10.
        fence_margin: How long before its lease may end a node stops acting as an owner. None, the
            default, is a tenth of ``lease_ttl``, and no less than half a second.
        restart_grace: How long a node that shows no sign of life keeps its partitions, after its
            lease has ended; 0. Until then it is unhealthy; nobody serves what it is the primary of.
        settle_time: Changes within this time are one rebalance; 0.25.
        hook_timeout: The time a hook has, 30; None for no limit.
        migration_timeout: The time a partition-change hook has, 600; None for no limit.
        slow_hook_after: After how long a hook is logged as slow; 5.
        max_concurrent_hooks: How many hooks run at once, 50; two places are kept for urgent news.
        max_moves_in_flight: How many partitions this node fetches at once; None, the default, for
            as many as hooks may run. Those with the fewest live copies come first.
        connect_timeout: How long ``start()`` looks for an etcd that answers, and any later call
            waits for its answer; 5. A connection on which etcd does not answer a ping within three
            fifths of that, but 3 s at least, is given up.
        drain_timeout: The longest that ``stop()`` waits for what is under way; 30.
        admin: Where this node serves HTTP about itself, ``127.0.0.1:8080``; without a host
            (``:8080``) on the loopback address. None, the default, for nowhere.
        ready_when_fenced: Whether a node that cannot prove its lease, as when etcd is down, stays
            ready for traffic that needs no ownership; False. See ``readiness()``.
        hooks: A registry whose hooks the kit takes over.
        metrics: Where measurements go; see ``clusterkit.Metrics``.
        environ: Read instead of ``os.environ``.
    """

    cluster: str
    prefix: str
    tls: TLS | None
    endpoints: str | Sequence[str]
    username: str | None
    password: str | None
    node_id: str
    address: str | None
    services: Mapping[str, str]
    zone: str | None
    weight: int
    labels: Mapping[str, str]
    partitions: int
    replication_factor: int
    balance: float | None
    balance_primaries: bool
    key_hash: Literal["crc32", "blake2b"]
    ownership: Literal["assigned", "exclusive"]
    storage: Literal["memory", "disk"]
    on_conflict: Literal["takeover", "wait", "fail"]
    lease_ttl: Duration
    fence_margin: Duration | None
    restart_grace: Duration
    settle_time: Duration
    hook_timeout: Duration | None
    migration_timeout: Duration | None
    slow_hook_after: Duration
    max_concurrent_hooks: int
    max_moves_in_flight: int | None
    connect_timeout: Duration
    drain_timeout: Duration
    admin: str | None
    ready_when_fenced: bool
    hooks: Hooks
    metrics: Metrics | None
    environ: Mapping[str, str]


def refuse_unknown(given: Mapping[str, object]) -> None:
    """Lets options pass whose names are all known.

    Raises:
        OptionError: There is no option of a name.
    """
    known = OptionsDict.__annotations__
    unknown = [name for name in given if name not in known]
    if not unknown:
        return
    name, *others = unknown
    near = nearest(name.lower(), known)
    raise refusal(
        name,
        given[name],
        ARGUMENT,
        "there is no option of that name",
        f"Did you mean {near}?" if near else f"The options are {', '.join(known)}.",
        others,
        secret=True,  # it may be a password under a misspelt name
    )
