"""What the files of ``deploy/`` say is so: by the schemas, and by what no schema knows.

What breaks a deployment lies between the files: a variable that nobody reads, a probe of
a path that is not served, a stop that is cut off. So each is followed to its other end, which for
the program is the program itself. All is read as ``kubectl kustomize`` puts it together, which
needs no cluster.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import timedelta
from pathlib import Path

import pytest

from clusterkit import ClusterKit, Options
from clusterkit._variables import variables_of
from clusterkit.testing.embedded import EmbeddedEtcd, find_etcd, free_port
from tests.integration.support import eventually
from tests.support.manifests import (
    CERTIFICATES,
    ETCDS,
    FIELDS,
    KUBERNETES,
    NODES,
    USER_SCRIPT,
    Document,
    all_of,
    arguments,
    container,
    environment,
    every,
    kubectl,
    load,
    only,
    pod,
    ports,
)
from tests.support.secured import openssl

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
COMPOSE = ROOT / "deploy" / "docker" / "compose.yaml"
README = ROOT / "deploy" / "README.md"
PROGRAM = ROOT / "examples" / "quickstart" / "app.py"
VARIABLES = {v for option in Options.model_fields for v in variables_of(option)}
RELEASES = ["1.31", "1.32", "1.33"]
ON = {"quickstart-dev": "etcd-dev", "quickstart": "etcd"}
PROBES = ("startup", "liveness", "readiness")
ETCD_PROBES = {"/livez", "/readyz"}  # since etcd 3.5.11
ADMIN_STOP_SECONDS = 5  # how long the end of the probes' server may take

# kubectl and openssl are programs, and slow ones on a busy machine.
pytestmark = [pytest.mark.repository, pytest.mark.timeout(180)]


def options(name: str) -> Options:
    """What the program would be told; its file of TLS is no file here."""
    environ = environment(name)
    assert not any("$(" in value for value in environ.values()), environ
    environ.pop("CLUSTERKIT_TLS_CA", None)
    return Options.resolve(environ=environ)


def instructions(word: str) -> list[str]:
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return re.findall(rf"^{word}\s+(.*)$", text, re.MULTILINE)


def compose() -> Document:
    (document,) = load(COMPOSE.read_text())
    return document


def longest_stop(told: Options) -> timedelta:
    # Hooks are waited for before the leave and after it; in between etcd is asked at least thrice.
    waits = 2 * told.drain_timeout + 3 * told.connect_timeout
    return waits + timedelta(seconds=ADMIN_STOP_SECONDS)


# -- what is there --------------------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
def test_the_manifests_fit_the_schemas_of_kubernetes(release: str) -> None:
    import kubernetes_validate

    documents = [d for d in every() if not d["apiVersion"].startswith("cert-manager.io/")]
    assert len(documents) == 3 + 4 + 4 + 5 + 7
    for document in documents:
        assert kubernetes_validate.validate(document, release, strict=True) == release
    wrong = only("etcd", "PodDisruptionBudget")
    wrong["spec"]["maxUnavailabel"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="maxUnavailabel"):
        kubernetes_validate.validate(wrong, release, strict=True)


def test_kustomizations_name_every_file_and_no_other() -> None:
    found = sorted(KUBERNETES.rglob("kustomization.yaml"))
    names = {str(path.parent.relative_to(KUBERNETES)) for path in found}
    assert names == {*ETCDS, *NODES, "base/etcd", "base/quickstart"}
    for path in found:
        (kustomization,) = load(path.read_text())
        named = {"kustomization.yaml", *kustomization["resources"]}
        named |= {patch["path"] for patch in kustomization.get("patches", ())}
        for generator in kustomization.get("configMapGenerator", ()):
            named |= set(generator["files"])
        others = {name for name in named if name.startswith("../")}
        assert all((path.parent / name / "kustomization.yaml").exists() for name in others)
        there = {file.name for file in path.parent.iterdir() if file.name != "__pycache__"}
        assert there - {CERTIFICATES.name} == named - others, path.parent


def test_the_readme_applies_each_and_makes_every_secret() -> None:
    text = README.read_text()
    assert set(re.findall(r"apply -k deploy/kubernetes/(\S+)", text)) == {*ETCDS, *NODES}
    made = set(re.findall(r"create secret generic (\S+)", text))
    written = json.dumps(every())
    used = set(re.findall(r'"secretName": "([^"]+)"', written)) - {"etcd-authority"}
    used |= set(re.findall(r'"secretKeyRef": {"key": "password", "name": "([^"]+)"}', written))
    assert used == made == {"etcd-tls", "etcd-root", "quickstart-etcd"}


def test_the_steps_to_an_own_service_rename_everything(tmp_path: Path) -> None:
    (steps,) = re.findall(r"^(?:    (?:cp|mv|find) .*\n)+", README.read_text(), re.MULTILINE)
    shutil.copytree(KUBERNETES, tmp_path / "deploy" / "kubernetes")
    subprocess.run(["bash", "-euc", steps], cwd=tmp_path, check=True)
    for name in (*ETCDS, "colours-dev", "colours"):
        path = tmp_path / "colours" / name
        done = subprocess.run([kubectl(), "kustomize", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "quickstart" not in done.stdout
        if name not in ETCDS:
            assert "value: $(CLUSTERKIT_NODE_ID).colours.$(POD_NAMESPACE).svc:8080" in done.stdout
            assert "image: clusterkit-colours:1" in done.stdout


# -- images ---------------------------------------------------------------------------------------


def test_images_are_pinned() -> None:
    (base,) = instructions("ARG")
    services = compose()["services"].values()
    in_compose = {re.sub(r"\$\{\w+:-(.*)\}", r"\1", s["image"]) for s in services}
    built_on = {
        re.sub(r"\$\{\w+:-(.*)\}", r"\1", s["build"]["args"]["BASE"])
        for s in services
        if "build" in s
    }
    assert built_on == {base.removeprefix("BASE=")}
    in_pods = {
        container(n, k)["image"]
        for n in (*ETCDS, *NODES)
        for k in ("StatefulSet", "Job")
        if all_of(n, k)
    }
    assert in_compose == in_pods
    own, etcd = sorted(in_pods)
    for image in (etcd, *built_on):
        assert re.search(r":v?\d+\.\d+\.\d+(-[\w.-]+)?$", image), image
    _, _, etcd_version = etcd.rpartition(":v")
    assert tuple(map(int, etcd_version.split("."))) >= (3, 5, 13)

    assert re.search(r":\d+$", own)
    for text in (DOCKERFILE.read_text(), README.read_text()):
        assert f"docker build -f deploy/docker/Dockerfile -t {own} .\n" in text


def test_the_dockerfile_has_what_the_manifests_and_the_program_need() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for copy in instructions("COPY"):
        *sources, _ = copy.split()
        for source in sources:
            if source.startswith(("--from=build", "/packages")):
                continue
            assert (ROOT / source).exists(), copy
            assert f"!{source.removeprefix('./')}" in ignored, copy
    program = PROGRAM.relative_to(ROOT)
    (target,) = [c.split()[1] for c in instructions("COPY") if c.split()[0] == str(program)]
    assert instructions("ENTRYPOINT") == [f'["python3", "{target}"]']
    for name in NODES:
        assert set(instructions("EXPOSE")[0].split()) == set(map(str, ports(name).values()))
        security = pod(name)["securityContext"]
        assert instructions("USER") == [f"{security['runAsUser']}:{security['runAsGroup']}"]


def test_the_composition_is_what_it_says() -> None:
    services = compose()["services"]
    assert list(services) == [f"{kind}-{i}" for kind in ("etcd", "node") for i in range(3)]
    for i in range(3):
        node, etcd = services[f"node-{i}"], services[f"etcd-{i}"]
        told = Options.resolve(environ=node["environment"])
        assert told.node_id == f"node-{i}"
        assert told.require_address() == f"node-{i}:8080"
        assert told.endpoints == tuple(f"etcd-{n}:2379" for n in range(3))
        assert told.admin is not None
        assert f"http://{told.admin}/ready" in node["healthcheck"]["test"][-1]
        grace = re.fullmatch(r"(\d+)s", node["stop_grace_period"])
        assert grace is not None
        # No server of the probes is waited for: one node, one probe, one connection.
        assert int(grace[1]) > longest_stop(told).total_seconds() - ADMIN_STOP_SECONDS
        assert f"--name=etcd-{i}" in etcd["command"]
        assert etcd["volumes"] == [f"etcd-{i}:/data"]
        for service in (node, etcd):
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]


# -- variables ------------------------------------------------------------------------------------


def test_every_variable_is_one_that_clusterkit_reads() -> None:
    texts = [*KUBERNETES.rglob("*.yaml"), *ROOT.glob("deploy/**/*.md")]
    texts += [DOCKERFILE, COMPOSE, USER_SCRIPT]
    named = {v for path in texts for v in re.findall(r"\bCLUSTERKIT_\w+", path.read_text())}
    assert named
    assert named - VARIABLES == set()


def test_every_other_variable_is_read_by_somebody() -> None:
    """By another variable or argument, by etcdctl, or by the script of the Job."""
    read = set(re.findall(r'environ(?:\.get\(|\[)"(\w+)"', USER_SCRIPT.read_text()))
    assert "ETCD_ROOT_PASSWORD" in read
    for name in (*ETCDS, *NODES):
        for kind in ("StatefulSet", "Job"):
            if not all_of(name, kind):
                continue
            written = json.dumps(container(name, kind))
            for variable in environment(name, kind) if "env" in container(name, kind) else ():
                known = variable in VARIABLES or variable.startswith("ETCDCTL_")
                assert known or f"$({variable})" in written or variable in read, variable
    assert read - set(environment("quickstart", "Job")) == set()


@pytest.mark.parametrize("name", NODES)
def test_the_options_can_work(name: str) -> None:
    told = options(name)
    assert told.node_id == "quickstart-0"
    host, _, port = told.require_address().rpartition(":")
    (peers,) = [s for s in all_of(name, "Service") if s["spec"].get("clusterIP") == "None"]
    # Kubernetes gives a pod that name for the governing Service alone, and only once it is ready
    # unless it is told otherwise.
    assert host == f"quickstart-0.{peers['metadata']['name']}.trial.svc"
    assert only(name, "StatefulSet")["spec"]["serviceName"] == peers["metadata"]["name"]
    assert peers["spec"]["publishNotReadyAddresses"] is True
    assert int(port) == ports(name)["http"]
    assert told.admin == f"{FIELDS['status.podIP']}:{ports(name)['admin']}"
    etcd = only(ON[name], "Service")
    members = only(ON[name], "StatefulSet")["spec"]["replicas"]
    assert told.endpoints == tuple(
        f"etcd-{i}.{etcd['metadata']['name']}:{etcd['spec']['ports'][0]['port']}"
        for i in range(members)
    )


def test_the_nodes_are_the_user_that_the_job_makes() -> None:
    nodes, job = environment("quickstart"), environment("quickstart", "Job")
    shared = {v for v in job if v.startswith("CLUSTERKIT_")}
    assert {v: job[v] for v in shared} == {v: nodes[v] for v in shared}
    assert options("quickstart").username == "quickstart"
    for kind in ("StatefulSet", "Job"):
        (volume,) = [v for v in pod("quickstart", kind)["volumes"] if "secret" in v]
        # Whoever has the key is a member of etcd.
        assert [item["key"] for item in volume["secret"]["items"]] == ["ca.crt"]
        mounts = {m["name"]: m["mountPath"] for m in container("quickstart", kind)["volumeMounts"]}
        assert job["CLUSTERKIT_TLS_CA"] == f"{mounts[volume['name']]}/ca.crt"
    scripts = only("quickstart", "ConfigMap")
    assert scripts["data"] == {USER_SCRIPT.name: USER_SCRIPT.read_text()}
    (volume,) = [v for v in pod("quickstart", "Job")["volumes"] if "configMap" in v]
    assert volume["configMap"]["name"] == scripts["metadata"]["name"]
    mounts = {m["name"]: m["mountPath"] for m in container("quickstart", "Job")["volumeMounts"]}
    assert container("quickstart", "Job")["command"] == [
        "python3",
        f"{mounts[volume['name']]}/{USER_SCRIPT.name}",
    ]


# -- who reaches whom -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ETCDS, *NODES])
def test_services_and_budgets_choose_the_pods(name: str) -> None:
    stateful_set = only(name, "StatefulSet")["spec"]
    labels = stateful_set["template"]["metadata"]["labels"]
    chosen = stateful_set["selector"]["matchLabels"]
    assert chosen.items() <= labels.items()
    services = all_of(name, "Service")
    assert stateful_set["serviceName"] in [d["metadata"]["name"] for d in services]
    for service in services:
        assert service["spec"]["selector"] == chosen
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports(name)
            if service["spec"].get("clusterIP") == "None":  # nothing translates ports then
                assert port["port"] == ports(name)[port["targetPort"]]
    for budget in all_of(name, "PodDisruptionBudget"):
        assert budget["spec"]["selector"] == stateful_set["selector"]
        assert budget["spec"]["maxUnavailable"] == 1
    assert (not all_of(name, "PodDisruptionBudget")) == (name == "etcd-dev")
    spread = stateful_set["template"]["spec"].get("topologySpreadConstraints", [])
    for constraint in spread:
        assert constraint["labelSelector"]["matchLabels"] == chosen
    keys = {constraint["topologyKey"] for constraint in spread}
    if name in NODES:
        assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
        copies = options(name).replication_factor
        assert 1 < copies <= stateful_set["replicas"]
    elif name != "etcd-dev":
        affinity = stateful_set["template"]["spec"]["affinity"]["podAntiAffinity"]
        (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "kubernetes.io/hostname"
        assert term["labelSelector"] == stateful_set["selector"]


def allowed(rules: list[Document], side: str, labels: dict[str, str], port: int) -> bool:
    """Whether a NetworkPolicy's rules have one for pods of this namespace with these labels."""
    return any(
        port in [p["port"] for p in rule["ports"]]
        and any(
            "podSelector" in peer
            and peer["podSelector"].get("matchLabels", {}).items() <= labels.items()
            for peer in rule.get(side, ())
        )
        for rule in rules
    )


@pytest.mark.parametrize("name", NODES)
def test_the_network_lets_through_what_is_needed_and_no_more(name: str) -> None:
    nodes, etcd = only(name, "NetworkPolicy")["spec"], only(ON[name], "NetworkPolicy")["spec"]
    for policy, found in ((nodes, name), (etcd, ON[name])):
        selector = only(found, "StatefulSet")["spec"]["selector"]
        assert policy["podSelector"] == selector
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        names = [rule for rule in policy["egress"] if "to" not in rule]
        assert [[p["port"] for p in rule["ports"]] for rule in names] == [[53, 53]]
    node_labels, etcd_labels = (
        only(n, "StatefulSet")["spec"]["template"]["metadata"]["labels"] for n in (name, ON[name])
    )
    http, client = ports(name)["http"], ports(ON[name])["client"]
    assert allowed(nodes["egress"], "to", node_labels, http)
    assert allowed(nodes["ingress"], "from", node_labels, http)
    assert allowed(nodes["egress"], "to", etcd_labels, client)
    assert allowed(etcd["ingress"], "from", node_labels, client)
    assert not allowed(etcd["ingress"], "from", etcd_labels, client)
    assert not allowed(etcd["ingress"], "from", node_labels, 2380)
    assert not allowed(nodes["ingress"], "from", node_labels, ports(name)["admin"])
    for job in all_of(name, "Job"):
        labels = job["spec"]["template"]["metadata"]["labels"]
        assert allowed(etcd["ingress"], "from", labels, client)
        assert not nodes["podSelector"]["matchLabels"].items() <= labels.items()
    if "peer" in ports(ON[name]):
        assert allowed(etcd["egress"], "to", etcd_labels, ports(ON[name])["peer"])
        assert allowed(etcd["ingress"], "from", etcd_labels, ports(ON[name])["peer"])


# -- probes and ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NODES)
def test_the_program_serves_what_is_probed(name: str) -> None:
    probes = {kind: container(name)[f"{kind}Probe"]["httpGet"] for kind in PROBES}
    assert {probe["port"] for probe in probes.values()} == {"admin"}

    def status(port: int, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                found: int = answer.status
                return found
        except urllib.error.HTTPError as error:
            return error.code

    async def main(environ: dict[str, str]) -> None:
        """The kit of the program, where the pod's address is this machine's."""
        port = free_port()
        ck = ClusterKit(admin=f"127.0.0.1:{port}", environ=environ)
        runpy.run_path(str(PROGRAM))["Store"](ck)

        async def seen(path: str) -> int:
            return await asyncio.to_thread(status, port, path)

        async with ck:
            await ck.wait_ready(30)
            for probe in probes.values():
                assert await seen(probe["path"]) == 200
            assert await seen("/livez") == 404
            etcd.kill()
            # It is cut off: no reason to kill it, and none to send it traffic.
            await asyncio.to_thread(
                eventually, lambda: status(port, probes["readiness"]["path"]) == 503
            )
            assert await seen(probes["liveness"]["path"]) == 200

    with EmbeddedEtcd() as etcd:
        environ = environment(name) | {"CLUSTERKIT_ENDPOINTS": etcd.endpoint}
        environ |= {"CLUSTERKIT_LEASE_TTL": "2", "CLUSTERKIT_DRAIN_TIMEOUT": "1"}
        for variable in ("TLS_CA", "USERNAME", "PASSWORD"):
            environ.pop(f"CLUSTERKIT_{variable}", None)
        asyncio.run(main(environ))


@pytest.mark.parametrize("name", ETCDS)
def test_etcd_serves_what_is_probed(name: str) -> None:
    told = arguments(name, 0)
    for kind in PROBES:
        probe = container(name)[f"{kind}Probe"]["httpGet"]
        assert probe["path"] in ETCD_PROBES
        listens = f"http://0.0.0.0:{ports(name)[probe['port']]}"
        assert told["listen-metrics-urls"] == listens
    mounts = {m["name"]: m["mountPath"] for m in container(name)["volumeMounts"]}
    (claim,) = only(name, "StatefulSet")["spec"]["volumeClaimTemplates"]
    assert Path(mounts[claim["metadata"]["name"]]) in Path(told["data-dir"]).parents
    volumes = {claim["metadata"]["name"], *(v["name"] for v in pod(name).get("volumes", ()))}
    assert set(mounts) == volumes


@pytest.mark.parametrize("name", ETCDS)
def test_the_members_of_etcd_find_each_other(name: str) -> None:
    spec = only(name, "StatefulSet")["spec"]
    service = only(name, "Service")
    assert service["spec"]["publishNotReadyAddresses"] is True
    own = {}
    for member in range(spec["replicas"]):
        told = arguments(name, member)
        own[told["name"]] = told["initial-advertise-peer-urls"]
        scheme = "http" if name == "etcd-dev" else "https"
        assert told["listen-client-urls"] == f"{scheme}://0.0.0.0:{ports(name)['client']}"
        at = f"etcd-{member}.{service['metadata']['name']}"
        assert told["advertise-client-urls"] == f"{scheme}://{at}:{ports(name)['client']}"
    pairs = (pair.split("=", 1) for pair in told["initial-cluster"].split(","))
    assert dict(pairs) == own
    if name == "etcd-dev":
        return
    assert spec["replicas"] == 3
    assert spec["podManagementPolicy"] == "Parallel"
    assert "peer-client-cert-auth" in told
    (volume,) = [v for v in pod(name)["volumes"] if "secret" in v]
    (mount,) = [m for m in container(name)["volumeMounts"] if m["name"] == volume["name"]]
    for flag, key in (("cert-file", "tls.crt"), ("key-file", "tls.key")):
        for kind in ("", "peer-"):
            assert told[kind + flag] == f"{mount['mountPath']}/{key}"
    assert told["peer-trusted-ca-file"] == f"{mount['mountPath']}/ca.crt"


@pytest.mark.parametrize("name", NODES)
def test_a_graceful_stop_is_not_cut_off(name: str) -> None:
    before = container(name)["lifecycle"]["preStop"]["sleep"]["seconds"]
    longest = longest_stop(options(name)) + timedelta(seconds=before)
    assert pod(name)["terminationGracePeriodSeconds"] > longest.total_seconds()


def test_pods_have_no_more_rights_than_they_need() -> None:
    for name in (*ETCDS, *NODES):
        for kind in ("StatefulSet", "Job"):
            if not all_of(name, kind):
                continue
            found = pod(name, kind)
            assert found["enableServiceLinks"] is False
            assert found["automountServiceAccountToken"] is False
            assert found["securityContext"]["runAsNonRoot"] is True
            assert found["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert container(name, kind)["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container(name, kind)["resources"].keys() == {"requests", "limits"}


# -- certificates and users -----------------------------------------------------------------------


def names_of(certificate: Path) -> set[str]:
    asked = ["openssl", "x509", "-in", str(certificate), "-noout", "-ext", "subjectAltName"]
    text = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"DNS:([^,\s]+)", text))


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    folder = tmp_path / "certificates"
    subprocess.run(["sh", CERTIFICATES, folder], check=True, capture_output=True)
    return folder


def test_certificates_are_for_the_names_of_the_members(certificates: Path) -> None:
    told = [arguments("etcd", member) for member in range(3)]
    urls = {
        t[f"{kind}-urls"] for t in told for kind in ("advertise-client", "initial-advertise-peer")
    }
    names = {url.removeprefix("https://").partition(":")[0] for url in urls}
    assert names_of(certificates / "tls.crt") == names
    openssl(certificates, "verify", "-CAfile", "ca.crt", "tls.crt")
    # Once more: the authority stays, so clients need no new one.
    authority = (certificates / "ca.crt").read_bytes()
    before = (certificates / "tls.crt").read_bytes()
    subprocess.run(["sh", CERTIFICATES, certificates], check=True, capture_output=True)
    assert (certificates / "ca.crt").read_bytes() == authority
    assert (certificates / "tls.crt").read_bytes() != before
    assert {f.name for f in certificates.iterdir()} >= {"ca.crt", "ca.key", "tls.crt", "tls.key"}

    (secret,) = [v["secret"]["secretName"] for v in pod("etcd")["volumes"] if "secret" in v]
    (issued,) = [
        d["spec"]
        for d in all_of("etcd-cert-manager", "Certificate")
        if d["spec"]["secretName"] == secret
    ]
    assert set(issued["dnsNames"]) == names
    assert {"server auth", "client auth"} <= set(issued["usages"])


def test_the_job_makes_a_user_that_may_touch_one_prefix() -> None:
    with EmbeddedEtcd() as etcd:
        environ = environment("quickstart", "Job") | {"CLUSTERKIT_ENDPOINTS": etcd.endpoint}
        del environ["CLUSTERKIT_TLS_CA"]

        def ctl(user: str, *args: str) -> str:
            command = [str(find_etcd().with_name("etcdctl")), f"--endpoints={etcd.endpoint}", *args]
            done = subprocess.run(
                [*command, f"--user={user}"], capture_output=True, text=True, check=False
            )
            return done.stdout if done.returncode == 0 else done.stderr

        def make(**changes: str) -> None:
            done = subprocess.run(
                [sys.executable, USER_SCRIPT],
                env={**os.environ, **environ, **changes},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr

        name, password = environ["CLUSTERKIT_USERNAME"], environ["CLUSTERKIT_PASSWORD"]
        user, root = f"{name}:{password}", f"root:{environ['ETCD_ROOT_PASSWORD']}"
        make(CLUSTERKIT_PREFIX="/elsewhere")
        make()  # a Job that failed half-way runs again, and so does one that was changed
        assert ctl(user, "put", "/quickstart/key", "value") == "OK\n"
        for key in ("/quickstart", "/quickstart-other/key", "/elsewhere/key", "/"):
            assert "permission denied" in ctl(user, "put", key, "value"), key
        assert "permission denied" in ctl(user, "user", "list")
        assert ctl(root, "get", "/quickstart/key", "--print-value-only") == "value\n"
        make(CLUSTERKIT_PASSWORD="another")
        assert "authentication failed" in ctl(user, "get", "/quickstart/key")
        assert ctl(f"{name}:another", "put", "/quickstart/key", "value") == "OK\n"
