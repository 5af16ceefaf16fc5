"""Tokenizer, rendering and batches: what the model is shown, and what it must say."""

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from m2serve.chat.tokenizer import Tokenizer
from training.batches import make_batch, step_documents
from training.conversations.tool_use import tool_use
from training.mixture import GENERATORS, STAGES
from training.published_tokenizer import ADDED_TOKENS
from training.rendering import full_ids, prompt_ids, render_document, said


def test_added_tokens_stand_behind_in_the_published_order(tokenizer: Tokenizer) -> None:
    digest = hashlib.sha256("\n".join(ADDED_TOKENS).encode()).hexdigest()
    assert (len(ADDED_TOKENS), digest[:16]) == (54, "c3fba42f8b6c4136")
    first = tokenizer.used_vocab_size - len(ADDED_TOKENS)
    assert [tokenizer.decode([first + n]) for n in range(len(ADDED_TOKENS))] == list(ADDED_TOKENS)


@pytest.mark.parametrize("text", ["12345 + 678", "法国的首都是巴黎。", "x2法3", "第12章"])
def test_digits_and_chinese_characters_are_never_merged(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    for token_id in ids:
        piece = tokenizer.decode([token_id]).strip()
        assert len(piece) == 1 or not any(c.isdigit() or c > "\u2e80" for c in piece)


def test_any_text_survives(tokenizer: Tokenizer) -> None:
    for text in ("naïve Ça va ? 😀", "\n\n\t x", "ключ", "]~b]user\n[e~[", '{"a": [1, "b"]}'):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", list(GENERATORS))
def test_what_is_served_begins_what_was_trained(kind: str, tokenizer: Tokenizer) -> None:
    for n in range(40):
        sample = GENERATORS[kind](random.Random(n), "train")
        prompt, ids = prompt_ids(sample, tokenizer), full_ids(sample, tokenizer)
        assert ids[: len(prompt)] == prompt
        marks = said(ids, tokenizer)
        assert not any(marks[len(prompt) - 2 : len(prompt)])
        assert all(marks[len(prompt) : ids.index(tokenizer.control.turn_end, len(prompt)) + 1])


def test_only_the_model_is_trained_to_speak(tokenizer: Tokenizer) -> None:
    for n in range(60):
        sample = tool_use(random.Random(n), "train")
        document = render_document(sample, tokenizer)
        spoken = tokenizer.decode(document.token_ids[document.is_said].tolist())
        assert "]~b]" not in spoken
        assert "<response>" not in spoken
        assert spoken.endswith("[e~[")
        assert sample.last.content in spoken


def test_a_step_is_always_the_same(tokenizer: Tokenizer) -> None:
    first = step_documents(3, 0, 7, 3000, tokenizer)
    again = step_documents(3, 0, 7, 3000, tokenizer)
    other = step_documents(3, 0, 8, 3000, tokenizer)
    assert [d.token_ids.tolist() for d in first] == [d.token_ids.tolist() for d in again]
    assert first[0].token_ids.tolist() != other[0].token_ids.tolist()
    assert 2000 < sum(map(len, first)) < 4000
    assert all(len(d) <= STAGES[0].max_tokens for d in first)


def test_rows_predict_what_the_model_says(tokenizer: Tokenizer) -> None:
    documents = step_documents(0, 0, 0, 4000, tokenizer)
    batch = make_batch(documents)
    assert sum(block.count * block.length for block in batch.blocks) == len(batch.token_ids)
    assert int(batch.is_real.sum()) > 0.9 * len(batch.token_ids)
    assert bool(batch.is_real[batch.rows].all())
    for number, document in enumerate(documents):
        said_ids = document.token_ids[document.is_said].astype(np.int64)
        assert batch.targets[batch.document == number].tolist() == said_ids.tolist()
    inside = batch.rows[:-1][batch.rows[1:] == batch.rows[:-1] + 1]
    follows = batch.targets[:-1][batch.rows[1:] == batch.rows[:-1] + 1]
    assert torch.equal(batch.token_ids[inside + 1], follows)


def test_the_tokenizer_files_are_complete(tokenizer_folder: Path) -> None:
    assert sorted(path.name for path in tokenizer_folder.iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
