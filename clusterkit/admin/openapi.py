"""``/openapi.json``: what the handlers answer, written by hand and held to them by tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from .._version import __version__
from .exchange import LIMIT, MOST

Schema: TypeAlias = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_TEXT_OR_NONE: Final[Schema] = {"type": ["string", "null"]}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_SECONDS: Final[Schema] = {"type": "number", "minimum": 0}
_YES_OR_NO: Final[Schema] = {"type": "boolean"}
_TEXTS: Final[Schema] = {"type": "object", "additionalProperties": _TEXT}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _object(**properties: Schema) -> Schema:
    """All of them are always there."""
    return {"type": "object", "properties": properties, "required": [*properties]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_STATE: Final[Schema] = {
    "enum": ["new", "joining", "joined", "draining", "fenced", "removed", "stopped"]
}
_SPREAD: Final = _object(min=_COUNT, mean={"type": "number", "minimum": 0}, max=_COUNT)
_REFERENCE: Final = _object(id=_TEXT, address=_TEXT)

SCHEMAS: Final[Mapping[str, Schema]] = {
    "Error": _object(error=_TEXT, message=_TEXT),
    "Alive": _object(alive=_YES_OR_NO, state=_STATE, reasons=_list(_TEXT)),
    "Readiness": _object(
        ready=_YES_OR_NO,
        reasons=_list(_TEXT),
        state=_STATE,
        node=_TEXT_OR_NONE,
        fencing_in_seconds=_SECONDS,
    ),
    "Health": _object(
        status={"enum": ["healthy", "degraded", "critical"]},
        healthy_nodes=_COUNT,
        unhealthy_nodes=_COUNT,
        total_nodes=_COUNT,
        unhealthy_node_ids=_list(_TEXT),
        reasons=_list(_TEXT),
        node=_ref("Readiness"),
        stats=_ref("Stats"),
    ),
    "Stats": _object(
        revision=_COUNT,
        view_age_seconds=_SECONDS,
        rebalances=_COUNT,
        hooks_running=_COUNT,
        hooks_queued=_COUNT,
        hook_queue_age_seconds=_SECONDS,
        hooks_stuck=_COUNT,
        hook_failures=_COUNT,
        owed=_COUNT,
        watch_restarts=_COUNT,
        divergences=_COUNT,
        keep_alive_seconds={"type": ["number", "null"], "minimum": 0},
        primaries=_COUNT,
        replicas=_COUNT,
    ),
    "Cluster": _object(
        cluster=_TEXT,
        node=_TEXT,
        revision=_COUNT,
        epoch=_COUNT,
        nodes=_COUNT,
        partitions=_COUNT,
        replication_factor=_COUNT,
        key_hash=_TEXT_OR_NONE,
    ),
    "Node": _object(
        id=_TEXT,
        address=_TEXT,
        services=_TEXTS,
        zone=_TEXT_OR_NONE,
        weight=_COUNT,
        labels=_TEXTS,
        incarnation=_TEXT,
        state=_TEXT,
        healthy=_YES_OR_NO,
        joined_at={"type": "string", "format": "date-time"},
        primary_of=_COUNT,
        replica_of=_COUNT,
    ),
    "Nodes": _object(revision=_COUNT, total=_COUNT, nodes=_list(_ref("Node")), next=_TEXT_OR_NONE),
    "Row": _object(id=_TEXT, primary=_TEXT_OR_NONE, replicas=_list(_TEXT)),
    "Partitions": _object(
        revision=_COUNT,
        epoch=_COUNT,
        total=_COUNT,
        partitions=_list(_ref("Row")),
        next=_TEXT_OR_NONE,
    ),
    "Partition": _object(
        id=_TEXT,
        index=_COUNT,
        epoch=_COUNT,
        primary={"anyOf": [_REFERENCE, {"type": "null"}]},
        replicas=_list(_REFERENCE),
        here=_object(node=_TEXT, role={"enum": ["primary", "replica", None]}, ready=_YES_OR_NO),
    ),
    "Balance": _object(
        revision=_COUNT,
        epoch=_COUNT,
        partitions=_COUNT,
        replication_factor=_COUNT,
        unowned=_COUNT,
        spread=_object(primary=_SPREAD, replica=_SPREAD, total=_SPREAD),
        nodes=_list(_object(id=_TEXT, primary=_COUNT, replica=_COUNT, total=_COUNT)),
    ),
}

_PARTITION_ID: Final = "^partition-(0|[1-9][0-9]{0,6})$"


def _parameter(name: str, where: str, text: str, schema: Schema) -> Schema:
    return {
        "name": name,
        "in": where,
        "description": text,
        "required": where == "path",
        "schema": schema,
    }


_IF_NONE_MATCH: Final = _parameter(
    "If-None-Match", "header", "The ETag of an answer that is known already.", _TEXT
)
_PAGE_SIZE: Final = _parameter(
    "limit",
    "query",
    "How many entries, at most.",
    {"type": "integer", "minimum": 1, "maximum": MOST, "default": LIMIT},
)


def _cursor(schema: Schema) -> Schema:
    text = "What the page before has as 'next'; left out for the first page."
    return _parameter("cursor", "query", text, schema)


def _json(text: str, schema: str) -> Schema:
    return {"description": text, "content": {"application/json": {"schema": _ref(schema)}}}


def _get(
    summary: str,
    schema: str,
    *parameters: Schema,
    tagged: bool = False,
    unavailable: str | None = "Error",
    **more: Schema,
) -> Schema:
    """A path. ``more`` are further answers, by ``_`` and their status."""
    ok = _json(summary, schema)
    responses: dict[str, Schema] = {"200": ok}
    given = [*parameters]
    if tagged:
        given.append(_IF_NONE_MATCH)
        tag = {"ETag": {"description": "Of this revision.", "required": True, "schema": _TEXT}}
        ok["headers"] = tag
        responses["304"] = {
            "description": "The answer that is known is the newest.",
            "headers": tag,
        }
    responses |= {status.removeprefix("_"): found for status, found in more.items()}
    if unavailable is not None:
        responses["503"] = _json("This node cannot say so now.", unavailable)
    return {"get": {"summary": summary, "parameters": given, "responses": responses}}


_BAD: Final = _json("A parameter that cannot be.", "Error")

PATHS: Final[Mapping[str, Schema]] = {
    "/health": _get("Whether the kit's process works.", "Alive", unavailable="Alive"),
    "/health/detailed": _get("The health of the cluster, seen from this node.", "Health"),
    "/ready": _get("Whether this node should get traffic.", "Readiness", unavailable="Readiness"),
    "/cluster": _get("The cluster in short.", "Cluster", tagged=True),
    "/nodes": _get(
        "The members, in the order of their ids.",
        "Nodes",
        _PAGE_SIZE,
        _cursor({"type": "string", "minLength": 1, "maxLength": 1024}),
        tagged=True,
        _400=_BAD,
    ),
    "/partitions": _get(
        "The partitions, in the order of their indexes.",
        "Partitions",
        _PAGE_SIZE,
        _cursor({"type": "string", "pattern": _PARTITION_ID}),
        tagged=True,
        _400=_BAD,
    ),
    "/partitions/stats": _get("How many partitions each member holds.", "Balance"),
    "/partitions/{id}": _get(
        "One partition.",
        "Partition",
        _parameter(
            "id", "path", "Its id, never a key.", {"type": "string", "pattern": _PARTITION_ID}
        ),
        _404=_json("There is no such partition.", "Error"),
    ),
    "/metrics": {
        "get": {
            "summary": "Metrics of this node, for Prometheus.",
            "parameters": [],
            "responses": {
                "200": {
                    "description": "Prometheus' text format.",
                    "content": {"text/plain": {"schema": _TEXT}},
                },
                "503": _json("This node cannot say so now.", "Error"),
            },
        }
    },
    "/openapi.json": {
        "get": {
            "summary": "This document.",
            "parameters": [],
            "responses": {
                "200": {
                    "description": "An OpenAPI document.",
                    "content": {"application/json": {"schema": {"type": "object"}}},
                }
            },
        }
    },
}


def document(root_path: str) -> Mapping[str, Any]:
    """The document for an application that is mounted at ``root_path``."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ClusterKit node",
            "version": __version__,
            "description": "What one node knows of its cluster. Read only: GET and HEAD.",
        },
        "servers": [{"url": root_path or "/"}],
        "paths": PATHS,
        "components": {"schemas": SCHEMAS},
    }
