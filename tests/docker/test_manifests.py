"""What ``deploy/kubernetes`` starts, without Kubernetes: its arguments, variables and certificates.

Docker's network stands in for the names of a Service, ``docker run`` for the kubelet: etcd with TLS
among three members, the script of the Job, and nodes as the user that it makes.
"""

from __future__ import annotations

import http.client
import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.support import eventually
from tests.support.manifests import (
    CERTIFICATES,
    FIELDS,
    USER_SCRIPT,
    arguments,
    container,
    environment,
    pod,
)

from .servers import CommandError, docker, free_port, run

SECRETS = {"etcd-root/password": "secret-of-root", "quickstart-etcd/password": "secret-of-nodes"}
SLOWLY = 90.0
HARDENED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")


class Pods:
    """What runs on one network, as a context manager; what it makes it removes."""

    def __init__(self, certificates: Path, members_image: str, image: str) -> None:
        self._certificates = certificates
        self._images = {"etcd": members_image, "quickstart": image}
        self._name = f"clusterkit-test-{secrets.token_hex(4)}"
        self._exits = ExitStack()
        self.ports: dict[str, int] = {}

    def __enter__(self) -> Pods:
        docker("network", "create", self._name)
        self._exits.callback(docker, "network", "rm", self._name)
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.ports:
            print(f"--- the end of the log of {name}\n{self.log(name)[-3000:]}")
        self._exits.close()

    def id(self, name: str) -> str:
        return f"{self._name}-{name}"

    def log(self, name: str) -> str:
        done = subprocess.run(
            ["docker", "logs", self.id(name)], capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    def ended(self, name: str) -> int:
        """Waits for the end of one; its exit code."""
        return int(docker("wait", self.id(name)))

    def _create(self, name: str, *args: str) -> None:
        docker("run", "--detach", "--name", self.id(name), "--network", self._name, *args)
        self._exits.callback(
            subprocess.run,
            ["docker", "rm", "--force", "--volumes", self.id(name)],
            capture_output=True,
            check=False,
        )

    def _user(self, name: str, kind: str = "StatefulSet") -> str:
        security = pod(name, kind)["securityContext"]
        return f"--user={security['runAsUser']}:{security['runAsGroup']}"

    def _mounts(self, name: str, kind: str = "StatefulSet") -> list[str]:
        """Secrets and ConfigMaps as files; what a claim would bring is in memory."""
        volumes = {v["name"]: v for v in pod(name, kind).get("volumes", ())}
        mounts: list[str] = []
        for mount in container(name, kind)["volumeMounts"]:
            volume, path = volumes.get(mount["name"], {}), mount["mountPath"]
            if "secret" in volume:
                items = volume["secret"].get("items")
                keys = [i["key"] for i in items] if items else ["ca.crt", "tls.crt", "tls.key"]
                mounts += [f"--volume={self._certificates / k}:{path}/{k}:ro" for k in keys]
            elif "configMap" in volume:
                mounts.append(f"--volume={USER_SCRIPT}:{path}/{USER_SCRIPT.name}:ro")
            else:
                uid = pod(name, kind)["securityContext"]["fsGroup"]
                mounts.append(f"--tmpfs={path}:rw,uid={uid},gid={uid},mode=700")
        return mounts

    def _variables(self, name: str, kind: str, fields: dict[str, str]) -> list[str]:
        found = environment(name, kind, fields)
        return [f"--env={key}={SECRETS.get(value, value)}" for key, value in found.items()]

    def member(self, number: int) -> None:
        """A member of etcd, as the StatefulSet has it."""
        name = f"etcd-{number}"
        self._create(
            name,
            f"--network-alias={name}.etcd",
            *HARDENED,
            self._user("etcd"),
            *self._mounts("etcd"),
            *self._variables("etcd", "StatefulSet", {**FIELDS, "metadata.name": name}),
            self._images["etcd"],
            "/usr/local/bin/etcd",
            *(f"--{k}={v}" if v else f"--{k}" for k, v in arguments("etcd", number).items()),
        )

    def ctl(self, *args: str, member: int = 0) -> str:
        """etcdctl as ``kubectl exec`` would run it."""
        return docker("exec", self.id(f"etcd-{member}"), "/usr/local/bin/etcdctl", *args)

    def job(self, name: str) -> int:
        """Runs the Job to its end."""
        python, *args = container("quickstart", "Job")["command"]
        self._create(
            name,
            *HARDENED,
            self._user("quickstart", "Job"),
            *self._mounts("quickstart", "Job"),
            *self._variables("quickstart", "Job", FIELDS),
            f"--entrypoint={python}",
            self._images["quickstart"],
            *args,
        )
        return self.ended(name)

    def node(self, name: str) -> None:
        """A node, as the StatefulSet has it."""
        fields = {**FIELDS, "metadata.name": name, "status.podIP": "0.0.0.0"}
        found = environment("quickstart", fields=fields)
        self.ports[name] = free_port()
        self._create(
            name,
            f"--network-alias={found['CLUSTERKIT_ADDRESS'].rpartition(':')[0]}",
            f"--publish=127.0.0.1:{self.ports[name]}:8080",
            *HARDENED,
            self._user("quickstart"),
            *self._mounts("quickstart"),
            *self._variables("quickstart", "StatefulSet", fields),
            self._images["quickstart"],
        )

    def ready(self, name: str) -> bool:
        """What the readiness probe says, asked from inside."""
        probe = container("quickstart")["readinessProbe"]["httpGet"]
        url = f"http://127.0.0.1:8081{probe['path']}"
        asked = f"from urllib.request import urlopen; urlopen({url!r}, timeout=5)"
        try:
            docker("exec", self.id(name), "python3", "-c", asked)
        except CommandError:
            return False
        return True

    def ask(self, name: str, method: str, key: str, value: str = "") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[name], timeout=10)
        try:
            connection.request(method, f"/keys/{key}", value.encode())
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read()).get("value", "")
        except (OSError, http.client.HTTPException, ValueError) as error:
            return 0, repr(error)
        finally:
            connection.close()


@pytest.fixture
def image(base: str, context: Path) -> Iterator[str]:
    tag = f"clusterkit-test-quickstart:{secrets.token_hex(4)}"
    dockerfile = context / "deploy" / "docker" / "Dockerfile"
    build = ("docker", "build", "--quiet", "--build-arg", f"BASE={base}", "--tag", tag)
    run(*build, "--file", dockerfile, context, seconds=240)
    yield tag
    docker("rmi", tag)
    docker("image", "prune", "--force", "--filter", "label=clusterkit-stage=build")


@pytest.fixture
def pods(members_image: str, image: str, tmp_path: Path) -> Iterator[Pods]:
    made, shown = tmp_path / "made", tmp_path / "shown"
    subprocess.run(["sh", CERTIFICATES, made], check=True, capture_output=True)
    shown.mkdir()
    for name in ("ca.crt", "tls.crt", "tls.key"):
        # In a pod the group of the volume may read them; here that user is in no such group.
        shutil.copy(made / name, shown / name)
        (shown / name).chmod(0o444)
    with Pods(shown, members_image, image) as pods:
        yield pods


@pytest.mark.timeout(600, method="signal")
def test_members_with_tls_the_job_and_nodes_as_its_user(pods: Pods) -> None:
    for number in range(3):
        pods.member(number)

    def serve() -> bool:
        try:
            return pods.ctl("endpoint", "health").count("is healthy") == 3
        except CommandError as e:
            return str(e).count("is healthy") == 3  # it says so on either stream

    eventually(serve, SLOWLY)

    # Pods start in any order: a node that comes before the Job is let in, and must
    # carry on when authentication is turned on under it.
    early, late = "quickstart-0", "quickstart-1"
    pods.node(early)
    eventually(lambda: pods.ready(early), SLOWLY)
    assert put(pods, early, "before", "the job")
    for attempt in ("job-1", "job-2"):
        assert pods.job(attempt) == 0, pods.log(attempt)
        assert "may read and write under /quickstart/" in pods.log(attempt)
    with pytest.raises(CommandError, match="user name is empty"):
        pods.ctl("get", "/quickstart/", "--prefix")
    user = f"--user=quickstart:{SECRETS['quickstart-etcd/password']}"
    with pytest.raises(CommandError, match="permission denied"):
        pods.ctl(user, "get", "/", "--prefix")

    pods.node(late)
    eventually(lambda: pods.ready(early) and pods.ready(late), SLOWLY)
    keys = {f"key-{i}": f"value {i}" for i in range(20)}
    for key, value in keys.items():
        assert put(pods, early, key, value)
    docker("kill", pods.id("etcd-0"))
    for key in keys:
        keys[key] += ", changed without one of the members"
        assert put(pods, late, key, keys[key])
    # SIGTERM, as Kubernetes sends it: a node leaves, and the other one has everything.
    docker("kill", "--signal", "TERM", pods.id(early))
    assert pods.ended(early) == 0
    for key, value in {**keys, "before": "the job"}.items():
        assert read(pods, late, key) == value
    assert "Traceback" not in pods.log(early) + pods.log(late)
    found = pods.ctl(user, "get", "/quickstart/", "--prefix", "--keys-only", member=1)
    assert f"/nodes/{late}" in found


def put(pods: Pods, node: str, key: str, value: str) -> bool:
    """Repeats a write until it is taken, as a client must."""
    return eventually(lambda: pods.ask(node, "PUT", key, value)[0] == 200, SLOWLY)


def read(pods: Pods, node: str, key: str) -> str:
    """Waits while nobody serves the key; whatever is said then is the answer."""

    def answered() -> tuple[int, str] | None:
        status, value = pods.ask(node, "GET", key)
        return None if status in (0, 421, 503) else (status, value)

    status, value = eventually(answered, SLOWLY) or (0, "")
    assert status == 200, (key, status)
    return value
