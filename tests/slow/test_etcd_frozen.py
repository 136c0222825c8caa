"""Servers that freeze (SIGSTOP): found within 15 s by calls, by the keep-alive and by idle watches.

Relays stand for the members of a cluster: processes of their own, one etcd behind them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from clusterkit import KitState
from clusterkit.errors import StoreError, StoreUnavailableError
from clusterkit.etcd import EtcdStore
from clusterkit.ports import Put, Txn
from clusterkit.testing import EmbeddedEtcd
from tests.integration.support import Cluster, agree, eventually
from tests.support.secured import TIMEOUT, Relay

FOUND_SECONDS = 15.0


@pytest.fixture
def relays(own_etcd: EmbeddedEtcd) -> Iterator[list[Relay]]:
    with ExitStack() as exits:
        yield [exits.enter_context(closing(Relay(own_etcd.endpoint))) for _ in range(3)]


@pytest.fixture
def own_etcd() -> Iterator[EmbeddedEtcd]:
    with EmbeddedEtcd() as etcd:
        yield etcd


def test_an_idle_watch_finds_its_server_frozen(
    relays: list[Relay], record_property: object
) -> None:
    with closing(EtcdStore([relays[0].endpoint])) as store:
        revision = store.txn(Txn((), (Put(b"/w", b"v"),)), timeout=TIMEOUT).revision
        watch = store.watch(b"/w", revision)
        assert next(watch).revision == revision
        ended: list[StoreError] = []

        def follow() -> None:
            try:
                next(watch)
            except StoreError as e:
                ended.append(e)

        thread = threading.Thread(target=follow)
        thread.start()
        # The worst moment: no ping is under way, and the next one is far.
        threading.Event().wait(1.0)
        begin = time.monotonic()
        relays[0].pause()
        thread.join(2 * FOUND_SECONDS)
        seconds = time.monotonic() - begin
        print(f"an idle watch on a frozen server ended after {seconds:.1f} s")
        assert seconds < FOUND_SECONDS
        assert isinstance(ended[0], StoreUnavailableError)


def test_a_kit_goes_on_with_one_server_dead_and_one_frozen(
    own_etcd: EmbeddedEtcd, relays: list[Relay]
) -> None:
    """By host name. Its lease is never in doubt, and its watch is soon on the server that lives."""
    dead, frozen, alive = relays
    endpoints = ",".join(r.endpoint.replace("127.0.0.1", "localhost") for r in relays)
    with closing(Cluster(own_etcd.endpoint)) as cluster:
        fenced: list[object] = []
        member = cluster.member("a", endpoints=endpoints)
        member.kit.on_fenced(fenced.append)
        member.start()
        other = cluster.node("b", endpoints=alive.endpoint)
        agree([member, other])
        begin = time.monotonic()
        dead.close()
        eventually(lambda: member.kit.stats().watch_restarts == 1)
        # Now everything is on the second one.
        revision = other.rebalance("seen over the second")
        eventually(lambda: member.kit.stats().revision >= revision)
        print(f"a kit whose server died saw a change after {time.monotonic() - begin:.1f} s")

        # The worst moment: no ping is under way, and the next one is far.
        threading.Event().wait(1.0)
        begin = time.monotonic()
        frozen.pause()
        revision = other.rebalance("seen by everyone")
        eventually(lambda: member.kit.stats().revision >= revision, 2 * FOUND_SECONDS)
        seconds = time.monotonic() - begin
        print(f"a kit whose server froze saw a change after {seconds:.1f} s")
        assert seconds < FOUND_SECONDS
        assert member.kit.state is KitState.JOINED
        assert not fenced


def test_calls_and_renewals_go_to_the_next_server_in_time(
    own_etcd: EmbeddedEtcd, relays: list[Relay]
) -> None:
    with closing(EtcdStore([r.endpoint for r in relays])) as store:
        lease = store.grant(10, timeout=TIMEOUT).id
        relays[0].pause()
        begin = time.monotonic()
        assert store.keep_alive(lease, timeout=10 / 3) == 10
        print(f"a renewal took {time.monotonic() - begin:.1f} s")
        relays[1].close()
        begin = time.monotonic()
        assert store.range(b"/", timeout=3).revision
        assert store.txn(Txn((), (Put(b"/w", b"v"),)), timeout=3).succeeded
        print(f"a read and a write took {time.monotonic() - begin:.1f} s")
