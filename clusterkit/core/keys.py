"""Where things are kept in etcd: the only place that builds or reads a key.

Views watch ``{prefix}/{cluster}/c/`` and nothing else; the application's data, locks and elections
have a place of their own beside it, so that their traffic does not reach every node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal[
    "config", "membership", "rebalance", "nodes", "history", "applied", "alive", "cordons"
]


@dataclass(frozen=True, slots=True)
class Parsed:
    """A key of ours: what it is, and of which node (and incarnation), empty if of none."""

    kind: Kind
    node_id: str = ""
    incarnation: str = ""


def range_end(prefix: bytes) -> bytes:
    """The first key after all those that begin with ``prefix`` (etcd's convention for a range)."""
    cut = prefix.rstrip(b"\xff")
    return cut[:-1] + bytes([cut[-1] + 1]) if cut else b"\x00"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one cluster.

    Attributes:
        root: ``{prefix}/{cluster}/c/``, with the slash.
    """

    root: bytes

    @classmethod
    def of(cls, prefix: str, cluster: str) -> Keys:
        """The keys of the cluster ``cluster`` under ``prefix``, such as ``/clusterkit``."""
        return cls(f"{prefix}/{cluster}/c/".encode())

    @property
    def config(self) -> bytes:
        return self.root + b"config"

    @property
    def membership(self) -> bytes:
        return self.root + b"membership"

    @property
    def rebalance(self) -> bytes:
        return self.root + b"rebalance"

    @property
    def nodes(self) -> bytes:
        return self.root + b"nodes/"

    @property
    def histories(self) -> bytes:
        return self.root + b"history/"

    def cordon(self, node_id: str) -> bytes:
        return self.root + b"cordons/" + node_id.encode()

    def node(self, node_id: str) -> bytes:
        return self.nodes + node_id.encode()

    def history(self, node_id: str) -> bytes:
        return self.histories + node_id.encode()

    def applied(self, node_id: str) -> bytes:
        return self.root + b"applied/" + node_id.encode()

    def alive(self, node_id: str, incarnation: str) -> bytes:
        return self.root + b"alive/" + node_id.encode() + b"/" + incarnation.encode()

    def parse(self, key: bytes) -> Parsed | None:
        """What a key under the root is; None for a key that is not ours."""
        if not key.startswith(self.root):
            return None
        try:
            kind, *rest = key[len(self.root) :].decode().split("/")
        except UnicodeDecodeError:
            return None
        if not all(rest):
            return None
        match kind, rest:
            case "config" | "membership" | "rebalance", []:
                return Parsed(kind)
            case "nodes" | "history" | "applied" | "cordons", [node_id]:
                return Parsed(kind, node_id)
            case "alive", [node_id, incarnation]:
                return Parsed("alive", node_id, incarnation)
        return None
