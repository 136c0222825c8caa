"""The OpenAPI document and the handlers say the same, whatever schemathesis thinks of to ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.schemas import OpenApiSchema

from clusterkit.admin.openapi import PATHS, SCHEMAS, document
from tests.support.admin import MemoryKits

MODES = {"sound": GenerationMode.POSITIVE, "unsound": GenerationMode.NEGATIVE}
# A text is never unsound, so this is about the paths that demand more of a parameter.
UNSOUND = ("/nodes", "/partitions", "/partitions/{id}")
CASES = [*((path, "sound") for path in PATHS), *((path, "unsound") for path in UNSOUND)]
# A fixed seed: a red build must come from its commit.
BOUNDED = settings(
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def api() -> Iterator[OpenApiSchema]:
    """Of a kit that has joined, as it tells it itself."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        kits = MemoryKits(monkeypatch)
        app = kits.started().asgi()
        yield schemathesis.openapi.from_asgi("/openapi.json", app)
        kits.close()


@pytest.mark.parametrize("path,mode", CASES)
def test_what_is_answered_is_what_is_documented(api: OpenApiSchema, path: str, mode: str) -> None:
    operation = api[path]["GET"]
    statuses: set[int] = set()

    @given(case=operation.as_strategy(generation_mode=MODES[mode]))
    @BOUNDED
    def check(case: schemathesis.Case[Any]) -> None:
        response = case.call()
        statuses.add(response.status_code)
        case.validate_response(response)

    check()
    assert min(statuses) < 400 or mode == "unsound"
    assert max(statuses) < 500, "documented are only those of a kit that does not run"
    assert statuses <= {int(status) for status in PATHS[path]["get"]["responses"]}


def test_the_document_is_whole() -> None:
    made = document("")
    assert made["servers"] == [{"url": "/"}]
    text = repr(made["paths"]) + repr(made["components"])
    for name in SCHEMAS:
        assert f"'#/components/schemas/{name}'" in text, f"{name} is used nowhere"
    assert text.count("'$ref'") == text.count("'#/components/schemas/")
