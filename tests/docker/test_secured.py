"""TLS both ways, users and roles, on members that fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from clusterkit import TLS, OptionsDict, StoreAuthError, StoreError, StoreUnavailableError
from clusterkit.sync import ClusterKit
from tests.integration.support import eventually, kit_threads
from tests.support.secured import make_authority, openssl

from .servers import Security, Servers
from .support import Nodes

USER, PASSWORD = "app", "app-secret"
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_SERVER_NAMES = "DNS:peer0,DNS:peer1,DNS:peer2,IP:127.0.0.1"


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """``ca``, and by it ``server``, which the members show each other as well, and ``client``."""
    folder = tmp_path / "certs"
    folder.mkdir()
    make_authority(folder)
    for name, lines in (
        ("server", f"subjectAltName={_SERVER_NAMES}\nextendedKeyUsage=serverAuth,clientAuth\n"),
        ("client", "extendedKeyUsage=clientAuth\n"),
    ):
        (folder / f"{name}.ext").write_text(lines)
        openssl(
            folder,
            *("req", *_KEY, "-subj", f"/CN={name}"),
            *("-keyout", f"{name}.key", "-out", f"{name}.csr"),
        )
        openssl(
            folder,
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem"),
        )
    return folder


@pytest.fixture
def servers(image: str, certificates: Path) -> Iterator[Servers]:
    with Servers(image, Security(certificates)) as servers:
        yield servers


@pytest.fixture
def nodes(servers: Servers, certificates: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A cluster whose user may touch its own prefix and nothing else."""
    for name, value in {
        "TLS_CA": certificates / "ca.pem",
        "TLS_CERT": certificates / "client.pem",
        "TLS_KEY": certificates / "client.key",
        "USERNAME": USER,
        "PASSWORD": PASSWORD,
    }.items():
        monkeypatch.setenv(f"CLUSTERKIT_{name}", str(value))
    with closing(Nodes(servers)) as nodes:
        servers.enable_auth(USER, PASSWORD, f"{nodes.prefix}/")
        yield nodes
    eventually(lambda: not kit_threads())


def test_members_that_die_where_tokens_run_out(servers: Servers, nodes: Nodes) -> None:
    nodes.kits_on(*servers.all, lease_ttl=4)
    for server in servers.all:
        before = nodes.restarts()
        servers.kill(server)
        servers.leader(but=server)
        nodes.churn(f"while-{server.peer}-is-down")
        assert nodes.restarts() > before
        servers.start(server)
        nodes.settle()
    assert any("invalid auth token" in servers.log(server) for server in servers.all)
    turns = nodes.check(servers.history(nodes.prefix))
    assert not [turn for _, turn, _ in turns if turn.startswith("node_leave/kit-")]


def test_who_may_not(servers: Servers, nodes: Nodes, certificates: Path) -> None:
    (good,) = nodes.kits_on(servers.all[0])
    files = {name: str(certificates / name) for name in ("ca.pem", "client.pem", "client.key")}
    tls = TLS(ca=files["ca.pem"], cert=files["client.pem"], key=files["client.key"])
    common: OptionsDict = {
        "endpoints": [server.endpoint for server in servers.all],
        "prefix": nodes.prefix,
        "cluster": "c",
        "partitions": 64,
        "replication_factor": 2,
        "node_id": "stranger",
        "address": "stranger.test:8000",
        "connect_timeout": 5,
        "environ": {},
    }
    user: OptionsDict = {"username": USER, "password": PASSWORD}
    refused: list[tuple[OptionsDict, type[StoreError]]] = [
        ({"tls": tls, **user, "prefix": f"{nodes.prefix}-of-others"}, StoreAuthError),
        ({"tls": tls, "username": USER, "password": "wrong"}, StoreAuthError),
        ({"tls": tls}, StoreAuthError),
        (user, StoreUnavailableError),
    ]
    for options, error in refused:
        given: OptionsDict = {**common, **options}
        with pytest.raises(error):
            ClusterKit(**given).start()
    allowed: OptionsDict = {**common, "tls": tls, **user}
    with ClusterKit(**allowed):
        eventually(good.saw("node_join", "stranger"))
