"""POST /v1/chat/completions"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from m2serve.chat.parser import OutputParser, ParserOptions
from m2serve.chat.tools import Tool
from m2serve.engine.request import StructuredOutput
from m2serve.engine.structured_output import check_structured_output, forced_call_refusal
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
from m2serve.server.tool_choice import call_form, forced_tools, offers_tools
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
        offers = offers_tools(body.tool_choice)
        if body.stream:
            job = await _job(state, request, body, offers)
            return EventStream(_stream(state, job, options), job.headers)
        answer, job = await until_client_leaves(
            request.receive, _whole(state, request, body, options, offers)
        )
        return json_response(answer, headers=job.headers)

    return router


async def _whole(
    state: ServerState,
    request: Request,
    body: ChatCompletionRequest,
    options: ChatOptions,
    offers: bool,
) -> tuple[ChatCompletion, Job]:
    job = await _job(state, request, body, offers)
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
    state: ServerState, request: Request, body: ChatCompletionRequest, offers: bool
) -> Job:
    prompt = await asyncio.to_thread(
        chat_prompt,
        body,
        state.tokenizer,
        state.config.model_identity,
        offer_tools=offers,
    )
    max_tokens = output_limit(
        _first_given(body.max_completion_tokens, body.max_tokens),
        len(prompt.token_ids),
        state.engine.info.max_model_len,
        prompt_param="messages",
    )
    form = await _form(state, body, prompt, may_call=offers and bool(prompt.tools))
    sampling = sampling_params(
        body,
        state.config.default_sampling,
        state.tokenizer,
        max_tokens=max_tokens,
        logprobs=_logprobs(body),
        structured_output=form,
    )
    stop = StopRules(
        stop_strings(body.stop), bool(body.include_stop_str_in_output), sampling.min_tokens
    )

    def new_choice() -> Choice:
        return Choice(
            state.tokenizer,
            _parser(state, body, prompt, offers),
            stop,
            skip_special=body.skip_special_tokens is not False,
            max_tool_calls=1 if body.parallel_tool_calls is False else None,
        )

    return make_job(state, request, body, "chatcmpl", [prompt.token_ids], [sampling], new_choice)


async def _form(
    state: ServerState, body: ChatCompletionRequest, prompt: ChatPrompt, *, may_call: bool
) -> StructuredOutput | None:
    """The form of the answer: that of a forced call, or what response_format says."""
    asked = await structured_output(body, state.engine.info)
    forced = forced_tools(body.tool_choice, prompt.tools)
    in_thinking = prompt.starts_in_reasoning
    if not forced:
        if asked is None:
            return None
        return behind_thinking(asked, state.tokenizer, in_thinking=in_thinking, may_call=may_call)
    if asked is not None:
        raise RequestError(
            "tool_choice forces a call, so there is no content to have a form; send one of both",
            param="tool_choice",
        )
    if state.engine.info.checks_structured_output:
        raise forced_call_refusal()
    one_call = body.tool_choice != "required" or body.parallel_tool_calls is False
    return await asyncio.to_thread(_call_form, state, forced, one_call, in_thinking)


def _call_form(
    state: ServerState, tools: Sequence[Tool], one_call: bool, in_thinking: bool
) -> StructuredOutput:
    form = call_form(tools, state.tokenizer, one_call=one_call, in_thinking=in_thinking)
    check_structured_output(form, "tools")
    return form


def _parser(
    state: ServerState, body: ChatCompletionRequest, prompt: ChatPrompt, offers: bool
) -> OutputParser:
    keep_think = state.config.reasoning_parser == "minimax_m2_append_think"
    options = ParserOptions(
        starts_in_reasoning=prompt.starts_in_reasoning,
        allow_tool_calls=offers,
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
