"""What operators and their machines ask: /health, /ready, /metrics, /version."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from m2serve import __version__
from m2serve.server.errors import GET_ERRORS, error_response
from m2serve.server.responses import json_response
from m2serve.server.state import ServerState

METRICS_TYPE = "text/plain; version=1.0.0; charset=utf-8"


def operations_router(state: ServerState) -> APIRouter:
    router = APIRouter()

    @router.get("/health", responses=GET_ERRORS, response_model=None)
    async def health() -> Response:
        """200 while the engine is alive, busy or loading; 503 means: restart the server."""
        if state.engine.health().alive:
            return json_response({})
        return error_response(503, "The engine is not alive.", code="engine_dead")

    @router.get("/ready", responses=GET_ERRORS, response_model=None)
    async def ready() -> Response:
        """200 when requests are answered; else 503. The body says what the engine is doing."""
        health = state.engine.health()
        draining = state.running.draining
        body = {
            "state": "draining" if draining else health.state,
            "detail": "The server is shutting down." if draining else health.detail,
            "progress": health.progress,
        }
        return json_response(body, 200 if health.ready and not draining else 503)

    @router.get("/metrics", responses=GET_ERRORS, response_model=None)
    async def metrics() -> Response:
        """Prometheus text format, under vLLM's names."""
        return Response(state.metrics.text(), media_type=METRICS_TYPE)

    @router.get("/version", responses=GET_ERRORS, response_model=None)
    async def version() -> Response:
        return json_response({"version": __version__})

    return router
