"""Turns etcd's authentication on, and makes a user that may touch one prefix and nothing else.

Run as often as you like: what is there already is set to what it should be. It is told by the
variables that the nodes have too, and ETCD_ROOT_PASSWORD. It speaks etcd's JSON, not gRPC: so it
needs the standard library alone.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from typing import Any

TIMEOUT_SECONDS = 10.0


class RefusedError(Exception):
    """etcd has answered, and refused."""


class Etcd:
    """The one of some endpoints that answers."""

    def __init__(self, endpoints: list[str], ca: str | None) -> None:
        self._context = None if ca is None else ssl.create_default_context(cafile=ca)
        scheme = "http" if ca is None else "https"
        self._urls = [f"{scheme}://{endpoint}" for endpoint in endpoints]
        self.token: str | None = None

    def ask(self, path: str, **fields: object) -> dict[str, Any]:
        """One answer.

        Raises:
            RefusedError: etcd says no.
            OSError: No endpoint answers.
        """
        headers = {} if self.token is None else {"Authorization": self.token}
        problem: OSError | None = None
        for url in self._urls:
            request = urllib.request.Request(
                f"{url}/v3/auth/{path}", json.dumps(fields).encode(), headers
            )
            try:
                with urllib.request.urlopen(
                    request, timeout=TIMEOUT_SECONDS, context=self._context
                ) as answer:
                    found: dict[str, Any] = json.load(answer)
                    return found
            except urllib.error.HTTPError as error:
                raise RefusedError(error.read().decode()) from None
            except OSError as error:
                problem = error
        raise problem or OSError("there are no endpoints")

    def ensure(self, path: str, **fields: object) -> bool:
        """Makes something; whether it was not there yet."""
        try:
            self.ask(path, **fields)
        except RefusedError as error:
            if "already exists" not in str(error):
                raise
            return False
        return True

    def log_in(self, name: str, password: str) -> None:
        """As this user from now on, if authentication is on."""
        try:
            self.token = self.ask("authenticate", name=name, password=password)["token"]
        except RefusedError as error:
            if "authentication is not enabled" not in str(error):
                raise

    def ensure_user(self, name: str, password: str) -> None:
        """A user with this password, and with the role of the same name."""
        self.ensure("role/add", name=name)
        if not self.ensure("user/add", name=name, password=password):
            self.ask("user/changepw", name=name, password=password)
        self.ask("user/grant", user=name, role=name)

    def allow_only(self, role: str, prefix: str) -> None:
        """Lets a role read and write under a prefix, and nowhere else."""
        start = prefix.encode()
        end = start[:-1] + bytes([start[-1] + 1])  # the first key that does not begin so
        wanted = {"key": _text(start), "range_end": _text(end)}
        for found in self.ask("role/get", role=role).get("perm", ()):
            where = {"key": found["key"], "range_end": found.get("range_end", "")}
            if where != wanted:
                self.ask("role/revoke", role=role, **where)
        self.ask("role/grant", name=role, perm={"permType": "READWRITE", **wanted})


def _text(key: bytes) -> str:
    return base64.b64encode(key).decode()


def main() -> None:
    environ = os.environ
    root_password = environ["ETCD_ROOT_PASSWORD"]
    user = environ["CLUSTERKIT_USERNAME"]
    prefix = environ["CLUSTERKIT_PREFIX"]
    if user == "root":
        sys.exit("CLUSTERKIT_USERNAME is root: a node needs a user that may do less")
    etcd = Etcd(environ["CLUSTERKIT_ENDPOINTS"].split(","), environ.get("CLUSTERKIT_TLS_CA"))
    etcd.log_in("root", root_password)
    if etcd.token is None:
        etcd.ensure_user("root", root_password)
    etcd.ensure_user(user, environ["CLUSTERKIT_PASSWORD"])
    etcd.allow_only(user, f"{prefix}/")  # with the slash: /quickstart-other is somebody else's
    etcd.ask("enable")
    print(f"authentication is on, and {user} may read and write under {prefix}/")


if __name__ == "__main__":
    try:
        main()
    except (OSError, RefusedError) as error:
        sys.exit(f"etcd_user: {error}")
