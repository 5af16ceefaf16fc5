"""Choose the next token of every sequence of a step from the model's logits.

Rows are computed together by what they ask for: greedy, a top_k of at most 1024 (the checkpoint's
default is 40), a nucleus without such a top_k, or the whole distribution. A row's token depends on
its logits, its request and its own history alone, never on the other rows.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from hashlib import blake2b

import torch

from m2serve.engine.logits_processors import needs_processing, process_logits
from m2serve.engine.logprobs import token_logprobs
from m2serve.engine.request import SamplingParams, TokenLogprob
from m2serve.engine.sequence import Sequence
from m2serve.engine.step import SequenceResult
from m2serve.engine.token_choice import (
    MAX_CANDIDATES,
    Choice,
    choose_among_candidates,
    choose_from_all,
    choose_from_nucleus,
)

# Below this temperature sampling is greedy, as in vLLM.
GREEDY_TEMPERATURE = 1e-5

NOT_FINITE = (
    "The model returned logits that are not finite for this request (NaN or infinity). "
    "The weights or the kernels are at fault, not the prompt."
)
NOTHING_LEFT = (
    "No token is left to choose: allowed_token_ids, bad_words_ids and min_tokens together "
    "exclude every one."
)


def uniform(seed: int, counter: int) -> float:
    """The random number in [0, 1) of a sequence's token number `counter`, 53 bits.

    A function of its arguments alone, so a text does not depend on what else runs, nor on
    preemptions.
    """
    digest = blake2b(struct.pack("<qQ", seed, counter), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


class Sampler:
    """`used_vocab_size`: ids at or above it are never chosen and have no logprobs."""

    def __init__(self, used_vocab_size: int) -> None:
        assert used_vocab_size > 0
        self.used_vocab_size = used_vocab_size

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[SequenceResult]:
        """One result for each row: a token and its logprobs, or the request's error.

        `logits`: float32 [R, vocab], row r belongs to `sequences[r]`; changed in place where
        penalties, biases or bans apply.
        """
        if not sequences:
            return []
        logits = logits[:, : self.used_vocab_size]
        errors = dict.fromkeys(_rows_not_finite(logits), NOT_FINITE)
        raw_logits = self._process(logits, sequences, errors)
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for row, sequence in enumerate(sequences):
            if row not in errors:
                groups[_kind(sequence.sampling, logits.shape[1])].append(row)
        token_ids: dict[int, int] = {}
        for kind, rows in groups.items():
            members = [sequences[row] for row in rows]
            token_ids.update(zip(rows, _choose(kind, _take(logits, rows), members), strict=True))
        logprobs = _logprobs(raw_logits, sequences, token_ids)
        return [
            SequenceResult(
                token_id=token_ids.get(row), logprobs=logprobs.get(row), error=errors.get(row)
            )
            for row in range(len(sequences))
        ]

    @torch.inference_mode()
    def prompt_logprobs(
        self, logits: torch.Tensor, target_ids: tuple[int, ...], num_logprobs: int
    ) -> list[list[TokenLogprob]] | None:
        """Logprobs of prompt tokens: row r of `logits`, float32 [R, vocab], scores target_ids[r].

        None when a row is not finite: the request must fail with `NOT_FINITE`.
        """
        logits = logits[:, : self.used_vocab_size]
        if _rows_not_finite(logits):
            return None
        return token_logprobs(logits, list(target_ids), [num_logprobs] * len(target_ids))

    def _process(
        self, logits: torch.Tensor, sequences: list[Sequence], errors: dict[int, str]
    ) -> torch.Tensor:
        """Apply penalties, biases and bans in place; returns the logits as they were.

        Adds the rows in which no token is left to `errors`.
        """
        rows = [
            row
            for row, sequence in enumerate(sequences)
            if row not in errors and needs_processing(sequence)
        ]
        if not rows:
            return logits
        keep_raw = any(sequences[row].sampling.logprobs is not None for row in rows)
        raw_logits = logits.clone() if keep_raw else logits
        for row in rows:
            process_logits(logits[row], sequences[row])
        for index in _rows_not_finite(_take(logits, rows)):
            errors[rows[index]] = NOTHING_LEFT
        return raw_logits


def _kind(sampling: SamplingParams, vocab_size: int) -> str:
    """How a row's token is chosen; every row of a kind is computed in one go."""
    if sampling.forced_token_ids is not None:
        return "forced"
    if sampling.temperature < GREEDY_TEMPERATURE:
        return "greedy"
    if _top_k(sampling, vocab_size) <= min(MAX_CANDIDATES, vocab_size - 1):
        return "candidates"
    if sampling.top_p < 1 or _top_k(sampling, vocab_size) < vocab_size:
        return "nucleus"
    return "all"


def _choose(kind: str, logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    """Token ids of rows of one kind, float32 [R, used vocab]."""
    if kind == "forced":
        return [sequence.next_forced_token_id for sequence in sequences]
    if kind == "greedy":
        return logits.argmax(dim=1).tolist()
    choice = _choice(sequences, logits)
    if kind == "candidates":
        return choose_among_candidates(logits, choice, int(choice.top_k.max())).tolist()
    if kind == "nucleus":
        return choose_from_nucleus(logits, choice).tolist()
    return choose_from_all(logits, choice).tolist()


def _choice(sequences: list[Sequence], logits: torch.Tensor) -> Choice:
    settings = [
        (
            sequence.sampling.temperature,
            sequence.sampling.min_p,
            _top_k(sequence.sampling, logits.shape[1]),
            sequence.sampling.top_p,
            uniform(sequence.seed, sequence.num_output_tokens),
        )
        for sequence in sequences
    ]
    table = torch.tensor(settings, dtype=torch.float64).T.contiguous().to(logits.device)
    return Choice(*table)


def _top_k(sampling: SamplingParams, vocab_size: int) -> int:
    return min(sampling.top_k, vocab_size) if sampling.top_k > 0 else vocab_size


def _logprobs(
    logits: torch.Tensor, sequences: list[Sequence], token_ids: dict[int, int]
) -> dict[int, list[TokenLogprob]]:
    """Logprobs by row, of those rows that have a token and ask for them."""
    wanted = [
        (row, token_ids[row], num_logprobs)
        for row, sequence in enumerate(sequences)
        if row in token_ids and (num_logprobs := sequence.sampling.logprobs) is not None
    ]
    if not wanted:
        return {}
    rows, chosen, nums = (list(column) for column in zip(*wanted, strict=True))
    return dict(zip(rows, token_logprobs(_take(logits, rows), chosen, nums), strict=True))


def _take(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Rows of a step's logits; no copy when they are all of them."""
    return logits if len(rows) == len(logits) else logits[rows]


def _rows_not_finite(logits: torch.Tensor) -> list[int]:
    """Rows with a NaN, an infinity, or nothing above -infinity: the maximum shows all three."""
    finite = logits.amax(dim=1).isfinite()
    return (~finite).nonzero()[:, 0].tolist()
