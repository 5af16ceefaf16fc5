"""Bans tokens that would take an answer out of the form it must have.

What a sequence has generated is read when its next token is wanted, so nothing has to be undone
when it is preempted and computed anew.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch

from m2serve.engine.request import StructuredOutput
from m2serve.engine.sequence import Sequence
from m2serve.engine.structured_output import llguidance_grammar, load_llguidance, parser_limits
from m2serve.errors import M2Error

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_MAX_TOKENIZER_BYTES = 64 * 1024 * 1024
_MAX_COMPILED = 64

TOO_COMPLEX = (
    "The form asked for is too complex to be followed at this point of the answer; simplify the "
    "schema or the pattern."
)


@dataclass
class _Reading:
    """How far a sequence has been read; `num_read` counts generated ids.

    `num_of_answer` counts those since the answer began, its prefix included; None before that.
    `must_be_free`: one of the free ids has to come next.
    """

    matcher: LLMatcher
    num_read: int = 0
    num_of_answer: int | None = None
    is_free: bool = False
    must_be_free: bool = False


class StructuredOutputMasks:
    """`model_path` holds the tokenizer.json, which is read when the first form is asked for."""

    def __init__(self, model_path: Path) -> None:
        self._model_path = model_path
        self._tokenizer: LLTokenizer | None = None
        self._end_ids: list[int] = []
        self._compiled: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        self._readings: WeakKeyDictionary[Sequence, _Reading] = WeakKeyDictionary()

    def apply(self, row: torch.Tensor, sequence: Sequence) -> str | None:
        """Ban in `row`, float32 [used vocab], what may not come next; a sentence if it fails."""
        output = sequence.sampling.structured_output
        assert output is not None
        try:
            reading = self._read(sequence, output)
        except (M2Error, ValueError, OSError) as error:
            return f"The form asked for cannot be followed: {error}"
        if reading is None:
            return TOO_COMPLEX
        if reading.is_free:
            return None
        if reading.num_of_answer is None:
            banned = (*sequence.sampling.eos_token_ids, *output.not_before_token_ids)
            row[[i for i in banned if i < len(row)]] = -math.inf
            return None
        allowed = self._allowed(reading, sequence, output, len(row))
        if allowed is None:
            return TOO_COMPLEX
        row.masked_fill_(~torch.from_numpy(allowed).to(row.device), -math.inf)
        return None

    def _allowed(
        self, reading: _Reading, sequence: Sequence, output: StructuredOutput, vocab_size: int
    ) -> np.ndarray | None:
        """bool [vocab_size]; None when llguidance has reached a limit."""
        allowed = np.zeros(vocab_size, dtype=bool)
        assert reading.num_of_answer is not None
        num_of_form = reading.num_of_answer - len(output.prefix_token_ids)
        if reading.must_be_free:
            allowed[[*output.free_token_ids]] = True
            return allowed
        if num_of_form < 0:
            allowed[output.prefix_token_ids[num_of_form]] = True
            if reading.num_of_answer == 0:
                allowed[[*output.free_prefix_token_ids]] = True
            return allowed
        bits = np.frombuffer(reading.matcher.compute_bitmask(), dtype=np.uint8)
        if reading.matcher.is_error():
            return None
        of_form = np.unpackbits(bits, bitorder="little")[:vocab_size].astype(bool)
        allowed[: len(of_form)] = of_form
        more = [*sequence.ending_token_ids] if reading.matcher.is_accepting() else []
        if num_of_form == 0:
            more += output.free_token_ids
        allowed[[i for i in self._end_ids if i < vocab_size]] = False
        allowed[[i for i in more if i < vocab_size]] = True
        return allowed

    def _read(self, sequence: Sequence, output: StructuredOutput) -> _Reading | None:
        """Take in what has been generated since the last time; None when it breaks the form."""
        reading = self._readings.get(sequence)
        if reading is None:
            matcher = self._matcher(output, sequence.sampling.eos_token_ids)
            reading = _Reading(matcher, num_of_answer=None if output.after_token_ids else 0)
            self._readings[sequence] = reading
        new_ids = sequence.token_ids[sequence.num_prompt_tokens + reading.num_read :]
        for token_id in new_ids:
            if not _take(reading, token_id, output):
                return None
        return reading

    def _matcher(self, output: StructuredOutput, eos_token_ids: tuple[int, ...]) -> LLMatcher:
        """At the start of the form; raises ValueError or M2Error. Forms often come again."""
        key = (output.kind, output.text)
        if key in self._compiled:
            self._compiled.move_to_end(key)
            return self._compiled[key].deep_copy()
        tokenizer = self._load_tokenizer(eos_token_ids)
        matcher: LLMatcher = load_llguidance().LLMatcher(
            tokenizer, llguidance_grammar(output), log_level=0, limits=parser_limits()
        )
        if matcher.is_error():
            raise ValueError(" ".join(matcher.get_error().split())[:200])
        self._compiled[key] = matcher
        if len(self._compiled) > _MAX_COMPILED:
            self._compiled.popitem(last=False)
        return matcher.deep_copy()

    def _load_tokenizer(self, eos_token_ids: tuple[int, ...]) -> LLTokenizer:
        """Told no end, llguidance guesses one, and that id could never be part of an answer."""
        if self._tokenizer is None:
            path = self._model_path / "tokenizer.json"
            if path.stat().st_size > _MAX_TOKENIZER_BYTES:
                raise ValueError(f"tokenizer.json is larger than {_MAX_TOKENIZER_BYTES} bytes")
            text = path.read_text(encoding="utf-8")
            tokenizer: LLTokenizer = load_llguidance().LLTokenizer(
                text, eos_token=list(eos_token_ids)
            )
            self._end_ids = list(tokenizer.eos_tokens)
            self._tokenizer = tokenizer
        return self._tokenizer


def _take(reading: _Reading, token_id: int, output: StructuredOutput) -> bool:
    """Whether the id keeps the form."""
    reading.num_read += 1
    if reading.is_free:
        return True
    num_of_form = (reading.num_of_answer or 0) - len(output.prefix_token_ids)
    may_be_free = reading.num_of_answer is None or num_of_form == 0 or reading.must_be_free
    if token_id in output.free_token_ids and may_be_free:
        reading.is_free = True
    elif reading.num_of_answer == 0 and num_of_form < 0 and _announces(token_id, output):
        reading.must_be_free = True
    elif reading.num_of_answer is None:
        reading.num_of_answer = 0 if token_id in output.after_token_ids else None
    else:
        reading.num_of_answer += 1
        return num_of_form < 0 or reading.matcher.consume_token(token_id)
    return True


def _announces(token_id: int, output: StructuredOutput) -> bool:
    return token_id in output.free_prefix_token_ids and token_id != output.prefix_token_ids[0]
