"""The `mid` shape of `m2 bench engine` as a BF16 checkpoint that every engine loads.

Random and seeded. The tokenizer is made by rule: bytes, then pairs and triples of ASCII letters
until the vocabulary is full. Ids from 256 to the end of those are readable text by themselves, so
no engine holds one back until a character is complete.
"""

from __future__ import annotations

import json
import shutil
import string
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, islice, product
from pathlib import Path
from typing import cast

from tokenizers import Tokenizer, models, pre_tokenizers

from m2serve.spec.shape import ModelShape

TESTS = Path(__file__).resolve().parents[2] / "tests"
sys.path.append(str(TESTS))  # the builder of checkpoints lives with the tests

from tiny import published_config, random_state, write_json, write_shards  # noqa: E402
from tiny_formats import store  # noqa: E402
from tiny_tokenizer import NUM_PADDING_ROWS  # noqa: E402

from training.published_tokenizer import (  # noqa: E402
    ADDED_TOKENS,
    complete,
    tokenizer_config,
)

FIRST_TEXT_ID = 256


def write_checkpoint(folder: Path, shape: ModelShape, seed: int = 0) -> None:
    """Config, weights in four shards, tokenizer and template."""
    folder.mkdir(parents=True, exist_ok=True)
    config = published_config(**{**asdict(shape), "rope_theta": int(shape.rope_theta)})
    tensors, _ = store(random_state(shape, seed), "bf16")
    write_shards(folder, tensors)
    tokenizer = make_tokenizer(shape.vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer))
    generation = {
        "bos_token_id": tokenizer.token_to_id("]~b]"),
        "eos_token_id": tokenizer.token_to_id("[e~["),
    }
    write_json(folder / "generation_config.json", generation)
    shutil.copyfile(TESTS / "tiny_chat_template.jinja", folder / "chat_template.jinja")
    # Last, so that a folder with a config is a whole checkpoint.
    write_json(folder / "config.json", config)


def text_ids(folder: Path) -> range:
    """The ids of pairs and triples of letters of a checkpoint written here."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return range(FIRST_TEXT_ID, config["vocab_size"] - len(ADDED_TOKENS) - NUM_PADDING_ROWS)


def make_tokenizer(vocab_size: int) -> Tokenizer:
    """Byte-level BPE with M2's split rule and added tokens, ids in the published order."""
    size = vocab_size - len(ADDED_TOKENS) - NUM_PADDING_ROWS
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = product(string.ascii_letters, repeat=2)
    triples = ((a + b, c) for a, b, c in product(string.ascii_letters, repeat=3))
    letters = cast(Iterator[tuple[str, str]], chain(pairs, triples))
    merges = list(islice(letters, size - len(alphabet)))
    pieces = [*alphabet, *(left + right for left, right in merges)]
    if len(pieces) != size:
        raise ValueError(f"vocab_size {vocab_size} is out of what letters give")
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    complete(tokenizer)
    return tokenizer
