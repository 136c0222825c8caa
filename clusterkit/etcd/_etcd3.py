"""Loads etcd3 0.12, a copy of our own, over our messages and stubs.

etcd3's generated modules do not load on any protobuf that we support, so it is given ours as
``etcd3.etcdrpc``. And what the user does with etcd3 in the same process must not touch us, nor we
it. So the copy is private: its modules are taken out of ``sys.modules`` again when it is loaded,
and what stood there before is put back.

* The user imported etcd3 before: they keep theirs, whatever messages it stands on.
* The user imports it later: they get one of their own. Where the original messages cannot load
  (every protobuf runtime that we support, but for the slow one in pure Python) ours are left in
  their place, so that ``import etcd3``, which would fail, works for what ``_stubs`` holds.

A thread that imports etcd3 for the first time in the very milliseconds of our loading may see our
copy. It works; it only is shared.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from google.protobuf.internal import api_implementation

from . import _stubs
from ._pb import rpc_pb2

_MESSAGE_MODULES = ("rpc_pb2", "rpc_pb2_grpc", "kv_pb2", "auth_pb2")


def _messages() -> dict[str, ModuleType]:
    """Our messages and stubs, as the modules that etcd3 would import."""
    package = ModuleType("etcd3.etcdrpc", "ClusterKit's messages and stubs for etcd3.")
    vars(package).update(
        (name, value) for name, value in vars(rpc_pb2).items() if not name.startswith("_")
    )
    vars(package).update((name, getattr(_stubs, name)) for name in _stubs.__all__)
    # A package has a path; an empty one keeps the originals from being found beside it.
    package.__path__ = []
    # One module for all: whoever asks for etcd3.etcdrpc.kv_pb2 finds its messages there too.
    return {
        "etcd3.etcdrpc": package,
        **{f"etcd3.etcdrpc.{name}": package for name in _MESSAGE_MODULES},
    }


def _is_etcd3(name: str) -> bool:
    return name == "etcd3" or name.startswith("etcd3.")


def _load() -> tuple[ModuleType, ModuleType]:
    theirs = {name: module for name, module in sys.modules.items() if _is_etcd3(name)}
    messages = _messages()
    for name in theirs:
        del sys.modules[name]
    sys.modules.update(messages)
    try:
        client = importlib.import_module("etcd3.client")
        transactions = importlib.import_module("etcd3.transactions")
    finally:
        for name in [name for name in sys.modules if _is_etcd3(name)]:
            del sys.modules[name]
        sys.modules.update(theirs)
    if not theirs and api_implementation.Type() != "python":
        sys.modules.update(messages)
    return client, transactions


_client, _transactions = _load()

# etcd3 has no types.
transactions: Any = _transactions
Etcd3Client: Any = _client.Etcd3Client
Etcd3Exception: Any = vars(_client)["exceptions"].Etcd3Exception
