"""TLS both ways, on a real server with a certificate for another name than its address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from clusterkit.errors import StoreError, StoreUnavailableError
from clusterkit.etcd import EtcdStore, TLSFiles
from clusterkit.etcd import certificates as certificates_module
from clusterkit.etcd.certificates import Certificates
from clusterkit.ports import Put, Txn
from clusterkit.testing import EmbeddedEtcd
from tests.support.secured import (
    SERVER_NAME,
    make_authority,
    make_certificates,
    openssl,
    server_args,
)

from .support import eventually

TIMEOUT = 10.0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder)
    make_authority(folder, "other-ca")
    return folder


@pytest.fixture(scope="module")
def etcd(certificates: Path) -> Iterator[EmbeddedEtcd]:
    with EmbeddedEtcd(args=server_args(certificates)) as etcd:
        yield etcd


def files(folder: Path, ca: str = "ca", server_name: str | None = SERVER_NAME) -> TLSFiles:
    return TLSFiles(
        ca=folder / f"{ca}.pem",
        cert=folder / "client.pem",
        key=folder / "client.key",
        server_name=server_name,
    )


def test_a_client_with_all_files(etcd: EmbeddedEtcd, certificates: Path) -> None:
    with closing(EtcdStore([etcd.endpoint], tls=files(certificates))) as store:
        revision = store.txn(Txn((), (Put(b"/tls", b"v"),)), timeout=TIMEOUT).revision
        assert store.range(b"/tls", timeout=TIMEOUT).kvs[0].mod_revision == revision
        with closing(store.watch(b"/tls", revision)) as watch:
            assert next(iter(watch)).revision == revision


def test_what_does_not_fit_is_an_error_that_says_so(etcd: EmbeddedEtcd, certificates: Path) -> None:
    cases: list[tuple[TLSFiles | None, str]] = [
        (files(certificates, server_name=None), "(?i)hostname|peer name"),
        (files(certificates, ca="other-ca"), "(?i)certificate.verify.failed"),
        # The system's authorities know nothing of ours.
        (TLSFiles(server_name=SERVER_NAME), "(?i)certificate.verify.failed"),
        # Without a certificate of the client, and without TLS, the server hangs up.
        (TLSFiles(ca=certificates / "ca.pem", server_name=SERVER_NAME), "TLS"),
        (None, "TLS"),
    ]
    for tls, said in cases:
        with (
            closing(EtcdStore([etcd.endpoint], tls=tls)) as store,
            pytest.raises(StoreUnavailableError, match=said),
        ):
            store.txn(Txn((), (Put(b"/tls", b"v"),)), timeout=5)


def test_a_file_that_cannot_be_read_is_named_and_may_come_later(
    etcd: EmbeddedEtcd, certificates: Path, tmp_path: Path
) -> None:
    late = TLSFiles(
        ca=tmp_path / "late.pem",
        cert=certificates / "client.pem",
        key=certificates / "client.key",
        server_name=SERVER_NAME,
    )
    with closing(EtcdStore([etcd.endpoint], tls=late)) as store:
        with pytest.raises(StoreError, match=r"late\.pem"):
            store.range(b"/", timeout=TIMEOUT)
        with pytest.raises(StoreError, match=r"late\.pem"):
            next(iter(store.watch(b"/", 1)))
        (tmp_path / "late.pem").write_bytes((certificates / "ca.pem").read_bytes())
        store.range(b"/", timeout=TIMEOUT)


def copy_files(source: Path, target: Path, *names: str) -> None:
    for name in names:
        (target / name).write_bytes((source / name).read_bytes())


ALL_FILES = ("ca.pem", "client.pem", "client.key")


@pytest.fixture
def rotated(tmp_path: Path) -> Path:
    """Certificates by another authority, which is called the same."""
    folder = tmp_path / "rotated"
    folder.mkdir()
    make_certificates(folder)
    return folder


@pytest.fixture
def mounted(certificates: Path, tmp_path: Path) -> Path:
    """What the client is given, at first the files of ``certificates``."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    copy_files(certificates, folder, *ALL_FILES)
    return folder


def reads(store: EtcdStore) -> bool:
    try:
        store.range(b"/tls", timeout=2)
    except StoreError:
        return False
    return True


def test_files_that_change_are_used_without_a_restart(
    certificates: Path, rotated: Path, mounted: Path, tmp_path: Path
) -> None:
    """Server and client change from one authority to another that knows nothing of the first."""
    server = tmp_path / "server"
    server.mkdir()
    names = ("ca.pem", "server.pem", "server.key")
    copy_files(certificates, server, *names)
    with (
        EmbeddedEtcd(args=server_args(server)) as own,
        closing(EtcdStore([own.endpoint], tls=files(mounted))) as store,
    ):
        revision = store.txn(Txn((), (Put(b"/tls", b"v"),)), timeout=TIMEOUT).revision
        own.stop()
        copy_files(rotated, server, *names)
        own.start()
        with pytest.raises(StoreUnavailableError):
            store.range(b"/tls", timeout=2)
        copy_files(rotated, mounted, *ALL_FILES)
        eventually(lambda: reads(store))
        assert store.txn(Txn((), (Put(b"/tls", b"v"),)), timeout=TIMEOUT).succeeded
        with closing(store.watch(b"/tls", revision)) as watch:
            assert next(iter(watch)).revision == revision


@pytest.mark.parametrize("how", ["half a file", "no key yet", "gone", "no certificates"])
def test_files_that_are_no_good_are_not_used_and_named_once(
    certificates: Path,
    rotated: Path,
    mounted: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    monkeypatch.setattr(certificates_module, "CHECK_SECONDS", 0.0)
    kept = Certificates(files(mounted))
    first = kept.current()
    match how:
        case "half a file":
            whole = (rotated / "client.pem").read_bytes()
            (mounted / "client.pem").write_bytes(whole[: len(whole) // 2])
        case "no key yet":
            copy_files(rotated, mounted, "client.pem")
        case "gone":
            (mounted / "client.key").unlink()
        case "no certificates":
            (mounted / "ca.pem").write_bytes(b"")
    for _ in range(3):
        assert kept.current() is first
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(mounted) in record.getMessage()

    copy_files(rotated, mounted, *ALL_FILES)
    second = kept.current()
    assert second != first
    assert second.cert == (rotated / "client.pem").read_bytes()
    assert kept.current() is second
    # Bad ones after good ones are news again.
    (mounted / "ca.pem").write_bytes(b"")
    assert kept.current() is second
    assert len(caplog.records) == 2
    assert "PRIVATE KEY" in (mounted / "client.key").read_text()
    assert "PRIVATE KEY" not in repr(second) + caplog.text


def test_a_key_with_a_password_is_refused_and_asked_for_nowhere(mounted: Path) -> None:
    openssl(mounted, "ec", "-aes256", "-passout", "pass:x", "-in", "client.key", "-out", "locked")
    (mounted / "locked").replace(mounted / "client.key")
    with pytest.raises(StoreError, match="key has a password"):
        Certificates(files(mounted)).current()


def test_files_that_never_were_good_are_named(
    etcd: EmbeddedEtcd, certificates: Path, rotated: Path, mounted: Path
) -> None:
    copy_files(rotated, mounted, "client.key")
    with closing(EtcdStore([etcd.endpoint], tls=files(mounted))) as store:
        with pytest.raises(StoreError, match=r"client\.pem .* no certificate with its key") as e:
            store.range(b"/tls", timeout=TIMEOUT)
        assert e.value.retryable
        copy_files(certificates, mounted, "client.key")
        store.range(b"/tls", timeout=TIMEOUT)


def test_a_connection_that_is_replaced_is_closed_after_its_last_call(
    etcd: EmbeddedEtcd, certificates: Path, mounted: Path
) -> None:
    """A watch that is running goes on; when it is over, so is the old connection."""

    def connections() -> int:
        port = int(etcd.endpoint.rpartition(":")[2])
        lines = Path("/proc/self/net/tcp6").read_text() + Path("/proc/self/net/tcp").read_text()
        fields = [line.split() for line in lines.splitlines()]
        established = [field[2] for field in fields if field[3] == "01"]
        return sum(peer.endswith(f"0100007F:{port:04X}") for peer in established)

    with closing(EtcdStore([etcd.endpoint], tls=files(mounted))) as store:
        revision = store.txn(Txn((), (Put(b"/tls", b"1"),)), timeout=TIMEOUT).revision
        watch = store.watch(b"/tls", revision)
        assert next(watch).revision == revision
        eventually(lambda: connections() == 1)
        extra = (certificates / "other-ca.pem").read_bytes()
        (mounted / "ca.pem").write_bytes((certificates / "ca.pem").read_bytes() + extra)
        eventually(lambda: reads(store) and connections() == 2)
        revision = store.txn(Txn((), (Put(b"/tls", b"2"),)), timeout=TIMEOUT).revision
        assert next(watch).revision == revision
        watch.close()
        eventually(lambda: reads(store) and connections() == 1)
