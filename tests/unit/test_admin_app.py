"""The HTTP application of a kit: what it answers, whatever it is asked, at every time of a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from clusterkit import NodeJoinEvent
from clusterkit._asgi import ASGIApplication
from clusterkit.admin.openapi import PATHS as DOCUMENTED
from clusterkit.admin.openapi import SCHEMAS
from clusterkit.errors import ClusterKitError
from clusterkit.sync import ClusterKit
from tests.support.admin import PARTITIONS, PATHS, MemoryKits, ask
from tests.support.bench import FaultyStore, eventually, our_threads

ROOT = Path(__file__).parents[2]


@pytest.fixture
def kits(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryKits]:
    before = our_threads()
    made = MemoryKits(monkeypatch)
    yield made
    made.close()
    eventually(lambda: our_threads() <= before, f"threads are left: {our_threads() - before}")


def get(app: ASGIApplication, path: str) -> Any:
    found = ask(app, path)
    assert found.status_code == 200, found.text
    assert found.headers["content-type"] == "application/json"
    return found.json()


def documented() -> dict[str, dict[str, Any]]:
    """The schemas of the good answers that are ours, by path."""
    return {
        path: operations["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        for path, operations in DOCUMENTED.items()
        if path not in ("/metrics", "/openapi.json")
    }


def check(schema: dict[str, Any], value: Any) -> None:
    """All that is documented is there, and nothing else."""
    if "$ref" in schema:
        check(SCHEMAS[schema["$ref"].rpartition("/")[2]], value)
    elif "properties" in schema:
        assert set(value) == set(schema["properties"])
        for name, inner in schema["properties"].items():
            check(inner, value[name])
    elif "items" in schema:
        for item in value:
            check(schema["items"], item)


def snapshot_of(kit: ClusterKit) -> Any:
    return kit._snapshot()


# --- over the time of a kit ----------------------------------------------------------------------


def refuses_all(app: ASGIApplication, state: str, reason: str) -> None:
    for path in PATHS:
        found = ask(app, path)
        if path == "/openapi.json":
            assert found.status_code == 200
            continue
        assert found.status_code == 503, path
        body = found.json()
        if path in ("/health", "/ready"):
            assert body["state"] == state
            assert reason in " ".join(body["reasons"])
        else:
            assert body["error"] == "not_running"
            assert body["message"]


def test_before_the_start_and_after_the_stop_the_reason_is_told(kits: MemoryKits) -> None:
    kit = kits.kit()
    app = kit.asgi()
    refuses_all(app, "new", "new")
    kit.start()
    kit.wait_ready(10)
    assert [ask(app, path).status_code for path in PATHS] == [200] * len(PATHS)
    kit.stop()
    refuses_all(app, "stopped", "stopped")
    kit.start()
    kit.wait_ready(10)
    assert [ask(app, path).status_code for path in PATHS] == [200] * len(PATHS)


def test_while_it_joins_it_works_and_is_not_ready(kits: MemoryKits) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow(call: Callable[[], Any]) -> Any:
        asked.set()
        assert go_on.wait(10)
        return call()

    def wrap(store: Any) -> FaultyStore:
        faulty = FaultyStore(store)
        faulty.next("range", slow)
        return faulty

    kits.wrap = wrap
    kit = kits.kit()
    app = kit.asgi()
    starting = threading.Thread(target=kit.start)
    starting.start()
    try:
        assert asked.wait(10)
        assert get(app, "/health") == {"alive": True, "state": "joining", "reasons": []}
        found = ask(app, "/ready")
        assert (found.status_code, found.json()["state"]) == (503, "joining")
        found = ask(app, "/cluster")
        assert (found.status_code, found.json()["error"]) == (503, "not_running")
        assert "starting" in found.json()["message"]
        assert ask(app, "/metrics").status_code == 200
    finally:
        go_on.set()
        starting.join(10)
    kit.wait_ready(10)
    assert get(app, "/ready")["ready"]


def test_a_fenced_node_works_is_not_ready_and_still_tells_what_it_knows(kits: MemoryKits) -> None:
    kit = kits.started()
    app = kit.asgi()
    snapshot_of(kit).session.lose()
    found = ask(app, "/ready")
    assert found.status_code == 503
    assert "fenced" in found.json()["reasons"][0]
    assert found.json()["fencing_in_seconds"] == 0
    assert get(app, "/health")["alive"]
    assert get(app, "/cluster")["partitions"] == PARTITIONS


def test_a_defect_is_told_to_who_asks_for_liveness(kits: MemoryKits) -> None:
    kit = kits.started()
    app = kit.asgi()

    def defect(*args: object) -> None:
        raise ZeroDivisionError("a defect")

    runner = kit._running().runner
    runner._machine.changed = defect  # type: ignore[method-assign,assignment]  # to break it
    kits.kit("b").start()
    assert runner.ended.result(10) is None
    refuses_all(app, "stopped", "stopped")


# --- what is told ---------------------------------------------------------------------------------


def test_every_path_answers_with_all_that_is_documented(kits: MemoryKits) -> None:
    app = kits.started(labels={"rack": "7"}, services={"http": "10.0.0.1:80"}, zone="eu").asgi()

    for path, schema in documented().items():
        check(schema, get(app, path.replace("{id}", "partition-3")))


@pytest.mark.repository
def test_the_examples_in_the_documents_are_whole() -> None:
    _, *parts = re.split(r"^### `(.*)`\n", (ROOT / "docs/admin.md").read_text(), flags=re.M)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    assert set(sections) == set(DOCUMENTED)
    for path, schema in documented().items():
        (example,) = re.findall(r"^```json\n(.*?)^```$", sections[path], re.M | re.S)
        check(schema, json.loads(example))


@pytest.mark.repository
def test_every_metric_is_in_the_documents(kits: MemoryKits) -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    for line in ask(kits.started().asgi(), "/metrics").text.splitlines():
        if line.startswith("# TYPE ") and not line.split()[2].endswith("_created"):
            assert f"| `{line.split()[2]}` | {line.split()[3]} |" in text, line


def test_the_cluster_and_its_nodes(kits: MemoryKits) -> None:
    a, b = kits.started("a", labels={"rack": "7"}), kits.started("b", zone="eu", weight=50)
    a.wait_converged(10)
    app = a.asgi()
    # Receipts may still come between the two answers.
    eventually(lambda: get(app, "/cluster")["revision"] == a.cluster.revision, "the same revision")
    found = get(app, "/cluster")
    assert found["cluster"] == "c"
    assert (found["node"], found["nodes"], found["partitions"]) == ("a", 2, PARTITIONS)
    nodes = get(app, "/nodes")
    assert (nodes["total"], nodes["next"]) == (2, None)
    first, second = nodes["nodes"]
    assert (first["id"], first["labels"], first["healthy"]) == ("a", {"rack": "7"}, True)
    assert (second["id"], second["zone"], second["weight"]) == ("b", "eu", 50)
    assert first["primary_of"] + second["primary_of"] == PARTITIONS
    assert first["primary_of"] == len(a.my_partitions(role="primary"))
    assert second["replica_of"] == len(b.my_partitions(role="replica"))
    spread = get(app, "/partitions/stats")
    assert spread["spread"]["total"] == {"min": PARTITIONS, "mean": PARTITIONS, "max": PARTITIONS}
    assert [n["primary"] for n in spread["nodes"]] == [first["primary_of"], second["primary_of"]]
    assert spread["spread"]["primary"]["mean"] == PARTITIONS / 2
    health = get(app, "/health/detailed")
    assert (health["status"], health["healthy_nodes"]) == ("healthy", 2)
    assert health["node"]["ready"]
    assert health["stats"]["primaries"] == first["primary_of"]


def test_one_partition(kits: MemoryKits) -> None:
    kit = kits.started()
    found = get(kit.asgi(), "/partitions/partition-3")
    assert found["primary"] == {"id": "a", "address": "a.test:8000"}
    assert found["here"] == {"node": "a", "role": "primary", "ready": True}
    assert found["epoch"] == kit.partition("partition-3").epoch


def test_a_failing_health_check_makes_its_node_unhealthy_in_every_list(kits: MemoryKits) -> None:
    kit = kits.started()
    app = kit.asgi()
    assert get(app, "/nodes")["nodes"][0]["healthy"]
    kit.add_health_check("disk", lambda: False, interval=0.05)
    eventually(lambda: kit.health().unhealthy_nodes == 1, "the check has failed")
    assert not get(app, "/nodes")["nodes"][0]["healthy"]
    assert get(app, "/health/detailed")["unhealthy_node_ids"] == ["a"]


# --- pages ----------------------------------------------------------------------------------------


def walk(app: ASGIApplication, path: str, name: str, limit: int) -> list[list[str]]:
    pages, cursor = [], ""
    while True:
        found = get(app, f"{path}?limit={limit}{cursor}")
        pages.append([entry["id"] for entry in found[name]])
        if found["next"] is None:
            return pages
        cursor = f"&cursor={found['next']}"


@pytest.mark.parametrize("limit", [1, 5, 8, 16, 1000])
def test_pages_have_every_partition_once_and_in_order(kits: MemoryKits, limit: int) -> None:
    pages = walk(kits.started().asgi(), "/partitions", "partitions", limit)
    assert [i for page in pages for i in page] == [f"partition-{i}" for i in range(PARTITIONS)]
    assert {len(page) for page in pages[:-1]} <= {limit}
    assert pages[-1]


def test_pages_of_nodes_go_on_behind_one_that_has_left(kits: MemoryKits) -> None:
    kit, gone = kits.started("a"), kits.started("b")
    kits.started("c")
    app = kit.asgi()
    eventually(lambda: len(kit.cluster.nodes) == 3, "all have joined")
    assert walk(app, "/nodes", "nodes", 1) == [["a"], ["b"], ["c"]]
    gone.stop()
    eventually(lambda: len(kit.cluster.nodes) == 2, "one has left")
    assert get(app, "/nodes?cursor=b")["nodes"][0]["id"] == "c"
    assert get(app, "/nodes?cursor=zzz") == get(app, "/nodes?cursor=c")
    assert get(app, f"/partitions?cursor=partition-{PARTITIONS}")["partitions"] == []


# --- ETags ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/cluster", "/nodes", "/partitions?limit=3"])
def test_an_answer_that_is_known_is_not_sent_again(kits: MemoryKits, path: str) -> None:
    kit = kits.started()
    app = kit.asgi()
    kit.wait_converged(10)
    found = ask(app, path)
    tag = found.headers["etag"]
    assert found.headers["cache-control"] == "no-cache"
    assert tag.startswith(f'"{kit.cluster.revision}-')
    for known in (tag, f"W/{tag}", f'"x", {tag}', "*", f'"a,b" ,W/{tag}'):
        again = ask(app, path, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag), known
    for other in ('"x"', tag[:-1], "", "W/*", tag.strip('"')):
        assert ask(app, path, headers={"If-None-Match": other}).status_code == 200, other
    kits.started("b")
    eventually(lambda: len(kit.cluster.nodes) == 2, "it has joined")
    newer = ask(app, path, headers={"If-None-Match": tag})
    assert newer.status_code == 200
    assert newer.headers["etag"] != tag


# --- hostile and mistaken requests ----------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", PATHS)
def test_nothing_but_get_and_head_is_allowed(kits: MemoryKits, method: str, path: str) -> None:
    found = ask(kits.kit().asgi(), path, method)
    assert found.status_code == 405
    assert set(found.headers["allow"].replace(" ", "").split(",")) == {"GET", "HEAD"}
    assert found.json()["error"] == "method_not_allowed"


def test_head_is_get_without_a_body(kits: MemoryKits) -> None:
    app = kits.started().asgi()
    for path in (*PATHS, "/nothing"):
        head, full = ask(app, path, "HEAD"), ask(app, path)
        assert head.content == b""
        assert head.status_code == full.status_code
        assert head.headers["content-type"] == full.headers["content-type"]
        if path == "/cluster":
            assert head.headers["content-length"] == full.headers["content-length"]


BAD = [
    "/partitions?limit=0",
    "/partitions?limit=-1",
    "/partitions?limit=1001",
    "/partitions?limit=10000000000000000000000",
    "/partitions?limit=1e3",
    "/partitions?limit=",
    "/partitions?limit=%D9%A1",  # an Arabic 1
    "/partitions?limit=1&limit=2",
    "/partitions?cursor=",
    "/partitions?cursor=user:42",
    "/partitions?cursor=partition-01",
    "/partitions?cursor=partition--1",
    "/partitions?cursor=partition-" + "9" * 5000,
    "/partitions?cursor=partition-1%00",
    "/nodes?limit=no",
    "/nodes?cursor=",
    "/nodes?cursor=" + "x" * 2000,
    "/nodes?cursor=a&cursor=b",
]
UNKNOWN = [
    "/",
    "/nodes/",
    "/cluster/",
    "/partitions/",
    "/partitions/user:42",
    f"/partitions/partition-{PARTITIONS}",
    "/partitions/partition-00",
    "/partitions/partition-" + "9" * 5000,
    "/partitions/%F0%9F%92%A5",
    "/partitions/%ED%B2%80",
    "/partitions/partition-1%2Fx",
    "/partitions/..%2F..%2Fetc%2Fpasswd",
    "/ready%00",
    "//ready",
    "/openapi.json/x",
]


@pytest.mark.parametrize(
    "path,status", [*((path, 400) for path in BAD), *((path, 404) for path in UNKNOWN)]
)
def test_what_cannot_be_is_refused_and_not_repeated(
    kits: MemoryKits, path: str, status: int
) -> None:
    found = ask(kits.started().asgi(), path)
    assert found.status_code == status
    assert set(found.json()) == {"error", "message"}
    assert len(found.content) < 300


@pytest.mark.parametrize(
    "query", ["?a=b", "?limit=3&x", "?%FF=%FF", "?cursor=%F0%9F%92%A5", "?;=&&&"]
)
def test_what_means_nothing_does_no_harm(kits: MemoryKits, query: str) -> None:
    assert get(kits.started().asgi(), f"/nodes{query}")["total"] == 1


def test_names_in_any_language_come_through(kits: MemoryKits) -> None:
    app = kits.started("Knoten-Ä 7💥", address="a:1", labels={"Größe": 'a"b\\c'}).asgi()
    (node,) = get(app, "/nodes")["nodes"]
    assert node["id"] == "Knoten-Ä 7💥"
    assert node["labels"] == {"Größe": 'a"b\\c'}
    assert 'node="Knoten-Ä 7💥"' in ask(app, "/metrics").text


# --- metrics --------------------------------------------------------------------------------------


def metrics(app: ASGIApplication) -> dict[tuple[str, ...], float]:
    """By name and labels, but for those of the kit."""
    found = ask(app, "/metrics")
    assert found.status_code == 200
    assert found.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *(v for k, v in sample.labels.items() if k not in ("cluster", "node"))): (
            sample.value
        )
        for family in text_string_to_metric_families(found.text)
        for sample in family.samples
    }


def test_metrics_have_the_node_the_cluster_and_its_hooks(kits: MemoryKits) -> None:
    kit = kits.kit()

    @kit.on_node_join(name="greet")
    def greet(event: NodeJoinEvent) -> None: ...

    app = kit.asgi()
    kit.start()
    kit.wait_converged(10)
    ended = ("clusterkit_hook_duration_seconds_count", "greet", "node_join", "ok")
    eventually(lambda: metrics(app).get(ended) == 1, "the hook is counted")
    found = metrics(app)
    assert found["clusterkit_nodes_by_state", "active"] == 1
    assert found["clusterkit_nodes_by_state", "unhealthy"] == 0
    assert found["clusterkit_partitions", "primary"] == PARTITIONS
    assert found["clusterkit_cluster_partitions",] == PARTITIONS
    assert found["clusterkit_unowned_partitions",] == 0
    assert found["clusterkit_view_revision",] == kit.cluster.revision
    assert found["clusterkit_view_age_seconds",] >= 0
    assert 0 < found["clusterkit_fencing_seconds",] <= 10
    assert found["clusterkit_hooks_queued",] == 0
    assert found["clusterkit_watch_restarts_total",] == 0


def test_an_application_that_is_made_late_counts_from_then_on(kits: MemoryKits) -> None:
    kit = kits.kit()
    joins: list[str] = []

    @kit.on_node_join(name="greet")
    def greet(event: NodeJoinEvent) -> None:
        joins.append(event.node.id)

    kit.start()
    eventually(lambda: joins == ["a"], "it has seen itself")
    kit.wait_ready(10)
    app, other = kit.asgi(), kit.asgi()
    kits.started("b")
    ended = ("clusterkit_hook_duration_seconds_count", "greet", "node_join", "ok")
    eventually(lambda: metrics(app).get(ended) == 1, "one hook is counted")
    assert metrics(other)[ended] == 1
    assert not [r for r in metrics(app).values() if r != r]


def test_the_time_of_a_keep_alive_is_told_once_there_was_one(kits: MemoryKits) -> None:
    kit = kits.started(lease_ttl=2)
    app = kit.asgi()
    eventually(lambda: kit.stats().keep_alive is not None, "the lease was renewed")
    assert 0 <= metrics(app)["clusterkit_keep_alive_seconds",] < 5
    assert get(app, "/health/detailed")["stats"]["keep_alive_seconds"] is not None


# --- what it needs, and when ----------------------------------------------------------------------


def test_the_document_tells_where_it_is_mounted(kits: MemoryKits) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    app = Starlette(routes=[Mount("/clusterkit", kits.started().asgi())])
    assert get(app, "/clusterkit/openapi.json")["servers"] == [{"url": "/clusterkit"}]
    assert get(app, "/clusterkit/ready")["ready"]
    assert ask(app, "/clusterkit/nothing").json()["error"] == "not_found"


def test_both_faces_have_it_and_it_is_one_kit(kits: MemoryKits) -> None:
    from clusterkit import ClusterKit as AsyncKit

    kit = AsyncKit(node_id="a", address="a.test:1", environ={})
    app = kit.asgi()
    with kit.blocking:
        kit.blocking.wait_ready(10)
        assert get(app, "/ready")["ready"]
        assert get(kit.blocking.asgi(), "/cluster")["node"] == "a"


def run(program: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_nothing_of_it_is_imported_before_it_is_used() -> None:
    found = run(
        "import sys, json, clusterkit, clusterkit.sync\n"
        "clusterkit.ClusterKit(address='a:1', admin=':1', environ={})\n"
        "extra = {'starlette', 'uvicorn', 'prometheus_client', 'httpx'}\n"
        "print(json.dumps({'loaded': sorted(extra & set(sys.modules))}))"
    )
    assert found == {"loaded": []}


@pytest.mark.parametrize("missing", ["starlette", "prometheus_client", "uvicorn"])
@pytest.mark.parametrize("way", ["asgi", "option"])
def test_a_missing_extra_is_one_error_that_says_what_to_install(missing: str, way: str) -> None:
    use = {"asgi": "ck.asgi()", "option": "ck.start()"}[way]
    found = run(
        f"import sys, json\nsys.modules[{missing!r}] = None\n"
        "from clusterkit import ClusterKitError\n"
        "from clusterkit.sync import ClusterKit\n"
        "ck = ClusterKit(address='a:1', endpoints='127.0.0.1:1', admin=':1', environ={})\n"
        f"try: {use}\n"
        "except ClusterKitError as e: print(json.dumps({'error': str(e)}))\n"
        "else: print(json.dumps({'error': None}))"
    )
    if (missing, way) == ("uvicorn", "asgi"):
        assert found["error"] is None, "whoever has a server needs no uvicorn"
        return
    assert f"needs the package {missing!r}" in found["error"]
    assert "pip install 'clusterkit[admin]'" in found["error"]
    assert {"asgi": "ck.asgi()", "option": "admin=':1'"}[way].replace("':1'", "'127.0.0.1:1'") in (
        found["error"]
    )


def test_a_run_that_cannot_be_put_together_serves_nothing(kits: MemoryKits) -> None:
    kit = kits.kit(admin="127.0.0.1:1", address=None)
    with pytest.raises(ClusterKitError, match="address"):
        kit.start()
