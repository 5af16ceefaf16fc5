"""SGLang's native API: POST /generate with `input_ids`.

Its stream repeats all ids in every event unless the server was started with
--incremental-streaming-output (--stream-output before 0.5.10); both are read. The names are those
of SGLang 0.5.9 to 0.5.23, managers/io_struct.py and sampling/sampling_params.py.
"""

from __future__ import annotations

import json
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
    MAX_MESSAGE_CHARS,
    ThinkingWatch,
    UpstreamBusyError,
    UpstreamError,
    position,
    raise_error_event,
    refuse_forced,
    refuse_free_start,
    refused,
    token_id_list,
)
from m2serve.engine.upstream_vllm import stop_ids
from m2serve.errors import RequestError

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
_LOWEST = -9999.0

# (logprob, token id, text or null)
_Entry = tuple[float | None, int, str | None]


class _FinishReason(msgspec.Struct):
    type: str
    matched: Any = None
    message: str = ""
    status_code: int | None = None


class _MetaInfo(msgspec.Struct):
    completion_tokens: int
    cached_tokens: int = 0
    finish_reason: _FinishReason | None = None
    input_token_logprobs: list[_Entry] | None = None
    input_top_logprobs: list[list[_Entry] | None] | None = None
    output_token_logprobs: list[_Entry] | None = None
    output_top_logprobs: list[list[_Entry] | None] | None = None


class SglangDialect:
    path = "/generate"

    def body(self, request: EngineRequest, model: str) -> dict[str, Any]:
        """Raises RequestError for allowed_token_ids and bad_words, which SGLang lacks."""
        refuse_forced(request)
        sampling = request.sampling
        for name in ("allowed_token_ids", "bad_words_ids"):
            if getattr(sampling, name):
                field = name.removesuffix("_ids") if name.startswith("bad") else name
                raise RequestError(
                    f"{field} is not supported by SGLang, the engine behind this server",
                    param=field,
                    code="unsupported_field",
                )
        params: dict[str, Any] = {
            "max_new_tokens": sampling.max_tokens,
            "min_new_tokens": sampling.min_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or -1,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "ignore_eos": sampling.ignore_eos,
            "stop_token_ids": stop_ids(request),
            "skip_special_tokens": False,
        }
        if sampling.seed is not None:
            params["sampling_seed"] = sampling.seed
        if sampling.logit_bias:
            params["logit_bias"] = {str(id): bias for id, bias in sampling.logit_bias.items()}
        body: dict[str, Any] = {
            "input_ids": request.prompt_token_ids,
            "sampling_params": params,
            "stream": True,
        }
        counts = [n for n in (sampling.logprobs, sampling.prompt_logprobs) if n is not None]
        if counts:
            body["return_logprob"] = True
            body["top_logprobs_num"] = max(counts)
            body["logprob_start_len"] = -1 if sampling.prompt_logprobs is None else 0
        if (output := sampling.structured_output) is not None:
            params |= _structured_params(output)
            body["require_reasoning"] = bool(output.after_token_ids)
        if request.cache_salt:
            body["extra_key"] = request.cache_salt.hex()
        return body

    def reader(self, request: EngineRequest) -> SglangReader:
        return SglangReader(request)


def _structured_params(output: StructuredOutput) -> dict[str, str]:
    """Raises RequestError for what this API cannot say."""
    refuse_free_start(output)
    match output.kind:
        case "json_object":
            return {"json_schema": '{"type": "object"}'}
        case "json_schema":
            return {"json_schema": output.text}
        case "choice":
            strings = [json.dumps(s, ensure_ascii=False) for s in json.loads(output.text)]
            return {"ebnf": "root ::= " + " | ".join(strings)}
        case "regex":
            return {"regex": output.text}
        case "grammar":
            return {"ebnf": output.text}
        case "tool_calls":
            raise forced_call_refusal()


class SglangReader:
    def __init__(self, request: EngineRequest) -> None:
        self._request = request
        self._thinking = ThinkingWatch(request, "--reasoning-parser minimax")
        self._num_tokens = 0

    def read(self, data: dict[str, Any]) -> EngineOutput | None:
        raise_error_event(data)
        ids = token_id_list(data.get("output_ids"))
        try:
            meta = msgspec.convert(data.get("meta_info"), _MetaInfo)
        except msgspec.ValidationError as error:
            raise UpstreamError(f"the upstream sent what is no answer: {error}") from error
        if len(ids) == meta.completion_tokens:
            ids = ids[self._num_tokens :]
        is_first = self._num_tokens == 0
        self._num_tokens += len(ids)
        reason = meta.finish_reason
        if reason is not None and reason.type == "abort":
            _raise_abort(reason)
        ended = bool(ids) and reason is not None and reason.matched == ids[-1]
        output = EngineOutput(
            request_id=self._request.request_id,
            token_ids=ids,
            logprobs=self._logprobs(meta, len(ids)),
            prompt_logprobs=self._prompt_logprobs(meta) if is_first else None,
            finish_reason=None if reason is None else _REASONS.get(reason.type, "stop"),
            stop_token_id=ids[-1] if ended else None,
            num_cached_tokens=meta.cached_tokens,
        )
        self._thinking.see(output)
        return output

    def finish(self) -> EngineOutput | None:
        return None

    def _logprobs(self, meta: _MetaInfo, num_ids: int) -> list[list[TokenLogprob]] | None:
        count = self._request.sampling.logprobs
        if count is None or not num_ids:
            return None
        # Whether the lists hold this event's tokens or all: the last ones are this event's.
        entries = (meta.output_token_logprobs or [])[-num_ids:]
        tops = (meta.output_top_logprobs or [[]] * num_ids)[-num_ids:]
        if len(entries) != num_ids or len(tops) != num_ids:
            raise UpstreamError(f"the upstream sent logprobs of other tokens than its {num_ids}")
        return [_position(entry, top, count) for entry, top in zip(entries, tops, strict=True)]

    def _prompt_logprobs(self, meta: _MetaInfo) -> list[list[TokenLogprob] | None] | None:
        count = self._request.sampling.prompt_logprobs
        if count is None:
            return None
        entries = meta.input_token_logprobs or []
        if len(entries) != len(self._request.prompt_token_ids):
            raise UpstreamError(f"the upstream sent logprobs for {len(entries)} prompt tokens")
        tops = meta.input_top_logprobs or [None] * len(entries)
        pairs = zip(entries[1:], tops[1:], strict=True)
        return [None, *(_position(entry, top, count) for entry, top in pairs)]


def _position(entry: _Entry, top: list[_Entry] | None, count: int) -> list[TokenLogprob]:
    alternatives = [(id, _LOWEST if value is None else value) for value, id, _ in top or []]
    chosen = (entry[1], _LOWEST if entry[0] is None else entry[0])
    return position(chosen, sorted(alternatives, key=lambda pair: -pair[1])[:count])


def _raise_abort(reason: _FinishReason) -> None:
    if reason.status_code == 400:
        raise refused(reason.message, 400)
    kind = UpstreamBusyError if reason.status_code == 503 else UpstreamError
    raise kind(f"the upstream engine gave up: {reason.message[:MAX_MESSAGE_CHARS]}")
