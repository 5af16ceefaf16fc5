"""POST /v1/chat/completions"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from m2serve.chat.parser import OutputParser, ParserOptions
from m2serve.errors import RequestError
from m2serve.server.chat_answer import ChatOptions, answer_chunks, whole_answer
from m2serve.server.choice import Choice, StopRules
from m2serve.server.errors import POST_ERRORS
from m2serve.server.job import Job, check_fields, make_job
from m2serve.server.prompting import ChatPrompt, chat_prompt, output_limit
from m2serve.server.protocol import ChatCompletionRequest
from m2serve.server.responses import EventStream, json_response, until_client_leaves
from m2serve.server.sampling import sampling_params, stop_strings
from m2serve.server.state import ServerState
from m2serve.server.structured_output import behind_thinking, structured_output
from m2serve.server.wire import ChatCompletion

MAX_TOP_LOGPROBS = 20


def chat_router(state: ServerState, route_class: type[APIRoute]) -> APIRouter:
    router = APIRouter(route_class=route_class)

    @router.post("/v1/chat/completions", responses=POST_ERRORS, response_model=None)
    async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
        """Answer a conversation; streams server-sent events when `stream` is true.

        With `response_format` (or vLLM's `structured_outputs`) the content has that form, behind
        the thinking, which stays free. When tools are offered, too, the model may call one of them
        instead; its calls do not have the form.
        """
        check_fields(state, body)
        options = _options(body)
        offers_tools = _offers_tools(body.tool_choice)
        if body.stream:
            job = await _job(state, request, body, offers_tools)
            return EventStream(_stream(state, job, options), job.headers)
        answer, job = await until_client_leaves(
            request.receive, _whole(state, request, body, options, offers_tools)
        )
        return json_response(answer, headers=job.headers)

    return router


async def _whole(
    state: ServerState,
    request: Request,
    body: ChatCompletionRequest,
    options: ChatOptions,
    offers_tools: bool,
) -> tuple[ChatCompletion, Job]:
    job = await _job(state, request, body, offers_tools)
    async with state.generator.run(job.tracks) as generation:
        return await whole_answer(job, generation, state.tokenizer, options), job


async def _stream(
    state: ServerState, job: Job, options: ChatOptions
) -> AsyncGenerator[bytes, None]:
    async with state.generator.run(job.tracks) as generation:
        keep_alive_s = state.config.sse_keep_alive_s
        async for piece in answer_chunks(job, generation, state.tokenizer, options, keep_alive_s):
            yield piece


async def _job(
    state: ServerState, request: Request, body: ChatCompletionRequest, offers_tools: bool
) -> Job:
    prompt = await asyncio.to_thread(
        chat_prompt,
        body,
        state.tokenizer,
        state.config.model_identity,
        offer_tools=offers_tools,
    )
    form = await structured_output(body, state.engine.info)
    if form is not None:
        form = behind_thinking(
            form,
            state.tokenizer,
            in_thinking=prompt.starts_in_reasoning,
            may_call=offers_tools and bool(prompt.tools),
        )
    sampling = sampling_params(
        body,
        state.config.default_sampling,
        state.tokenizer,
        max_tokens=output_limit(
            _first_given(body.max_completion_tokens, body.max_tokens),
            len(prompt.token_ids),
            state.engine.info.max_model_len,
            prompt_param="messages",
        ),
        logprobs=_logprobs(body),
        structured_output=form,
    )
    stop = StopRules(
        stop_strings(body.stop), bool(body.include_stop_str_in_output), sampling.min_tokens
    )

    def new_choice() -> Choice:
        return Choice(
            state.tokenizer,
            _parser(state, body, prompt, offers_tools),
            stop,
            skip_special=body.skip_special_tokens is not False,
            max_tool_calls=1 if body.parallel_tool_calls is False else None,
        )

    return make_job(state, request, body, "chatcmpl", [prompt.token_ids], [sampling], new_choice)


def _parser(
    state: ServerState, body: ChatCompletionRequest, prompt: ChatPrompt, offers_tools: bool
) -> OutputParser:
    keep_think = state.config.reasoning_parser == "minimax_m2_append_think"
    options = ParserOptions(
        starts_in_reasoning=prompt.starts_in_reasoning,
        allow_tool_calls=offers_tools,
        allow_unknown_tools=state.config.allow_unknown_tools,
        keep_think=keep_think if body.reasoning_split is None else not body.reasoning_split,
    )
    return OutputParser(prompt.tools, options, state.tokenizer.control)


def _options(body: ChatCompletionRequest) -> ChatOptions:
    stream_options = body.stream_options
    return ChatOptions(
        include_reasoning=body.include_reasoning is not False,
        return_token_ids=bool(body.return_token_ids),
        include_usage=bool(stream_options and stream_options.include_usage),
        continuous_usage=bool(stream_options and stream_options.continuous_usage_stats),
    )


def _offers_tools(tool_choice: Any) -> bool:
    """Whether the model may call; raises RequestError for what would have to force it to."""
    if tool_choice in (None, "auto"):
        return True
    if tool_choice == "none":
        return False
    kind = tool_choice if isinstance(tool_choice, str) else "a named tool"
    raise RequestError(
        f"tool_choice {str(kind)[:40]!r} is not supported yet; 'auto' and 'none' are",
        param="tool_choice",
        code="unsupported_field",
    )


def _logprobs(body: ChatCompletionRequest) -> int | None:
    top = body.top_logprobs
    if top is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
        raise RequestError(
            f"top_logprobs is {str(top)[:20]}; allowed: 0 to {MAX_TOP_LOGPROBS}",
            param="top_logprobs",
        )
    if top and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
    return (top or 0) if body.logprobs else None


def _first_given(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
