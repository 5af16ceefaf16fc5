"""A tiny random checkpoint that answers every chat prompt with one and the same text.

Each token of the answer has an embedding far larger than what any layer adds to it, along an axis
of its own, and lm_head turns that axis into the next token. Other tokens go through the random
model as ever. So an engine that cannot be scripted can be made to reason and to call tools.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from tiny import TinyCheckpoint, build_tiny, published_config, random_state

from m2serve.chat.tokenizer import Tokenizer
from m2serve.spec.shape import ModelShape

PROMPT_END = "<think>\n"
EMBEDDING_SCALE = 1000.0
HEAD_SCALE = 5.0
# Tokens, none of them twice; not always those that BPE would choose.
PIECES = (
    *("I", " s", "h", "ou", "l", "d", " loo", "k", " it", " u", "p", ".\n", "</think>", "\n\n"),
    *("O", "n", "e", " m", "o", "m", "ent", ":\n", "<minimax:tool_call>", "<invoke", " name", "="),
    *('"', "ge", "t", "_weather", '">\n', "<parameter", " ", "name", '="', "c", "ity", '">', "B"),
    *("er", "lin", "</", "par", "ame", "te", "r", ">\n", "<", "/", "invoke", ">"),
    "</minimax:tool_call>",
)
REASONING = "I should look it up."
CONTENT = "One moment:"
CALL = ("get_weather", {"city": "Berlin"})


def build_parrot(folder: Path | str, *, seed: int = 0, **options: Any) -> TinyCheckpoint:
    """ANSWER follows the "<think>\\n" that every chat prompt ends with; the turn ends behind it."""
    shape = ModelShape.from_config(published_config())
    build_tiny(folder, seed=seed, **options)
    tokenizer = Tokenizer.load(folder)
    prompt_end = tokenizer.encode(PROMPT_END, allow_control=True)[-1]
    ids = {tokenizer.token_bytes(id): id for id in range(tokenizer.used_vocab_size)}
    path = [prompt_end, *(ids[piece.encode()] for piece in PIECES), tokenizer.control.turn_end]
    assert len(set(path)) == len(path) <= shape.hidden_size, "each token needs an axis of its own"
    state = random_state(shape, seed)
    embeddings, head = state["model.embed_tokens.weight"], state["lm_head.weight"]
    for axis, (token_id, next_id) in enumerate(pairwise(path)):
        embeddings[token_id] = 0
        embeddings[token_id, axis] = EMBEDDING_SCALE
        head[next_id, axis] = HEAD_SCALE
    return build_tiny(folder, seed=seed, state=state, **options)
