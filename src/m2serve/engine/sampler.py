"""From the model's logits to the next token of every sequence of a step, with its logprobs."""

from __future__ import annotations

import torch

from m2serve.engine.choosing import NO_TOKEN, TokenChooser
from m2serve.engine.logits_processors import needs_processing, process_logits
from m2serve.engine.logprobs import token_logprobs
from m2serve.engine.request import TokenLogprob
from m2serve.engine.sequence import Sequence
from m2serve.engine.step import SequenceResult
from m2serve.engine.structured_output_masks import StructuredOutputMasks

NOT_FINITE = (
    "The model returned logits that are not finite for this request (NaN or infinity). "
    "The weights or the kernels are at fault, not the prompt."
)
NOTHING_LEFT = (
    "No token is left to choose: allowed_token_ids, bad_words_ids, min_tokens and structured "
    "output together exclude every one."
)


class Sampler:
    """`used_vocab_size`: ids at or above it are never chosen and have no logprobs.

    Without `masks` no request may ask for structured output.
    """

    def __init__(self, used_vocab_size: int, masks: StructuredOutputMasks | None = None) -> None:
        assert used_vocab_size > 0
        self.used_vocab_size = used_vocab_size
        self._masks = masks
        self._chooser = TokenChooser()

    @property
    def native_s(self) -> float:
        """Seconds spent in the native library so far."""
        return self._chooser.native_s

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[SequenceResult]:
        """One result for each row: a token and its logprobs, or the request's error.

        `logits`: float32 [R, vocab], row r belongs to `sequences[r]`; changed in place where
        penalties, biases or bans apply.
        """
        if not sequences:
            return []
        logits = logits[:, : self.used_vocab_size]
        errors: dict[int, str] = {}
        raw_logits = self._process(logits, sequences, errors)
        rows = [row for row in range(len(sequences)) if row not in errors]
        found = self._chooser.choose(_take(logits, rows), [sequences[row] for row in rows])
        token_ids = dict(zip(rows, found, strict=True))
        for row in [row for row, token_id in token_ids.items() if token_id == NO_TOKEN]:
            del token_ids[row]
            errors[row] = NOT_FINITE
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

        Adds to `errors` the rows among them that are not finite, in which no token is left, or
        whose form cannot be followed.
        """
        rows = [row for row, sequence in enumerate(sequences) if needs_processing(sequence)]
        if not rows:
            return logits
        not_finite = {rows[index] for index in _rows_not_finite(_take(logits, rows))}
        errors.update(dict.fromkeys(not_finite, NOT_FINITE))
        rows = [row for row in rows if row not in not_finite]
        keep_raw = any(sequences[row].sampling.logprobs is not None for row in rows)
        raw_logits = logits.clone() if keep_raw else logits
        for row in rows:
            process_logits(logits[row], sequences[row])
            if sequences[row].sampling.structured_output is not None:
                assert self._masks is not None
                problem = self._masks.apply(logits[row], sequences[row])
                if problem is not None:
                    errors[row] = problem
        for index in _rows_not_finite(_take(logits, rows)):
            errors.setdefault(rows[index], NOTHING_LEFT)
        return raw_logits


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
    return logits if len(rows) == logits.shape[0] else logits[rows]


def _rows_not_finite(logits: torch.Tensor) -> list[int]:
    """Rows with a NaN, an infinity, or nothing above -infinity: the maximum shows all three."""
    finite = logits.amax(dim=1).isfinite()
    return (~finite).nonzero()[:, 0].tolist()
