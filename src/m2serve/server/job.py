"""What chat and plain completions have in common between the body and the engine."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace
from starlette.requests import Request

from m2serve.engine.request import EngineRequest, SamplingParams
from m2serve.errors import RequestError
from m2serve.server.choice import Choice
from m2serve.server.generation import Track
from m2serve.server.prompting import cache_salt
from m2serve.server.protocol import GenerationFields
from m2serve.server.protocol_ignored import refuse_unknown
from m2serve.server.sampling import seed_of_sequence
from m2serve.server.state import ServerState
from m2serve.server.wire import CompletionTokensDetails, PromptTokensDetails, Usage

_MAX_LABEL_CHARS = 128
_LABEL_MARKS = frozenset("_.:-")


@dataclass(frozen=True)
class Job:
    """One request, ready for the engine. Choice i belongs to prompt i // n."""

    id: str
    created: int
    model: str
    fingerprint: str
    tracks: list[Track]
    n: int

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Request-Id": self.id}


def check_fields(state: ServerState, fields: GenerationFields) -> None:
    """What can be refused before a prompt is read. Raises RequestError or EngineDeadError."""
    state.generator.check_open()
    state.check_model(fields.model)
    refuse_unknown(fields.unknown_fields)
    if fields.stream_options is not None:
        refuse_unknown(fields.stream_options.unknown_fields, inside="stream_options.")
        if not fields.stream:
            raise RequestError("stream_options needs stream to be true", param="stream_options")
    if fields.stream and fields.prompt_logprobs is not None:
        raise RequestError("prompt_logprobs cannot be streamed", param="prompt_logprobs")
    limit = state.config.max_n
    if fields.n is not None and not 1 <= fields.n <= limit:
        raise RequestError(f"n is {str(fields.n)[:20]}; allowed: 1 to {limit}", param="n")


def make_job(
    state: ServerState,
    request: Request,
    fields: GenerationFields,
    prefix: str,
    prompts: Sequence[list[int]],
    sampling: Sequence[SamplingParams],
    new_choice: Callable[[], Choice],
) -> Job:
    """`sampling[i]` is for `prompts[i]`; the seeds of a prompt's sequences follow each other."""
    several_keys = len(state.config.api_keys) > 1
    digest = getattr(request.state, "api_key_digest", None) if several_keys else None
    salt = cache_salt(fields.cache_salt, digest)
    unique = uuid.uuid4().hex
    n = fields.n or 1
    tracks = [
        Track(
            EngineRequest(
                request_id=f"{unique}-{i * n + j}",
                prompt_token_ids=prompt,
                sampling=replace(sampling[i], seed=seed_of_sequence(sampling[i].seed, j)),
                cache_salt=salt,
            ),
            new_choice(),
        )
        for i, prompt in enumerate(prompts)
        for j in range(n)
    ]
    state.metrics.params_n.observe(n)
    label = fields.request_id or _header_label(request) or unique
    return Job(
        id=f"{prefix}-{label}",
        created=int(time.time()),
        model=fields.model or state.config.model_name,
        fingerprint=state.fingerprint,
        tracks=tracks,
        n=n,
    )


def usage_of(job: Job, *, with_reasoning: bool, choice: int | None = None) -> Usage:
    """Usage up to now, of one choice or of all; each prompt counts once."""
    tracks = job.tracks if choice is None else job.tracks[choice : choice + 1]
    firsts = job.tracks[:: job.n] if choice is None else tracks
    prompt_tokens = sum(len(track.request.prompt_token_ids) for track in firsts)
    completion_tokens = sum(track.choice.num_tokens for track in tracks)
    usage = Usage(
        prompt_tokens,
        completion_tokens,
        prompt_tokens + completion_tokens,
        PromptTokensDetails(sum(track.choice.num_cached_tokens for track in firsts)),
    )
    if not with_reasoning:
        return usage
    reasoning = sum(track.choice.num_reasoning_tokens for track in tracks)
    return replace(usage, completion_tokens_details=CompletionTokensDetails(reasoning))


def _header_label(request: Request) -> str:
    """The client's X-Request-Id, when it can stand in an id; the engine never sees it."""
    label = request.headers.get("x-request-id", "")
    fits = len(label) <= _MAX_LABEL_CHARS and label.isascii()
    return label if fits and all(c.isalnum() or c in _LABEL_MARKS for c in label) else ""
