"""A conversation as token ids, with the ids the model itself would have to say marked.

The prompt is rendered and encoded by the product's chat room, so training and serving share one
grammar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m2serve.chat.renderer import render
from m2serve.chat.tokenizer import Tokenizer
from training.conversations.sample import Sample
from training.identity import IDENTITY


@dataclass(frozen=True)
class Document:
    """`is_said[i]`: token i is the model's; all others are given."""

    token_ids: np.ndarray  # uint16 [T]
    is_said: np.ndarray  # bool [T]

    def __len__(self) -> int:
        return len(self.token_ids)


def render_document(sample: Sample, tokenizer: Tokenizer) -> Document:
    ids = full_ids(sample, tokenizer)
    return Document(np.array(ids, dtype=np.uint16), np.array(said(ids, tokenizer)))


def full_ids(sample: Sample, tokenizer: Tokenizer) -> list[int]:
    segments = render(
        sample.conversation, sample.tools, add_generation_prompt=False, model_identity=IDENTITY
    )
    return tokenizer.encode_segments(segments)


def prompt_ids(sample: Sample, tokenizer: Tokenizer) -> list[int]:
    """What a server would send to the engine for the sample without its last turn."""
    segments = render(sample.prompt, sample.tools, model_identity=IDENTITY)
    return tokenizer.encode_segments(segments)


def full_text(sample: Sample) -> str:
    segments = render(
        sample.conversation, sample.tools, add_generation_prompt=False, model_identity=IDENTITY
    )
    return "".join(segment.text for segment in segments)


def said(ids: Sequence[int], tokenizer: Tokenizer) -> list[bool]:
    """Every assistant turn from behind what the server writes ("ai\\n<think>\\n") to its end."""
    control = tokenizer.control
    role = tokenizer.encode("ai")
    marks = [False] * len(ids)
    for start, token_id in enumerate(ids):
        if token_id != control.turn_start or list(ids[start + 1 : start + 1 + len(role)]) != role:
            continue
        first = start + len(role) + 2  # behind the line break
        if first < len(ids) and ids[first] == control.think_start:
            first += 2
        end = next(i for i in range(first, len(ids)) if ids[i] == control.turn_end)
        marks[first : end + 1] = [True] * (end + 1 - first)
    return marks
