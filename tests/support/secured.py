"""What makes an etcd like one in production: certificates, users and roles, relays before it."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import urllib.request
from pathlib import Path

from clusterkit.testing.embedded import find_etcd, free_port
from tests.integration.support import eventually
from tests.support.processes import pause

TIMEOUT = 10.0
SERVER_NAME = "etcd.example"
"""The name in the certificates: not the address, so that it has to be given."""

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def openssl(folder: Path, *args: str) -> None:
    subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)


def make_authority(folder: Path, name: str = "ca") -> None:
    """``NAME.pem`` and ``NAME.key``."""
    openssl(
        folder,
        *("req", "-x509", *_KEY, "-days", "2", "-subj", f"/CN={name}"),
        *("-keyout", f"{name}.key", "-out", f"{name}.pem"),
    )


def make_certificates(folder: Path, authority: str = "ca") -> None:
    """An authority, and by it ``server`` for :data:`SERVER_NAME`, and ``client``."""
    make_authority(folder, authority)
    for name, usage in (("server", "serverAuth"), ("client", "clientAuth")):
        extensions = folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName=DNS:{SERVER_NAME}\nextendedKeyUsage={usage}\n")
        openssl(
            folder,
            *("req", *_KEY, "-subj", f"/CN={name}"),
            *("-keyout", f"{name}.key", "-out", f"{name}.csr"),
        )
        openssl(
            folder,
            *("x509", "-req", "-in", f"{name}.csr"),
            *("-CA", f"{authority}.pem", "-CAkey", f"{authority}.key"),
            *("-CAcreateserial", "-days", "2", "-extfile", extensions.name),
            *("-out", f"{name}.pem"),
        )


def server_args(folder: Path) -> list[str]:
    """TLS both ways with the files of ``make_certificates``."""
    return [
        f"--cert-file={folder / 'server.pem'}",
        f"--key-file={folder / 'server.key'}",
        f"--trusted-ca-file={folder / 'ca.pem'}",
        "--client-cert-auth",
    ]


def gateway(endpoint: str, path: str, **body: object) -> None:
    """Asks etcd over its JSON gateway: no part of the code under test does it."""
    request = urllib.request.Request(f"http://{endpoint}/v3/{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        answer.read()


def make_users(endpoint: str, prefix: bytes) -> None:
    """``root``, and ``app`` whose role may read and write ``prefix`` alone; not yet switched on."""
    for user in ("root", "app"):
        gateway(endpoint, "auth/user/add", name=user, password=f"{user}-secret")
        gateway(endpoint, "auth/role/add", name=user)
        gateway(endpoint, "auth/user/grant", user=user, role=user)
    permission = {
        "permType": "READWRITE",
        "key": base64.b64encode(prefix).decode(),
        "range_end": base64.b64encode(prefix[:-1] + bytes([prefix[-1] + 1])).decode(),
    }
    gateway(endpoint, "auth/role/grant", name="app", perm=permission)


class Relay:
    """``etcd gateway``, a process that passes connections on: one more endpoint of one etcd."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = f"127.0.0.1:{free_port()}"
        self._process = subprocess.Popen(
            [
                find_etcd(),
                *("gateway", "start", f"--endpoints={endpoint}"),
                f"--listen-addr={self.endpoint}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually(self._listens)

    def _listens(self) -> bool:
        host, _, port = self.endpoint.rpartition(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0

    def pause(self) -> None:
        """Freezes it (SIGSTOP): connections stay, and nothing answers."""
        pause(self._process)

    def close(self) -> None:
        """SIGKILL; idempotent."""
        self._process.kill()
        self._process.wait()
