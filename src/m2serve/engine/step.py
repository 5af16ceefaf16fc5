"""What one step of the engine carries: scheduler -> model runner -> sampler -> scheduler.

Frozen records, made anew for every token, so of the kind that is made fastest; no torch, so the
scheduler can be tested without a model.
"""

from __future__ import annotations

import msgspec

from m2serve.engine.request import TokenLogprob

# In place of a token that the step before is about to choose.
PENDING = -1


class ScheduledSequence(msgspec.Struct, frozen=True):
    """The tokens of one sequence to run in this step.

    `token_ids[i]` stands at position `start + i`, PENDING for one that the step before, still under
    way, will choose; `block_ids` holds every block of the sequence, those of this step included:
    position p lives in block `block_ids[p // block_size]`. When `samples`, a token is chosen from
    the logits of the last row. Logits of the first `num_prompt_logits` rows are wanted for
    prompt_logprobs: row i scores `prompt_targets[i]`, the prompt token at position `start + i + 1`.
    """

    request_id: str
    token_ids: tuple[int, ...]
    start: int
    block_ids: tuple[int, ...]
    samples: bool
    prompt_targets: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def end(self) -> int:
        """Tokens of the sequence that are in the KV cache after this step."""
        return self.start + len(self.token_ids)

    @property
    def num_prompt_logits(self) -> int:
        return len(self.prompt_targets)

    def slot(self, position: int, block_size: int) -> int:
        """Where the cache holds the token of a position."""
        return self.block_ids[position // block_size] * block_size + position % block_size

    @property
    def is_decode(self) -> bool:
        """One token in, one token out."""
        return self.samples and len(self.token_ids) == 1 and not self.prompt_targets


class ScheduledStep(msgspec.Struct, frozen=True):
    """Everything one forward pass computes, oldest request first; never empty while work waits."""

    sequences: tuple[ScheduledSequence, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(sequence.num_tokens for sequence in self.sequences)


class SequenceResult(msgspec.Struct, frozen=True):
    """What the model and the sampler say about one scheduled sequence.

    `token_id` is None when nothing was sampled. `logprobs`: the chosen token first, then the
    alternatives. `prompt_logprobs` has one entry for each of the step's `prompt_targets`. `error`
    is a sentence for the user and ends the request; the rest is then ignored.
    """

    token_id: int | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[list[TokenLogprob]] = []
    error: str | None = None
