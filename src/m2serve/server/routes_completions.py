"""POST /v1/completions"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from msgspec.structs import replace
from starlette.responses import Response

from m2serve.engine.request import SamplingParams, StructuredOutput
from m2serve.errors import RequestError
from m2serve.server.choice import Choice, PlainText, StopRules
from m2serve.server.completion_answer import CompletionOptions, answer_chunks, whole_answer
from m2serve.server.errors import POST_ERRORS
from m2serve.server.job import Job, check_fields, make_job
from m2serve.server.prompting import completion_prompts, output_limit
from m2serve.server.protocol import CompletionRequest
from m2serve.server.responses import EventStream, json_response, until_client_leaves
from m2serve.server.sampling import sampling_params, stop_strings
from m2serve.server.state import ServerState
from m2serve.server.structured_output import behind_thinking, ends_in_thinking, structured_output
from m2serve.server.wire import Completion

DEFAULT_MAX_TOKENS = 16


def completions_router(state: ServerState, route_class: type[APIRoute]) -> APIRouter:
    router = APIRouter(route_class=route_class)

    @router.post("/v1/completions", responses=POST_ERRORS, response_model=None)
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Continue text or token ids as they are; control tokens in text are recognised.

        With `response_format` (or vLLM's `structured_outputs`) the text has that form. Behind a
        prompt that ends inside `<think>` the thinking stays free, and the form begins behind
        `</think>` and two line breaks.
        """
        check_fields(state, body)
        options = _options(body)
        if body.stream:
            job = await _job(state, request, body, options)
            return EventStream(_stream(state, job, options), job.headers)
        answer, job = await until_client_leaves(
            request.receive, _whole(state, request, body, options)
        )
        return json_response(answer, headers=job.headers)

    return router


async def _whole(
    state: ServerState, request: Request, body: CompletionRequest, options: CompletionOptions
) -> tuple[Completion, Job]:
    job = await _job(state, request, body, options)
    async with state.generator.run(job.tracks) as generation:
        return await whole_answer(job, generation, state.tokenizer, options), job


async def _stream(
    state: ServerState, job: Job, options: CompletionOptions
) -> AsyncGenerator[bytes, None]:
    async with state.generator.run(job.tracks) as generation:
        keep_alive_s = state.config.sse_keep_alive_s
        async for piece in answer_chunks(job, generation, state.tokenizer, options, keep_alive_s):
            yield piece


async def _job(
    state: ServerState, request: Request, body: CompletionRequest, options: CompletionOptions
) -> Job:
    prompts = await asyncio.to_thread(
        completion_prompts, body.prompt, state.tokenizer, state.config.max_prompts
    )
    if len(prompts) * (body.n or 1) > state.config.max_prompts:
        raise RequestError(
            f"{len(prompts)} prompts with n {body.n} are more than "
            f"{state.config.max_prompts} sequences",
            param="n",
        )
    form = await structured_output(body, state.engine.info)
    sampling = [_sampling(state, body, options, prompt, form) for prompt in prompts]
    stop = StopRules(
        stop_strings(body.stop),
        bool(body.include_stop_str_in_output),
        sampling[0].min_tokens,
    )

    def new_choice() -> Choice:
        skips = body.skip_special_tokens is not False
        return Choice(state.tokenizer, PlainText(), stop, skip_special=skips)

    return make_job(state, request, body, "cmpl", prompts, sampling, new_choice)


def _sampling(
    state: ServerState,
    body: CompletionRequest,
    options: CompletionOptions,
    prompt: list[int],
    form: StructuredOutput | None,
) -> SamplingParams:
    if form is not None:
        in_thinking = ends_in_thinking(prompt, state.tokenizer.control)
        form = behind_thinking(form, state.tokenizer, in_thinking=in_thinking)
    limit = output_limit(
        1 if options.echo_only else body.max_tokens,
        len(prompt),
        state.engine.info.max_model_len,
        prompt_param="prompt",
    )
    if body.max_tokens is None:
        limit = min(limit, DEFAULT_MAX_TOKENS)
    sampling = sampling_params(
        body,
        state.config.default_sampling,
        state.tokenizer,
        max_tokens=limit,
        logprobs=body.logprobs,
        structured_output=form,
    )
    if options.echo and body.logprobs is not None and body.prompt_logprobs is None:
        return replace(sampling, prompt_logprobs=body.logprobs)
    return sampling


def _options(body: CompletionRequest) -> CompletionOptions:
    stream_options = body.stream_options
    return CompletionOptions(
        echo=bool(body.echo),
        echo_only=bool(body.echo) and body.max_tokens == 0,
        logprobs=body.logprobs is not None,
        prompt_logprobs=body.prompt_logprobs is not None,
        return_token_ids=bool(body.return_token_ids),
        return_tokens_as_token_ids=bool(body.return_tokens_as_token_ids),
        include_usage=bool(stream_options and stream_options.include_usage),
        continuous_usage=bool(stream_options and stream_options.continuous_usage_stats),
    )
