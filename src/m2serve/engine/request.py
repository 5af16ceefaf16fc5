"""What crosses the line between the server and the engine: ids in, ids out, never text.

These structs are the engine's whole vocabulary. They are msgspec structs because they travel as
msgpack frames between processes. Nothing here imports torch.
"""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort", "error"]
StructuredKind = Literal["json_schema", "json_object", "regex", "choice", "grammar", "tool_calls"]


class StructuredOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The form an answer must have, and where in the generated ids the answer begins.

    `text` is a JSON schema, a regular expression, a JSON list of strings (choice), a Lark or GBNF
    grammar, or the grammar of server/tool_choice.py (tool_calls); json_object has none. The answer
    begins at once, or behind the first generated id that is one of `after_token_ids`, and is
    preceded by exactly `prefix_token_ids`. One of `free_token_ids` before or at its start means
    that the model does something else: then all that follows is free. One of
    `free_prefix_token_ids` in place of the prefix announces just that. `not_before_token_ids`
    cannot come before the answer begins.
    """

    kind: StructuredKind
    text: str = ""
    after_token_ids: tuple[int, ...] = ()
    prefix_token_ids: tuple[int, ...] = ()
    free_token_ids: tuple[int, ...] = ()
    free_prefix_token_ids: tuple[int, ...] = ()
    not_before_token_ids: tuple[int, ...] = ()


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to choose tokens for one sequence (`n` sequences are `n` requests).

    temperature 0 is greedy. top_k 0 and -1, top_p 1 and min_p 0 switch the filter off. Filters
    apply in vLLM's order: penalties and biases on raw logits, temperature, min_p, top_k, top_p.
    `logprobs` is the number of alternatives to report for each generated token (0: only the
    chosen one; None: no logprobs); they are of the model's raw distribution, before penalties
    and temperature. `bad_words_ids` are token sequences whose last token is banned when the rest
    has just been produced. `structured_output` leaves only tokens that keep the answer in its form,
    and the end only where the form is complete. `forced_token_ids`, when set, replaces sampling:
    the ids come out in this order (through the real scheduler and model), whatever the logits say.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    forced_token_ids: tuple[int, ...] | None = None
    structured_output: StructuredOutput | None = None


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to generate. `request_id` is unique for the life of the client, chosen by us."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    cache_salt: bytes = b""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """`rank` is 1 for the most likely token."""

    token_id: int
    logprob: float
    rank: int


class EngineOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """News of one request after one step.

    `logprobs[i]` belongs to `token_ids[i]`: the chosen token first, then the alternatives from the
    most likely down. `prompt_logprobs` comes once, with the first output: entry 0 is None (nothing
    precedes the first token). `stop_token_id` is the id that ended a sequence with "stop"; that id
    is the last of `token_ids`. `error` says what went wrong when finish_reason is "error".
    """

    request_id: str
    token_ids: list[int] = []
    logprobs: list[list[TokenLogprob]] | None = None
    prompt_logprobs: list[list[TokenLogprob] | None] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    error: str | None = None


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a ready engine is; sent once, when it has generated its first token.

    `precision` says in a few words what else than `dtype` rounds: kernels, activations, KV cache,
    what was requantised. `weight_bytes` are in memory, 0 if unknown; requantising while loading
    saved `weight_bytes_saved`. With `checks_structured_output` the engine refuses a wrong schema or
    pattern itself, by rules of its own.
    """

    model: str
    device: str
    dtype: str
    max_model_len: int
    vocab_size: int
    used_vocab_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_kv_blocks: int
    kv_block_size: int
    enable_prefix_caching: bool
    load_time_s: float
    precision: str = ""
    weight_bytes: int = 0
    weight_bytes_saved: int = 0
    checks_structured_output: bool = False


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the engine started, and gauges of now (`num_*_reqs`, `kv_cache_usage`).

    `busy_s` is the time in which there were requests to compute, `native_s` the part of it spent
    in the native CPU library; 0 where PyTorch computes.
    """

    step: int = 0
    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    num_preemptions: int = 0
    kv_cache_usage: float = 0.0
    num_free_blocks: int = 0
    num_cached_blocks: int = 0
    num_referenced_blocks: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    busy_s: float = 0.0
    native_s: float = 0.0

    @property
    def native_busy_share(self) -> float:
        """0 to 1; what is missing from 1 is scheduling, Python, and waiting for a processor."""
        return self.native_s / self.busy_s if self.busy_s else 0.0
