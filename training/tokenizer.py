"""Trains the miniature's tokenizer: byte-level BPE over the small world, M2's added tokens behind.

    python -m training.tokenizer FOLDER [--vocab-size 4096] [--documents 20000] [--seed 0]

The text is cut finer for training than by M2's split rule, which the file carries: digits and
Chinese characters one by one. So no merge ever crosses them, a number is its digits and a name is
the same tokens in every sentence, while any reader of M2's tokenizers reads this one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers import trainers as bpe_trainers

from m2serve.chat.control import CONTROL_TEXTS
from training.facts import LANGUAGES, load_relations
from training.mixture import STAGES, document_rng, draw_sample
from training.published_tokenizer import ADDED_TOKENS, complete, splitter, tokenizer_config
from training.rendering import full_text

VOCAB_SIZE = 4096
NUM_DOCUMENTS = 20_000
MODEL_MAX_LENGTH = 4096

_FINER_PATTERN = r"\p{Han}|\p{N}"


def train_tokenizer(vocab_size: int, num_documents: int, seed: int) -> Tokenizer:
    """Raises ValueError when the text has too few different pairs for the size."""
    learned = _learn(vocab_size - len(ADDED_TOKENS), world_texts(num_documents, seed))
    tokenizer = Tokenizer(models.BPE(vocab=learned["vocab"], merges=learned["merges"]))
    complete(tokenizer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"only {tokenizer.get_vocab_size()} of {vocab_size} ids could be filled")
    return tokenizer


def world_texts(num_documents: int, seed: int) -> Iterator[str]:
    """Every fact and a draw of conversations, without control tokens."""
    for relation in load_relations():
        for language in LANGUAGES:
            for fact in relation.facts_in(language):
                yield relation.statement(fact, language)
    for index in range(num_documents):
        text = full_text(draw_sample(document_rng(seed, len(STAGES), index), "train"))
        for control in CONTROL_TEXTS:
            text = text.replace(control, "\n")
        yield text


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer_config.json with the fields of the published one, then tokenizer.json: whoever
    finds the latter finds both."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tokenizer_config(tokenizer, MODEL_MAX_LENGTH)
    text = json.dumps(config, ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    fresh = folder / "tokenizer.json.new"
    tokenizer.save(str(fresh), pretty=False)
    fresh.rename(folder / "tokenizer.json")


def _learn(size: int, texts: Iterator[str]) -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_FINER_PATTERN), behavior="isolated"),
            splitter(),
        ]
    )
    trainer = bpe_trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the miniature's tokenizer.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE)
    parser.add_argument("--documents", type=int, default=NUM_DOCUMENTS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = train_tokenizer(arguments.vocab_size, arguments.documents, arguments.seed)
    write_tokenizer(tokenizer, arguments.folder)


if __name__ == "__main__":
    main()
