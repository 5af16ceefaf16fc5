"""The state of one request inside the engine: its tokens, its place in the KV cache, its end.

A Sequence is owned and changed by the scheduler alone; the sampler reads it.
"""

from __future__ import annotations

from functools import cached_property

from m2serve.engine.request import EngineRequest, FinishReason, SamplingParams, TokenLogprob


def ending_token_ids(sampling: SamplingParams) -> frozenset[int]:
    """Ids that end a sequence with "stop" once min_tokens have been generated."""
    eos = () if sampling.ignore_eos else sampling.eos_token_ids
    return frozenset(eos) | frozenset(sampling.stop_token_ids)


class Sequence:
    """One request being served.

    `token_ids` is the prompt followed by what was generated. `num_computed_tokens` counts the
    leading tokens whose keys and values are in the cache or scheduled to be; `block_ids` are the
    blocks that hold them. `block_keys[i]` is the prefix-cache key of block i, as far as computed.
    `seed` is the request's own or the one drawn for it, and stays the same after a preemption.
    `output_counts` maps each generated id to how often it was generated.
    `num_cached_tokens` is None until the sequence is first scheduled.
    """

    def __init__(self, request: EngineRequest, *, arrival: int, random_seed: int) -> None:
        self.request_id = request.request_id
        self.sampling = request.sampling
        self.cache_salt = request.cache_salt
        self.arrival = arrival
        self.seed = random_seed if request.sampling.seed is None else request.sampling.seed
        self.token_ids = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.output_counts: dict[int, int] = {}
        self.ending_token_ids = ending_token_ids(request.sampling)
        self.num_computed_tokens = 0
        self.num_cached_tokens: int | None = None
        self.block_ids: tuple[int, ...] = ()
        self.block_keys: list[bytes] = []
        self.prompt_logprobs: list[list[TokenLogprob] | None] = [None]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @cached_property
    def prompt_token_set(self) -> frozenset[int]:
        return frozenset(self.token_ids[: self.num_prompt_tokens])

    @property
    def next_forced_token_id(self) -> int:
        """The id that must come next whatever the logits say, for a request that forces its ids."""
        forced = self.sampling.forced_token_ids
        assert forced is not None
        return forced[self.num_output_tokens]

    @property
    def wants_prompt_logprobs(self) -> bool:
        """They are sent with the first output, so nobody waits for them after it."""
        return self.sampling.prompt_logprobs is not None and self.num_output_tokens == 0

    def append(self, token_id: int) -> None:
        """Add a generated token."""
        self.token_ids.append(token_id)
        self.output_counts[token_id] = self.output_counts.get(token_id, 0) + 1

    def forget_computed(self) -> None:
        """Start again from the first token, after a preemption has taken the blocks."""
        self.num_computed_tokens = 0
        self.block_ids = ()
        self.prompt_logprobs = [None]

    def finish_reason(self, max_seq_len: int) -> FinishReason | None:
        """Whether the newest generated token ends the sequence, and why.

        An id that ends the sequence counts from min_tokens on; a forced sequence also ends with
        "stop" when its ids are used up. `max_seq_len` bounds prompt and output together.
        """
        if self.stop_token_id is not None:
            return "stop"
        forced = self.sampling.forced_token_ids
        if forced is not None and self.num_output_tokens == len(forced):
            return "stop"
        if self.num_output_tokens >= self.sampling.max_tokens or self.num_tokens >= max_seq_len:
            return "length"
        return None

    def is_last_token_pending(self, max_seq_len: int) -> bool:
        """Whether one more token ends the sequence whatever it is."""
        num_left = self.sampling.max_tokens - self.num_output_tokens
        return min(num_left, max_seq_len - self.num_tokens) <= 1

    @property
    def stop_token_id(self) -> int | None:
        """The newest generated token, if it is one that ends the sequence."""
        if self.num_output_tokens == 0 or self.num_output_tokens < self.sampling.min_tokens:
            return None
        newest = self.token_ids[-1]
        return newest if newest in self.ending_token_ids else None
