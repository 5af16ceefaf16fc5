"""Penalties, biases and bans: what changes a row of logits before a token is chosen from it.

In this order: repetition penalty, frequency and presence penalty, logit_bias, then the bans
(allowed_token_ids, bad_words_ids, min_tokens), so that no bias lifts a ban. The last of the bans,
those of structured output, are in `structured_output_masks.py`, since they need a memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from m2serve.engine.sequence import Sequence


def needs_processing(sequence: Sequence) -> bool:
    """Whether the request asks for any of this now; most do not."""
    sampling = sequence.sampling
    return sampling.forced_token_ids is None and bool(
        sampling.repetition_penalty != 1
        or sampling.frequency_penalty
        or sampling.presence_penalty
        or sampling.logit_bias
        or sampling.allowed_token_ids is not None
        or sampling.bad_words_ids
        or sampling.structured_output is not None
        or sequence.num_output_tokens < sampling.min_tokens
    )


def process_logits(row: torch.Tensor, sequence: Sequence) -> None:
    """Change one row, float32 [used vocab], in place; banned ids become -inf."""
    _penalise(row, sequence)
    bias = sequence.sampling.logit_bias
    if bias:
        ids = _indices(bias, row)
        row[ids] += torch.tensor([bias[i] for i in ids.tolist()], device=row.device)
    _ban(row, sequence)


def _penalise(row: torch.Tensor, sequence: Sequence) -> None:
    sampling = sequence.sampling
    counts = sequence.output_counts
    if sampling.repetition_penalty != 1:
        ids = _indices(sequence.prompt_token_set | counts.keys(), row)
        seen = row[ids]
        penalty = sampling.repetition_penalty
        row[ids] = torch.where(seen > 0, seen / penalty, seen * penalty)
    if sampling.frequency_penalty or sampling.presence_penalty:
        ids = _indices(counts, row)
        num_seen = torch.tensor([float(counts[i]) for i in ids.tolist()], device=row.device)
        row[ids] -= sampling.frequency_penalty * num_seen + sampling.presence_penalty


def _ban(row: torch.Tensor, sequence: Sequence) -> None:
    sampling = sequence.sampling
    if sampling.allowed_token_ids is not None:
        ids = _indices(sampling.allowed_token_ids, row)
        allowed = row[ids]
        row.fill_(-math.inf)
        row[ids] = allowed
    banned = [word[-1] for word in sampling.bad_words_ids if _has_begun(word, sequence)]
    if sequence.num_output_tokens < sampling.min_tokens:
        banned.extend(sequence.ending_token_ids)
    row[_indices(banned, row)] = -math.inf


def _has_begun(word: tuple[int, ...], sequence: Sequence) -> bool:
    """Whether all of a bad word but its last id are the newest generated ids."""
    num_before = len(word) - 1
    if num_before > sequence.num_output_tokens:
        return False
    return tuple(sequence.token_ids[sequence.num_tokens - num_before :]) == word[:-1]


def _indices(ids: Iterable[int], row: torch.Tensor) -> torch.Tensor:
    """Those of `ids` that are in the used vocabulary, int64."""
    used = [token_id for token_id in ids if token_id < len(row)]
    return torch.tensor(used, dtype=torch.int64, device=row.device)
