"""How many of a draft's tokens its target would accept, on held-out conversations.

    python -m training.eagle3_acceptance MODEL_FOLDER DRAFT_FOLDER

Greedy: a drafted token is accepted where it is what the target says, and all before it are.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from m2serve.chat.tokenizer import Tokenizer
from training.batches import Batch, make_batch
from training.eagle3 import foresee, load_target
from training.eagle3_export import load_draft
from training.eagle3_modeling import EagleDraft
from training.modeling import MiniatureM2
from training.probe import probe_documents
from training.rendering import Document


@dataclass(frozen=True)
class Acceptance:
    """`accepted[k]` of `num_drafts` drafts had at least k + 1 tokens accepted."""

    num_drafts: int
    accepted: tuple[int, ...]

    @property
    def mean_length(self) -> float:
        """Tokens that a step of the target gives: those accepted and its own."""
        return 1 + sum(self.accepted) / self.num_drafts if self.num_drafts else 0.0

    def __add__(self, other: Acceptance) -> Acceptance:
        sums = tuple(a + b for a, b in zip(self.accepted, other.accepted, strict=True))
        return Acceptance(self.num_drafts + other.num_drafts, sums)


def count_accepted(drafted: Sequence[torch.Tensor], said: torch.Tensor, batch: Batch) -> Acceptance:
    """`drafted[j]` int64 [R]: what draft step j foresees of a row; `said` int64 [R]: the target.

    Counts only where the conversation goes on as the target would, so that the tokens a later
    step has read are those the target would have been given.
    """
    follows = said == batch.targets
    count = max(0, len(follows) - len(drafted) + 1)
    is_start = torch.ones_like(follows[:count])
    for step in range(1, len(drafted)):
        before, here = (slice(at, at + count) for at in (step - 1, step))
        is_next = batch.rows[here] == batch.rows[before] + 1
        is_start &= is_next & (batch.document[here] == batch.document[before]) & follows[before]
    is_accepted = is_start.clone()
    accepted = []
    for step, tokens in enumerate(drafted):
        here = slice(step, step + count)
        is_accepted &= tokens[here] == said[here]
        accepted.append(int(is_accepted.sum()))
    return Acceptance(int(is_start.sum()), tuple(accepted))


@torch.no_grad()
def acceptance(
    draft: EagleDraft, vocabulary: torch.Tensor, target: MiniatureM2, documents: Sequence[Document]
) -> Acceptance:
    """`vocabulary` int64 [Vd]: the target's id of each of the draft's."""
    batch = make_batch(documents).to(vocabulary.device)
    foreseen, teacher = foresee(draft, target, batch)
    drafted = [vocabulary[logits.argmax(-1)] for logits in foreseen]
    return count_accepted(drafted, teacher.argmax(-1), batch)


def report(by_kind: dict[str, Acceptance]) -> str:
    lines = [f"{'kind':16} {'drafts':>7} {'tokens a step':>14}   accepted at least 1, 2, ..."]
    total = sum(list(by_kind.values())[1:], next(iter(by_kind.values())))
    for kind, found in {**by_kind, "all": total}.items():
        shares = " ".join(f"{n / max(found.num_drafts, 1):6.1%}" for n in found.accepted)
        lines.append(f"{kind:16} {found.num_drafts:7} {found.mean_length:14.2f}   {shares}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the target accepts of a draft.")
    parser.add_argument("model", type=Path)
    parser.add_argument("draft", type=Path)
    options = parser.parse_args()
    target = load_target(options.model, torch.device("cpu"))
    draft, vocabulary = load_draft(options.draft)
    documents = probe_documents(Tokenizer.load(options.model))
    found = {kind: acceptance(draft, vocabulary, target, documents[kind]) for kind in documents}
    print(report(found))


if __name__ == "__main__":
    main()
