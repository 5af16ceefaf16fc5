"""POST /tokenize and POST /detokenize"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.responses import Response

from m2serve.errors import RequestError
from m2serve.server.errors import POST_ERRORS
from m2serve.server.prompting import chat_prompt
from m2serve.server.protocol import ChatFields, DetokenizeRequest, TokenizeRequest
from m2serve.server.protocol_ignored import refuse_unknown
from m2serve.server.responses import json_response
from m2serve.server.state import ServerState
from m2serve.server.wire import DetokenizedText, Tokens


def tokens_router(state: ServerState, route_class: type[APIRoute]) -> APIRouter:
    router = APIRouter(route_class=route_class)

    @router.post("/tokenize", responses=POST_ERRORS, response_model=None)
    async def tokenize(body: TokenizeRequest) -> Response:
        """Token ids of `prompt`, or of what `messages` become."""
        state.check_model(body.model)
        refuse_unknown(body.unknown_fields)
        ids = await asyncio.to_thread(_ids, state, body)
        strings = [state.tokenizer.decode([id]) for id in ids] if body.return_token_strs else None
        return json_response(Tokens(len(ids), state.engine.info.max_model_len, ids, strings))

    @router.post("/detokenize", responses=POST_ERRORS, response_model=None)
    async def detokenize(body: DetokenizeRequest) -> Response:
        """Text of token ids, control tokens included."""
        state.check_model(body.model)
        refuse_unknown(body.unknown_fields)
        vocab_size = state.engine.info.vocab_size
        for id in (min(body.tokens, default=0), max(body.tokens, default=0)):
            if not 0 <= id < vocab_size:
                raise RequestError(
                    f"tokens holds {str(id)[:20]}; ids from 0 to {vocab_size - 1} exist",
                    param="tokens",
                )
        text = await asyncio.to_thread(state.tokenizer.decode, body.tokens)
        return json_response(DetokenizedText(text))

    return router


def _ids(state: ServerState, body: TokenizeRequest) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("either prompt or messages is needed", param="prompt")
    if body.prompt is not None:
        return state.tokenizer.encode(body.prompt, allow_control=True)
    fields = ChatFields.model_construct(
        messages=body.messages,
        tools=body.tools,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        chat_template_kwargs=body.chat_template_kwargs,
    )
    return chat_prompt(fields, state.tokenizer, state.config.model_identity).token_ids
