"""GET /v1/models and GET /v1/models/{id}; names may hold slashes."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter
from starlette.responses import Response

from m2serve.server.errors import GET_ERRORS
from m2serve.server.responses import json_response
from m2serve.server.state import ServerState
from m2serve.server.wire import Model, ModelList


def models_router(state: ServerState) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models", responses=GET_ERRORS, response_model=None)
    async def list_models() -> Response:
        """All names of the served model."""
        return json_response(
            ModelList(data=[_model(state, name) for name in state.config.served_model_names])
        )

    @router.get("/v1/models/{model:path}", responses=GET_ERRORS, response_model=None)
    async def retrieve_model(model: str) -> Response:
        """One name of the served model."""
        state.check_model(model)
        return json_response(_model(state, model))

    return router


def _model(state: ServerState, name: str) -> Model:
    """`max_model_len` is null until the engine is ready."""
    ready = state.engine.health().ready
    return Model(
        id=name,
        created=state.created,
        root=state.config.model_name,
        max_model_len=state.engine.info.max_model_len if ready else None,
        default_sampling=asdict(state.config.default_sampling),
    )
