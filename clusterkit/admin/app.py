"""The HTTP application of a kit: what is answered at which path. Read only, and never blocks.

Every handler looks at one snapshot, as lookups do, so it may run on the application's own event
loop. What is paged or tagged is made from that one snapshot and cannot be torn by a new revision.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .._asgi import ASGIApplication, Message, Receive, Scope, Send
from .._base import KitBase
from .._compose import Run
from ..core.hashing import partition_id, partition_index
from ..engine.snapshot import Snapshot
from ..errors import KitStateError, UnknownPartitionError
from ..model import KitState
from . import views
from .exchange import RefusedError, answer, page_of, tagged
from .openapi import document
from .prometheus import PrometheusMetrics

Handler = Callable[[Request], Awaitable[Response]]


class Admin:
    """What a kit tells over HTTP, for any number of servers.

    Args:
        kit: The kit. It need not have been started.

    Attributes:
        metrics: What collects the measurements behind ``/metrics``.
    """

    def __init__(self, kit: KitBase) -> None:
        self._kit = kit
        self._registry = CollectorRegistry()
        self.metrics = PrometheusMetrics(self._registry)

    def application(self) -> ASGIApplication:
        """The ASGI application."""
        handlers: dict[str, Handler] = {
            "/health": self._health,
            "/health/detailed": self._health_detailed,
            "/ready": self._ready,
            "/cluster": self._cluster,
            "/nodes": self._nodes,
            "/partitions": self._partitions,
            "/partitions/stats": self._balance,
            "/partitions/{id}": self._partition,
            "/metrics": self._metrics,
            "/openapi.json": self._openapi,
        }
        app = Starlette(
            routes=[Route(path, handler, methods=["GET"]) for path, handler in handlers.items()],
            exception_handlers={
                RefusedError: _refused,
                KitStateError: _unavailable,
                HTTPException: _no_route,
            },
        )
        # "/nodes/" is no path of ours: a redirect would name the host that the request claims.
        app.router.redirect_slashes = False
        return _without_body_of_head(app)

    # -- the process -------------------------------------------------------------------------

    async def _health(self, request: Request) -> Response:
        run = self._kit._run
        alive = run is not None and run.runner.alive
        state = self._kit.state
        reasons = [] if alive else [f"the kit is {state}, and nothing of it runs"]
        body = {"alive": alive, "state": str(state), "reasons": reasons}
        return answer(body, 200 if alive else 503)

    async def _ready(self, request: Request) -> Response:
        run = self._kit._run
        found = self._kit.readiness()
        body = views.readiness_document(
            None if run is None else run.node_id, self._kit.state, found
        )
        return answer(body, 200 if found.ready else 503)

    async def _health_detailed(self, request: Request) -> Response:
        run, snapshot = self._look()
        return answer(
            views.health_document(
                run.node_id, run.runner.state, snapshot.health, self._kit.readiness(), run.stats()
            )
        )

    async def _metrics(self, request: Request) -> Response:
        self._running()
        return Response(
            generate_latest(self._registry),
            headers={"Content-Type": CONTENT_TYPE_LATEST, "Cache-Control": "no-store"},
        )

    # -- the cluster -------------------------------------------------------------------------

    async def _cluster(self, request: Request) -> Response:
        run, snapshot = self._look()
        return tagged(
            request,
            snapshot,
            f"{run.cluster}/{run.node_id}",
            lambda: views.cluster_document(run.cluster, run.node_id, snapshot),
        )

    async def _nodes(self, request: Request) -> Response:
        page = page_of(request)
        run, snapshot = self._look()

        def make() -> views.Document:
            nodes = snapshot.view.nodes
            ids = [*nodes]
            start = 0 if page.cursor is None else bisect_right(ids, page.cursor)
            places, last = page.cut(start, len(ids))
            balance = run.balance(snapshot)
            unhealthy = frozenset(snapshot.health.unhealthy_node_ids)
            return {
                "revision": snapshot.view.revision,
                "total": len(ids),
                "nodes": [
                    views.node_document(nodes[ids[place]], balance, unhealthy) for place in places
                ],
                "next": None if last is None else ids[last],
            }

        return tagged(request, snapshot, run.cluster, make)

    async def _partitions(self, request: Request) -> Response:
        page = page_of(request)
        start = 0
        if page.cursor is not None:
            before = partition_index(page.cursor)
            if before is None:
                raise RefusedError(
                    400, "bad_cursor", "cursor must be a partition's id, such as partition-99"
                )
            start = before + 1
        run, snapshot = self._look()

        def make() -> views.Document:
            rows = snapshot.rows
            places, last = page.cut(start, len(rows))
            return {
                "revision": snapshot.view.revision,
                "epoch": snapshot.epoch,
                "total": len(rows),
                "partitions": [views.row_document(place, rows[place]) for place in places],
                "next": None if last is None else partition_id(last),
            }

        return tagged(request, snapshot, run.cluster, make)

    async def _partition(self, request: Request) -> Response:
        run, snapshot = self._look()
        index = partition_index(request.path_params["id"])
        if index is None or index >= len(snapshot.rows):
            raise RefusedError(
                404,
                "no_such_partition",
                f"there is no such partition: the cluster has {len(snapshot.rows)}, "
                "partition-0 and so on; an application's key is no partition",
            )
        partition = snapshot.view.partitions[index]
        return answer(
            views.partition_document(partition, run.node_id, ready=self._is_ready(partition.id))
        )

    def _is_ready(self, partition_id: str) -> bool:
        try:
            return self._kit.is_ready(partition_id)
        except UnknownPartitionError:  # another run, on a cluster that has fewer
            return False

    async def _balance(self, request: Request) -> Response:
        run, snapshot = self._look()
        return answer(views.balance_document(snapshot, run.balance(snapshot)))

    async def _openapi(self, request: Request) -> Response:
        return answer(document(request.scope.get("root_path", "")))

    # -- where it comes from -----------------------------------------------------------------

    def _running(self) -> Run:
        run = self._kit._running()
        if run.runner.state is KitState.STOPPED:
            raise KitStateError(
                "the kit has stopped: this node is no member any more", state=KitState.STOPPED
            )
        return run

    def _look(self) -> tuple[Run, Snapshot]:
        """The run, and its newest snapshot.

        Raises:
            KitStateError: There is none: before the start, in its first moments, after the stop.
        """
        run = self._running()
        snapshot = run.runner.snapshot
        if snapshot is None:
            raise KitStateError(
                "the kit is starting and knows nothing of the cluster yet", state=KitState.JOINING
            )
        return run, snapshot


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return error.response()


async def _unavailable(request: Request, error: Exception) -> Response:
    return RefusedError(503, "not_running", str(error)).response()


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {
        404: "there is nothing at this path; /openapi.json has all that there is",
        405: "this is read only: GET and HEAD",
    }.get(error.status_code, error.detail)
    name = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    return RefusedError(error.status_code, name, message, error.headers).response()


def _without_body_of_head(app: ASGIApplication) -> ASGIApplication:
    """Answers HEAD as GET, headers and all, but for the body; not every server sees to that."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        async def headers_only(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        is_head = scope["type"] == "http" and scope["method"] == "HEAD"
        await app(scope, receive, headers_only if is_head else send)

    return application
