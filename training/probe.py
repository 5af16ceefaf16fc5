"""How well the model does on held-out conversations while it learns: the learning curves.

Given the text up to each of its tokens, how likely is the right token (loss), how often is it the
likeliest (token accuracy), and how often are all tokens of a conversation (exact).
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from m2serve.chat.tokenizer import Tokenizer
from training.batches import make_batch
from training.mixture import GENERATORS
from training.modeling import MiniatureM2
from training.rendering import Document, render_document

SAMPLES_A_KIND = 32
FIELDS = ("step", "tokens", "elapsed_s", "kind", "loss", "token_accuracy", "exact")


@dataclass(frozen=True)
class Score:
    kind: str
    loss: float
    token_accuracy: float
    exact: float


def probe_documents(tokenizer: Tokenizer, count: int = SAMPLES_A_KIND) -> dict[str, list[Document]]:
    """The same held-out conversations whatever the run's seed."""
    return {
        kind: [
            render_document(make(random.Random(f"probe:{kind}:{n}"), "held_out"), tokenizer)
            for n in range(count)
        ]
        for kind, make in GENERATORS.items()
    }


@torch.no_grad()
def score(model: MiniatureM2, kind: str, documents: Sequence[Document]) -> Score:
    device = model.norm.device
    batch = make_batch(documents).to(device)
    logits = model(batch.token_ids, batch.blocks, batch.rows, batch.is_real).logits
    is_right = logits.argmax(1) == batch.targets
    wrong_documents = batch.document[~is_right].unique()
    return Score(
        kind,
        round(float(F.cross_entropy(logits, batch.targets)), 4),
        round(float(is_right.float().mean()), 4),
        round(1 - len(wrong_documents) / len(documents), 4),
    )


def append_scores(
    path: Path, scores: Sequence[Score], step: int, tokens: int, elapsed_s: float
) -> None:
    """Rows of the learning curves; the first call writes the head."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if is_new:
            writer.writeheader()
        for row in scores:
            at = {"step": step, "tokens": tokens, "elapsed_s": round(elapsed_s, 1)}
            writer.writerow(at | vars(row))
