"""What a running cluster does when its etcd is restored from a backup: it goes back in time."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from clusterkit import FencedEvent, KitState, NodeRejoinEvent, UnfencedEvent
from clusterkit.testing import EmbeddedEtcd

from .support import Cluster, Member, Recorder, agree, eventually, kit_threads


class Restorable:
    """An etcd whose data can be put back to what they were."""

    def __init__(self, directory: Path) -> None:
        self._data, self._backup = directory / "etcd", directory / "backup"
        self.etcd = EmbeddedEtcd(self._data)

    def back_up(self) -> None:
        self.etcd.stop()
        shutil.copytree(self._data, self._backup)
        self.etcd.start()

    def restore(self) -> None:
        self.etcd.kill()
        shutil.rmtree(self._data)
        shutil.copytree(self._backup, self._data)
        self.etcd.start()


@pytest.fixture
def restorable(tmp_path: Path) -> Iterator[Restorable]:
    made = Restorable(tmp_path)
    with made.etcd:
        yield made


@pytest.fixture
def old_cluster(restorable: Restorable) -> Iterator[Cluster]:
    """A cluster whose leases outlive all that happens here, so that only the data tell of it."""
    with closing(Cluster(restorable.etcd.endpoint)) as cluster:
        cluster.defaults["lease_ttl"] = 60
        cluster.defaults["connect_timeout"] = 2
        yield cluster
    eventually(lambda: not kit_threads())


def time_goes_by(cluster: Cluster, member: Member) -> int:
    """Puts etcd well beyond its backup; the newest revision."""
    for i in range(50):
        cluster.put(b"/elsewhere", b"%d" % i)
    return member.rebalance()


def are_joined(members: list[Member], before: int) -> Callable[[], bool]:
    """Whether they follow the restored etcd, and all of them are members there."""
    return lambda: all(
        m.kit.state is KitState.JOINED
        and m.kit.cluster.revision < before
        and set(m.kit.cluster.nodes) == {member.kit.node_id for member in members}
        for m in members
    )


def test_it_is_noticed_at_once_and_told_of(
    restorable: Restorable, old_cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    told_a, told_b = Recorder(), Recorder()
    a = old_cluster.node("a", hooks=told_a)
    agree([a])
    restorable.back_up()
    b = old_cluster.node("b", hooks=told_b)
    before = time_goes_by(old_cluster, a)
    agree([a, b])

    restorable.restore()
    eventually(are_joined([a, b], before))

    agree([a, b])
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(errors) == 2
    assert all(error.startswith("etcd went back from revision ") for error in errors)
    assert a.kit.partitions() == b.kit.partitions()
    # The stay of a is in the backup, so it goes on; that of b is not, so b comes back.
    assert not told_a.of(FencedEvent)
    assert len(told_b.of(FencedEvent)) == len(told_b.of(UnfencedEvent)) == 1
    # What is given out from now on arrives, and is known to have arrived.
    c = old_cluster.node("c")
    agree([a, b, c])
    for member in (a, b, c):
        member.wait_converged()


def test_who_is_newer_than_the_backup_is_not_put_out_by_its_own_past(
    restorable: Restorable, old_cluster: Cluster
) -> None:
    a = old_cluster.node("a")
    earlier = old_cluster.node("b")
    agree([a, earlier])
    restorable.back_up()
    earlier.stop()
    recorder = Recorder()
    b = old_cluster.node("b", hooks=recorder)
    before = time_goes_by(old_cluster, a)
    agree([a, b])
    incarnation = b.kit.cluster.nodes["b"].incarnation
    recorder.clear()

    restorable.restore()
    eventually(are_joined([a, b], before))

    agree([a, b])
    assert a.kit.cluster.nodes["b"].incarnation == incarnation
    assert [e.node.incarnation for e in recorder.of(NodeRejoinEvent)][-1] == incarnation
