"""What the files of ``deploy/`` say is so: by the schemas, and by what no schema knows.

What breaks a deployment lies between the files: a variable that nobody reads, a probe of
a path that is not served, a stop that is cut off. So each is followed to its other end, which for
the program is the program itself.
"""

from __future__ import annotations

import asyncio
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from clusterkit import ClusterKit, Options
from clusterkit._variables import variables_of

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
PROGRAM = ROOT / "examples" / "quickstart" / "app.py"
VARIABLES = {v for option in Options.model_fields for v in variables_of(option)}
FIELDS = {"metadata.name": "quickstart-0", "metadata.namespace": "trial"}
PROBED = ("liveness", "readiness")
ETCD_PROBES = {"/livez", "/readyz"}  # since etcd 3.5.11

pytestmark = pytest.mark.repository

Document = dict[str, Any]


def load(path: Path) -> list[Document]:
    import yaml  # here, because `make compat` collects this file where it is not installed

    return [d for d in yaml.safe_load_all(path.read_text()) if d is not None]


def kustomizations() -> list[Path]:
    found = sorted(KUBERNETES.rglob("kustomization.yaml"))
    assert [path.parent.name for path in found] == ["etcd-dev", "quickstart"]
    return found


def resources(name: str | None = None) -> list[Document]:
    """What ``kubectl apply -k`` sends: all of it, or that of one kustomization."""
    return [
        document
        for path in kustomizations()
        if name in (None, path.parent.name)
        for resource in load(path)[0]["resources"]
        for document in load(path.parent / resource)
    ]


def only(name: str, kind: str) -> Document:
    (found,) = [d for d in resources(name) if d["kind"] == kind]
    return found


def pod(name: str) -> Document:
    spec: Document = only(name, "StatefulSet")["spec"]["template"]["spec"]
    return spec


def container(name: str) -> Document:
    (found,) = pod(name)["containers"]
    assert isinstance(found, dict)
    return found


def ports(name: str) -> dict[str, int]:
    return {p["name"]: p["containerPort"] for p in container(name)["ports"]}


def environment() -> dict[str, str]:
    """The variables of the program's container, as Kubernetes would fill them in."""
    environ: dict[str, str] = {}
    for entry in container("quickstart")["env"]:
        if "value" in entry:
            # An unknown name, or one that is set later, stays as it is written.
            value = re.sub(r"\$\((\w+)\)", lambda m: environ.get(m[1], m[0]), entry["value"])
        else:
            value = FIELDS[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        environ[entry["name"]] = value
    return environ


def instructions(word: str) -> list[str]:
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return re.findall(rf"^{word}\s+(.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("release", ["1.31", "1.32", "1.33"])
def test_the_manifests_fit_the_schemas_of_kubernetes(release: str) -> None:
    import kubernetes_validate

    documents = resources()
    assert len(documents) == 6
    for document in documents:
        assert kubernetes_validate.validate(document, release, strict=True) == release
    documents[-1]["spec"]["maxUnavailabel"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="maxUnavailabel"):
        kubernetes_validate.validate(documents[-1], release, strict=True)


def test_kustomizations_name_every_file_and_no_other() -> None:
    for path in kustomizations():
        (kustomization,) = load(path)
        named = {"kustomization.yaml", *kustomization["resources"]}
        assert named == {file.name for file in path.parent.iterdir()}, path.parent


def test_images_are_pinned() -> None:
    (base,) = instructions("ARG")
    images = [container("etcd-dev")["image"], base.removeprefix("BASE=")]
    for image in images:
        assert re.search(r":v?\d+\.\d+\.\d+(-[\w.-]+)?$", image), image
    _, _, etcd_version = images[0].rpartition(":v")
    assert tuple(map(int, etcd_version.split("."))) >= (3, 5, 13)

    built = container("quickstart")["image"]
    assert re.search(r":\d+$", built)
    for text in (DOCKERFILE.read_text(), (ROOT / "deploy" / "README.md").read_text()):
        assert f"docker build -f deploy/docker/Dockerfile -t {built} .\n" in text


def test_the_dockerfile_has_what_the_manifests_and_the_program_need() -> None:
    for copy in instructions("COPY"):
        *sources, target = copy.split()
        for source in sources:
            assert source.startswith(("--from=build", "/wheels")) or (ROOT / source).exists(), copy
    program = PROGRAM.relative_to(ROOT)
    (target,) = [c.split()[1] for c in instructions("COPY") if c.split()[0] == str(program)]
    assert instructions("ENTRYPOINT") == [f'["python", "{target}"]']
    assert instructions("EXPOSE") == [str(ports("quickstart")["http"])]
    security = pod("quickstart")["securityContext"]
    assert instructions("USER") == [f"{security['runAsUser']}:{security['runAsGroup']}"]


def test_every_variable_is_one_that_clusterkit_reads() -> None:
    texts = [*KUBERNETES.rglob("*.yaml"), DOCKERFILE, *ROOT.glob("deploy/**/*.md")]
    named = {v for path in texts for v in re.findall(r"\bCLUSTERKIT_\w+", path.read_text())}
    assert named
    assert named - VARIABLES == set()


def test_the_options_can_work() -> None:
    environ = environment()
    assert not any("$(" in value for value in environ.values()), environ
    options = Options.resolve(environ=environ)
    assert options.node_id == "quickstart-0"
    host, _, port = options.require_address().rpartition(":")
    (peers,) = [
        d
        for d in resources("quickstart")
        if d["kind"] == "Service" and d["spec"].get("clusterIP") == "None"
    ]
    # Kubernetes gives a pod that name for the governing Service alone, and only once it is ready
    # unless it is told otherwise.
    assert host == f"quickstart-0.{peers['metadata']['name']}.trial.svc"
    assert only("quickstart", "StatefulSet")["spec"]["serviceName"] == peers["metadata"]["name"]
    assert peers["spec"]["publishNotReadyAddresses"] is True
    assert int(port) == ports("quickstart")["http"]
    etcd = only("etcd-dev", "Service")
    assert options.endpoints == (f"{etcd['metadata']['name']}:{etcd['spec']['ports'][0]['port']}",)


def test_services_and_the_budget_choose_the_pods() -> None:
    for name in ("etcd-dev", "quickstart"):
        stateful_set = only(name, "StatefulSet")["spec"]
        labels = stateful_set["template"]["metadata"]["labels"]
        assert stateful_set["selector"]["matchLabels"] == labels
        services = [d for d in resources(name) if d["kind"] == "Service"]
        assert stateful_set["serviceName"] in [d["metadata"]["name"] for d in services]
        for service in services:
            assert service["spec"]["selector"] == labels
            for port in service["spec"]["ports"]:
                assert port["targetPort"] in ports(name)
                if service["spec"].get("clusterIP") == "None":  # nothing translates ports then
                    assert port["port"] == ports(name)[port["targetPort"]]
    budget = only("quickstart", "PodDisruptionBudget")["spec"]
    stateful_set = only("quickstart", "StatefulSet")["spec"]
    assert budget["selector"] == stateful_set["selector"]
    copies = Options.resolve(environ=environment()).replication_factor
    assert budget["maxUnavailable"] < copies <= stateful_set["replicas"]


def test_the_program_serves_what_is_probed() -> None:
    probes = {kind: container("quickstart")[f"{kind}Probe"]["httpGet"] for kind in PROBED}
    assert {kind: probe["port"] for kind, probe in probes.items()} == dict.fromkeys(PROBED, "http")
    store = runpy.run_path(str(PROGRAM))["Store"](ClusterKit(environ=environment()))

    def status(path: str) -> int:
        answered: tuple[int, object] = asyncio.run(store.answer("GET", path))
        return answered[0]

    # It has not joined: the process lives, and must not get traffic.
    assert status(probes["liveness"]["path"]) == 200
    assert status(probes["readiness"]["path"]) == 503
    assert status("/livez") == 404


def test_etcd_serves_what_is_probed() -> None:
    command = container("etcd-dev")["command"]
    (listens,) = [a for a in command if a.startswith("--listen-metrics-urls=")]
    for kind in (*PROBED, "startup"):
        probe = container("etcd-dev")[f"{kind}Probe"]["httpGet"]
        assert probe["path"] in ETCD_PROBES
        assert listens.endswith(f"://0.0.0.0:{ports('etcd-dev')[probe['port']]}")
    assert f"--listen-client-urls=http://0.0.0.0:{ports('etcd-dev')['client']}" in command
    (data,) = [a.partition("=")[2] for a in command if a.startswith("--data-dir=")]
    (mount,) = container("etcd-dev")["volumeMounts"]
    assert Path(mount["mountPath"]) in Path(data).parents
    claims = only("etcd-dev", "StatefulSet")["spec"]["volumeClaimTemplates"]
    assert mount["name"] in [claim["metadata"]["name"] for claim in claims]


def test_a_graceful_stop_is_not_cut_off() -> None:
    options = Options.resolve(environ=environment())
    # Hooks are waited for before the leave and after it; in between etcd is asked at least thrice.
    longest = 2 * options.drain_timeout + 3 * options.connect_timeout
    assert pod("quickstart")["terminationGracePeriodSeconds"] > longest.total_seconds()


@pytest.mark.parametrize("name", ["etcd-dev", "quickstart"])
def test_pods_have_no_more_rights_than_they_need(name: str) -> None:
    assert pod(name)["enableServiceLinks"] is False
    assert pod(name)["automountServiceAccountToken"] is False
    assert pod(name)["securityContext"]["runAsNonRoot"] is True
    assert pod(name)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container(name)["resources"].keys() == {"requests", "limits"}
