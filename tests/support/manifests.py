"""The manifests of ``deploy/kubernetes``, as ``kubectl kustomize`` puts them together."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import pytest

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
CERTIFICATES = KUBERNETES / "etcd" / "certificates.sh"
USER_SCRIPT = KUBERNETES / "quickstart" / "etcd_user.py"
FIELDS = {
    "metadata.name": "quickstart-0",
    "metadata.namespace": "trial",
    "status.podIP": "10.1.2.3",
}
"""What a pod's own fields are, unless a test says otherwise."""

ETCDS = ["etcd-dev", "etcd", "etcd-cert-manager"]
NODES = ["quickstart-dev", "quickstart"]

Document: TypeAlias = dict[str, Any]


def load(text: str) -> list[Document]:
    import yaml  # here, because `make compat` collects this file where it is not installed

    return [d for d in yaml.safe_load_all(text) if d is not None]


def kubectl() -> str:
    """The program; where there is none, one line says why the test is not run, or fails in CI."""
    found = os.environ.get("TEST_KUBECTL") or shutil.which("kubectl")
    if found is None:
        why = "no kubectl builds the kustomizations: tools/kubectl.sh build/kubectl gets one"
        raise pytest.fail.Exception(why) if os.environ.get("CI") else pytest.skip.Exception(why)
    return found


@cache
def built(name: str) -> str:
    done = subprocess.run(
        [kubectl(), "kustomize", KUBERNETES / name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr, done.stderr
    return done.stdout


def resources(name: str) -> list[Document]:
    """What ``kubectl apply -k`` sends."""
    return load(built(name))


def every() -> list[Document]:
    return [document for name in (*ETCDS, *NODES) for document in resources(name)]


def all_of(name: str, kind: str) -> list[Document]:
    return [d for d in resources(name) if d["kind"] == kind]


def only(name: str, kind: str) -> Document:
    (found,) = all_of(name, kind)
    return found


def pod(name: str, kind: str = "StatefulSet") -> Document:
    spec: Document = only(name, kind)["spec"]["template"]["spec"]
    return spec


def container(name: str, kind: str = "StatefulSet") -> Document:
    (found,) = pod(name, kind)["containers"]
    assert isinstance(found, dict)
    return found


def ports(name: str) -> dict[str, int]:
    return {p["name"]: p["containerPort"] for p in container(name)["ports"]}


def arguments(name: str, member: int) -> dict[str, str]:
    """Those of an etcd, as Kubernetes would fill them in."""
    command = [a.replace("$(POD_NAME)", f"etcd-{member}") for a in container(name)["command"]]
    assert command[0] == "/usr/local/bin/etcd"
    assert not any("$(" in argument for argument in command)
    found = [argument.removeprefix("--").partition("=") for argument in command[1:]]
    assert len({key for key, _, _ in found}) == len(found)
    return {key: value for key, _, value in found}


def environment(
    name: str, kind: str = "StatefulSet", fields: dict[str, str] = FIELDS
) -> dict[str, str]:
    """The variables of the program's container, as Kubernetes would fill them in.

    A secret is its name and key.
    """
    environ: dict[str, str] = {}
    for entry in container(name, kind)["env"]:
        if "value" in entry:
            # An unknown name, or one that is set later, stays as it is written.
            value = re.sub(r"\$\((\w+)\)", lambda m: environ.get(m[1], m[0]), entry["value"])
        elif "secretKeyRef" in entry["valueFrom"]:
            value = "{name}/{key}".format(**entry["valueFrom"]["secretKeyRef"])
        else:
            value = fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        environ[entry["name"]] = value
    return environ
