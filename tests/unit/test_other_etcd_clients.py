"""ClusterKit and another etcd client in one process: neither breaks the other, in any order.

Each case runs in a process of its own: descriptors are registered for the life of a process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

OURS = """
from clusterkit.etcd import EtcdStore
from clusterkit.etcd._pb import rpc_pb2 as ours
from clusterkit.etcd.channels import Connection
assert ours.RangeRequest(key=b"k").SerializeToString() == b"\\n\\x01k"
Connection("127.0.0.1", 1, [], None).close()
"""

# A client that registers the names that generated clients have, as they all do.
OTHER_CLIENT = """
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

def register(name, package, message, *imports):
    file = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3")
    file.dependency.extend(imports)
    field = file.message_type.add(name=message).field.add(name="key", number=1)
    field.type, field.label = field.TYPE_BYTES, field.LABEL_OPTIONAL
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    found = descriptor_pool.Default().FindMessageTypeByName(f"{package}.{message}")
    return message_factory.GetMessageClass(found)

KeyValue = register("kv.proto", "mvccpb", "KeyValue")
RangeRequest = register("rpc.proto", "etcdserverpb", "RangeRequest", "kv.proto")
"""

USE_OTHER = """
import other_client
assert other_client.RangeRequest(key=b"k").SerializeToString() == b"\\n\\x01k"
"""

# The user's own use of etcd3, up to the wire: it builds a request and finds nobody there.
USE_ETCD3 = """
import etcd3
client = etcd3.client(host="127.0.0.1", port=1, timeout=5)
try:
    client.get("k")
except etcd3.exceptions.ConnectionFailedError:
    pass
else:
    raise AssertionError("somebody listens on port 1")
request = etcd3.etcdrpc.RangeRequest(key=b"k")
assert request.SerializeToString() == b"\\n\\x01k"
client.close()
"""

# What a user may do to have etcd3 on a new protobuf: their own messages stand in for etcd3's.
USERS_OWN_MESSAGES = """
import sys, types
theirs = types.ModuleType("etcd3.etcdrpc")
theirs.__path__ = []
class Compare: EQUAL, GREATER, LESS, NOT_EQUAL = range(4)
theirs.Compare = Compare
sys.modules["etcd3.etcdrpc"] = theirs
import etcd3
"""

THEIRS_STAYS = """
assert sys.modules["etcd3"] is etcd3
assert etcd3.etcdrpc is theirs is sys.modules["etcd3.etcdrpc"]
"""


def run(folder: Path, *parts: str, **variables: str) -> None:
    (folder / "other_client.py").write_text(textwrap.dedent(OTHER_CLIENT))
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(parts)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("parts", [(OURS, USE_OTHER), (USE_OTHER, OURS)], ids=["before", "after"])
def test_a_client_with_the_usual_descriptors(tmp_path: Path, parts: tuple[str, ...]) -> None:
    run(tmp_path, *parts)


def test_etcd3_works_for_the_user_after_us(tmp_path: Path) -> None:
    run(tmp_path, OURS, USE_ETCD3, OURS)


def test_etcd3_works_for_the_user_after_us_and_beside_another_client(tmp_path: Path) -> None:
    run(tmp_path, USE_OTHER, OURS, USE_ETCD3)


@pytest.mark.parametrize(
    "parts", [(OURS, USE_ETCD3), (USE_ETCD3, OURS, USE_ETCD3)], ids=["before", "after"]
)
def test_etcd3_stays_the_users_own_where_its_messages_load(
    tmp_path: Path, parts: tuple[str, ...]
) -> None:
    original = "\nassert etcd3.etcdrpc.DefragmentRequest().SerializeToString() == b''\n"
    run(tmp_path, *parts, original, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python")


def test_etcd3_on_messages_of_the_user_before_us(tmp_path: Path) -> None:
    run(tmp_path, USERS_OWN_MESSAGES, OURS, THEIRS_STAYS)


def test_etcd3_on_messages_of_the_user_after_us(tmp_path: Path) -> None:
    run(tmp_path, OURS, USERS_OWN_MESSAGES, THEIRS_STAYS, OURS)


def test_our_descriptors_have_private_names() -> None:
    from clusterkit.etcd._pb import rpc_pb2

    assert rpc_pb2.DESCRIPTOR.name == "clusterkit_etcd/rpc.proto"
    assert rpc_pb2.DESCRIPTOR.package == "clusterkit.etcd.pb"
