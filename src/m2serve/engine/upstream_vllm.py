"""vLLM's completions API with token ids, which vLLM-Ascend and m2serve itself speak, too.

POST /v1/completions with `prompt` a list of ids and `return_token_ids`; logprobs name their tokens
as "token_id:N" because of `return_tokens_as_token_ids`. The names are those of vLLM 0.32's
entrypoints/openai/completion/protocol.py.

Structured output: vLLM 0.32 started with a reasoning parser holds to the form what comes behind
`</think>`, also behind a prompt that has no thinking in it; started without, everything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from m2serve.engine.request import (
    EngineOutput,
    EngineRequest,
    FinishReason,
    StructuredOutput,
    TokenLogprob,
)
from m2serve.engine.structured_output import forced_call_refusal
from m2serve.engine.upstream_dialect import (
    ThinkingWatch,
    UpstreamError,
    position,
    raise_error_event,
    refuse_forced,
    refuse_free_start,
    token_id_list,
)
from m2serve.errors import RequestError

_PREFIX = "token_id:"
_REASONS: dict[str, FinishReason] = {"length": "length", "abort": "abort"}


class _Logprobs(msgspec.Struct):
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]


class _PromptLogprob(msgspec.Struct):
    logprob: float
    rank: int | None = None


class VllmDialect:
    """`decode` turns ids into text, for `bad_words`, which this API takes as text only."""

    path = "/v1/completions"

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode

    def body(self, request: EngineRequest, model: str) -> dict[str, Any]:
        """Everything is said, so that the upstream's own defaults count for nothing.

        Prompt logprobs cannot be streamed, so then the answer comes whole.
        """
        refuse_forced(request)
        sampling = request.sampling
        streams = sampling.prompt_logprobs is None
        body: dict[str, Any] = {
            "model": model,
            "prompt": request.prompt_token_ids,
            "stream": streams,
            "return_token_ids": True,
            "skip_special_tokens": False,
            "max_tokens": sampling.max_tokens,
            "min_tokens": sampling.min_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or -1,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "ignore_eos": sampling.ignore_eos,
            "stop_token_ids": stop_ids(request),
        }
        if streams:
            body["stream_options"] = {"include_usage": True}
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.logit_bias:
            body["logit_bias"] = {str(id): bias for id, bias in sampling.logit_bias.items()}
        if sampling.allowed_token_ids is not None:
            body["allowed_token_ids"] = list(sampling.allowed_token_ids)
        if sampling.bad_words_ids:
            words = [self._decode(ids).lstrip() for ids in sampling.bad_words_ids]
            body["bad_words"] = list(dict.fromkeys(word for word in words if word))
        if sampling.logprobs is not None:
            body["logprobs"] = sampling.logprobs
            body["return_tokens_as_token_ids"] = True
        if sampling.prompt_logprobs is not None:
            body["prompt_logprobs"] = sampling.prompt_logprobs
        if sampling.structured_output is not None:
            body["structured_outputs"] = _structured_outputs(sampling.structured_output)
        if request.cache_salt:
            body["cache_salt"] = request.cache_salt.hex()
        return body

    def reader(self, request: EngineRequest) -> VllmReader:
        return VllmReader(request)


def _structured_outputs(output: StructuredOutput) -> dict[str, Any]:
    refuse_free_start(output)
    if not output.after_token_ids:
        # With a reasoning parser, which every vLLM started here has, 0.32 holds to the form only
        # what is behind </think>: another text is free until one comes, or fails.
        raise RequestError(
            "structured output of a text that does not begin in thinking needs the own engine; "
            "with vLLM use /v1/chat/completions",
            param="response_format",
            code="unsupported_field",
        )
    match output.kind:
        case "json_object":
            return {"json_object": True}
        case "json_schema":
            return {"json": json.loads(output.text)}
        case "choice":
            return {"choice": json.loads(output.text)}
        case "regex" | "grammar":
            return {output.kind: output.text}
        case "tool_calls":
            raise forced_call_refusal()


def stop_ids(request: EngineRequest) -> list[int]:
    """The end ids are sent, too: an upstream whose generation_config lacks them would go on."""
    sampling = request.sampling
    eos = () if sampling.ignore_eos else sampling.eos_token_ids
    return list(dict.fromkeys((*sampling.stop_token_ids, *eos)))


class VllmReader:
    """The last output is held until the usage behind it, which counts the cached tokens."""

    def __init__(self, request: EngineRequest) -> None:
        self._request = request
        self._held: EngineOutput | None = None
        self._thinking = ThinkingWatch(request, "--reasoning-parser minimax_m2")

    def read(self, data: dict[str, Any]) -> EngineOutput | None:
        raise_error_event(data)
        try:
            return self._read(data)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UpstreamError(f"the upstream sent what is no completion: {error}") from error

    def _read(self, data: dict[str, Any]) -> EngineOutput | None:
        output = self._output(data)
        if output is not None:
            self._thinking.see(output)
        if output is not None and output.finish_reason is None:
            return output
        self._held = output or self._held
        if self._held is not None and (usage := data.get("usage")):
            details = usage.get("prompt_tokens_details") or {}
            cached = int(details.get("cached_tokens") or 0)
            self._held = msgspec.structs.replace(self._held, num_cached_tokens=cached)
        return None

    def finish(self) -> EngineOutput | None:
        return self._held

    def _output(self, data: dict[str, Any]) -> EngineOutput | None:
        choices = data.get("choices")
        if not choices:
            return None
        [choice] = choices
        ids = token_id_list(choice.get("token_ids"))
        reason = choice.get("finish_reason")
        finish_reason = None if reason is None else _REASONS.get(reason, "stop")
        stopped = finish_reason == "stop" and ids
        prompt = choice.get("prompt_logprobs")
        return EngineOutput(
            request_id=self._request.request_id,
            token_ids=ids,
            logprobs=self._logprobs(choice, ids),
            prompt_logprobs=None if prompt is None else self._prompt_logprobs(prompt),
            finish_reason=finish_reason,
            stop_token_id=ids[-1] if stopped else None,
        )

    def _logprobs(self, choice: dict[str, Any], ids: list[int]) -> list[list[TokenLogprob]] | None:
        count = self._request.sampling.logprobs
        if count is None or not ids:
            return None
        given = msgspec.convert(choice.get("logprobs"), _Logprobs)
        if not len(given.token_logprobs) == len(given.top_logprobs) == len(ids):
            raise UpstreamError(f"the upstream sent logprobs of other tokens than its {len(ids)}")
        return [
            position((token_id, -9999.0 if logprob is None else logprob), _top(top or {}, count))
            for token_id, logprob, top in zip(
                ids, given.token_logprobs, given.top_logprobs, strict=True
            )
        ]

    def _prompt_logprobs(self, value: object) -> list[list[TokenLogprob] | None]:
        given = msgspec.convert(value, list[dict[str, _PromptLogprob] | None])
        prompt = self._request.prompt_token_ids
        if len(given) != len(prompt):
            raise UpstreamError(f"the upstream sent logprobs for {len(given)} prompt tokens")
        count = self._request.sampling.prompt_logprobs or 0
        return [
            at if at is None else _prompt_position(token_id, at, count)
            for token_id, at in zip(prompt, given, strict=True)
        ]


def _top(top: dict[str, float], count: int) -> list[tuple[int, float]]:
    """The `count` most likely; the chosen token is in the dictionary, too, likely or not."""
    pairs = [(int(name.removeprefix(_PREFIX)), logprob) for name, logprob in top.items()]
    return sorted(pairs, key=lambda pair: -pair[1])[:count]


def _prompt_position(
    token_id: int, at: dict[str, _PromptLogprob], count: int
) -> list[TokenLogprob]:
    entries = {int(name): entry for name, entry in at.items()}
    chosen = entries[token_id]
    pairs = [(id, entry.logprob) for id, entry in entries.items()]
    found = position((token_id, chosen.logprob), sorted(pairs, key=lambda p: -p[1])[:count])
    if chosen.rank is not None:
        found[0] = TokenLogprob(token_id, chosen.logprob, chosen.rank)
    return found
