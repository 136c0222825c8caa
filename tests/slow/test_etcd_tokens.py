"""Kits on an etcd whose tokens live for seconds: many lifetimes, and nobody is fenced."""

from __future__ import annotations

import base64
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from clusterkit import Hooks, KitState
from clusterkit.sync import ClusterKit
from clusterkit.testing import EmbeddedEtcd
from tests.integration.support import eventually
from tests.support.secured import TIMEOUT, gateway, make_users, openssl

PREFIX = b"/clusterkit/"
OVER_SECONDS = 3.5
"""After this a token of one or two seconds that nobody has used is certainly over."""


@pytest.fixture(params=["simple", "jwt"])
def etcd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmbeddedEtcd]:
    """Simple tokens live on with each use and are forgotten after; a JWT ends when it ends."""
    args = ["--bcrypt-cost=4", "--auth-token-ttl=1"]
    if request.param == "jwt":
        openssl(tmp_path, "genrsa", "-out", "key", "2048")
        openssl(tmp_path, "rsa", "-in", "key", "-pubout", "-out", "pub")
        keys = f"pub-key={tmp_path / 'pub'},priv-key={tmp_path / 'key'}"
        args = ["--bcrypt-cost=4", f"--auth-token=jwt,{keys},sign-method=RS256,ttl=2s"]
    with EmbeddedEtcd(args=args) as etcd:
        make_users(etcd.endpoint, PREFIX)
        gateway(etcd.endpoint, "auth/enable")
        yield etcd


def ask(endpoint: str, path: str, token: str = "", **body: object) -> dict[str, str]:
    url, data = f"http://{endpoint}/v3/{path}", json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Authorization": token})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        found: dict[str, str] = json.load(answer)
        return found


def read_with(endpoint: str, token: str) -> None:
    ask(endpoint, "kv/range", token, key=base64.b64encode(PREFIX).decode())


def all_see(kits: Sequence[ClusterKit], revision: int) -> None:
    eventually(lambda: all(kit.stats().revision >= revision for kit in kits))


def test_kits_outlive_their_tokens(etcd: EmbeddedEtcd) -> None:
    fenced: list[object] = []
    with ExitStack() as exits:
        kits = []
        for name in ("a", "b"):
            hooks = Hooks()
            hooks.on_fenced(fenced.append)
            kit = ClusterKit(
                endpoints=etcd.endpoint,
                username="app",
                password="app-secret",
                node_id=name,
                address=f"{name}:1",
                lease_ttl=2,
                settle_time=0.05,
                hooks=hooks,
                environ={},
            )
            kits.append(exits.enter_context(kit))
        for _ in range(3):
            given = ask(etcd.endpoint, "auth/authenticate", name="app", password="app-secret")[
                "token"
            ]
            read_with(etcd.endpoint, given)
            threading.Event().wait(OVER_SECONDS)
            # A token as old as those of the kits at the last round is no good any more ...
            with pytest.raises(urllib.error.HTTPError):
                read_with(etcd.endpoint, given)
            # ... and yet they write, and hear of what is written, on the watches that they have.
            for kit in kits:
                all_see(kits, kit.rebalance("a write"))
        assert [kit.state for kit in kits] == [KitState.JOINED] * 2
        assert not fenced

        # A watch that has to be opened again gets a new token, and the server knows no old one.
        watches = [kit.stats().watch_restarts for kit in kits]
        etcd.kill()
        etcd.start()
        eventually(
            lambda: all(k.stats().watch_restarts > w for k, w in zip(kits, watches, strict=True))
        )
        eventually(lambda: all(kit.state is KitState.JOINED for kit in kits))
        all_see(kits, kits[0].rebalance("after the restart"))
