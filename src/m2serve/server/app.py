"""The application: routes, middleware and error handlers put together."""

from __future__ import annotations

import time

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from m2serve import __version__
from m2serve.chat.tokenizer import Tokenizer
from m2serve.engine.client import EngineClient
from m2serve.errors import EngineDeadError, RequestError
from m2serve.server.admission import Admission
from m2serve.server.auth import ApiKeyAuth
from m2serve.server.config import ServerConfig
from m2serve.server.errors import response_for
from m2serve.server.generation import Generator
from m2serve.server.http_metrics import HttpMetrics
from m2serve.server.json_body import json_route
from m2serve.server.metrics import Metrics
from m2serve.server.responses import ClientLeftError
from m2serve.server.routes_chat import chat_router
from m2serve.server.routes_completions import completions_router
from m2serve.server.routes_models import models_router
from m2serve.server.routes_operations import operations_router
from m2serve.server.routes_tokens import tokens_router
from m2serve.server.running import RunningRequests
from m2serve.server.state import ServerState

PATHS = (
    "/health",
    "/metrics",
    "/openapi.json",
    "/ready",
    "/detokenize",
    "/tokenize",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/version",
)
CLIENT_CLOSED_REQUEST = 499


def create_app(
    config: ServerConfig,
    engine: EngineClient,
    tokenizer: Tokenizer,
    running: RunningRequests | None = None,
) -> FastAPI:
    """An ASGI application; starting and closing the engine is left to the caller.

    `running` lets the caller drain; see `run.py`.
    """
    if running is None:
        running = RunningRequests()
    state = _state(config, engine, tokenizer, running)
    app = FastAPI(
        title="m2serve",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    route_class = json_route(config.max_body_bytes, config.body_timeout_s)
    app.include_router(chat_router(state, route_class))
    app.include_router(completions_router(state, route_class))
    app.include_router(tokens_router(state, route_class))
    app.include_router(models_router(state))
    app.include_router(operations_router(state))
    for kind in (RequestError, EngineDeadError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer_error)
    app.add_exception_handler(ClientLeftError, _answer_nobody)
    # The middleware added last is the outermost.
    app.add_middleware(ApiKeyAuth, api_keys=config.api_keys)
    app.add_middleware(HttpMetrics, metrics=state.metrics, paths=PATHS)
    return app


def _state(
    config: ServerConfig, engine: EngineClient, tokenizer: Tokenizer, running: RunningRequests
) -> ServerState:
    metrics = Metrics(config.model_name, engine.stats)
    admission = Admission(
        config.max_num_queued_reqs, config.max_num_queued_tokens, metrics.record_rejection
    )
    return ServerState(
        config=config,
        engine=engine,
        tokenizer=tokenizer,
        generator=Generator(engine, admission, running, metrics),
        running=running,
        metrics=metrics,
        created=int(time.time()),
    )


async def _answer_error(request: Request, error: Exception) -> Response:
    return response_for(error)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
