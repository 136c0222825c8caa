"""TLS both ways, on a real server with a certificate for another name than its address."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from clusterkit.errors import StoreError, StoreUnavailableError
from clusterkit.etcd import EtcdStore, TLSFiles
from clusterkit.ports import Put, Txn
from clusterkit.testing import EmbeddedEtcd

TIMEOUT = 10.0
SERVER_NAME = "etcd.example"


def openssl(folder: Path, *args: str) -> None:
    subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)


def make_certificates(folder: Path) -> None:
    """``ca``, and by it ``server`` for :data:`SERVER_NAME` and ``client``; ``other-ca`` beside."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for ca in ("ca", "other-ca"):
        openssl(
            folder,
            *("req", "-x509", *key, "-days", "2", "-subj", f"/CN={ca}"),
            *("-keyout", f"{ca}.key", "-out", f"{ca}.pem"),
        )
    for name, usage in (("server", "serverAuth"), ("client", "clientAuth")):
        extensions = folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName=DNS:{SERVER_NAME}\nextendedKeyUsage={usage}\n")
        openssl(
            folder,
            *("req", *key, "-subj", f"/CN={name}"),
            *("-keyout", f"{name}.key", "-out", f"{name}.csr"),
        )
        openssl(
            folder,
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-days", "2", "-extfile", extensions.name),
            *("-out", f"{name}.pem"),
        )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder)
    return folder


@pytest.fixture(scope="module")
def etcd(certificates: Path) -> Iterator[EmbeddedEtcd]:
    args = [
        f"--cert-file={certificates / 'server.pem'}",
        f"--key-file={certificates / 'server.key'}",
        f"--trusted-ca-file={certificates / 'ca.pem'}",
        "--client-cert-auth",
    ]
    with EmbeddedEtcd(args=args) as etcd:
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
