"""How many of a draft's tokens its target would accept, on held-out conversations.

    python -m training.eagle3_acceptance MODEL_FOLDER DRAFT_FOLDER

Greedy, on what the target itself replies. The draft goes over a reply as an engine would: it
foresees a few tokens, those up to the first wrong one are kept, the target adds its own, and the
draft begins anew behind it. The first token of a reply comes with the prompt and is never drafted.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from m2serve.chat.tokenizer import Tokenizer
from training.batches import make_batch
from training.eagle3 import foresee, load_target
from training.eagle3_export import load_draft
from training.eagle3_modeling import EagleDraft
from training.generation import BATCH, replies
from training.modeling import MiniatureM2
from training.probe import probe_documents
from training.rendering import Document

MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class Acceptance:
    """`accepted[k]` of `num_drafts` drafts had at least k + 1 tokens accepted; with the target's
    own they gave `num_tokens`."""

    num_drafts: int
    num_tokens: int
    accepted: tuple[int, ...]

    @property
    def mean_length(self) -> float:
        """Tokens that a step of the target gives; 0 without a step."""
        return self.num_tokens / self.num_drafts if self.num_drafts else 0.0

    def __add__(self, other: Acceptance) -> Acceptance:
        return Acceptance(
            self.num_drafts + other.num_drafts,
            self.num_tokens + other.num_tokens,
            tuple(a + b for a, b in zip(self.accepted, other.accepted, strict=True)),
        )


def go_over(is_right: Sequence[Sequence[bool]]) -> Acceptance:
    """`is_right[j][n]`: whether draft step j foresees token n of a reply."""
    num_steps, length = len(is_right), len(is_right[0])
    accepted = [0] * num_steps
    num_drafts, at = 0, 1
    while at < length:
        kept = 0
        while kept < min(num_steps, length - at) and is_right[kept][at + kept]:
            accepted[kept] += 1
            kept += 1
        num_drafts += 1
        at += kept + 1
    return Acceptance(num_drafts, max(length - 1, 0), tuple(accepted))


@torch.no_grad()
def acceptance(
    draft: EagleDraft, vocabulary: torch.Tensor, target: MiniatureM2, replied: Sequence[Document]
) -> Acceptance:
    """`vocabulary` int64 [Vd]: the target's id of each of the draft's. One reply a document."""
    batch = make_batch(replied).to(vocabulary.device)
    foreseen, _ = foresee(draft, target, batch)
    is_right = torch.stack([vocabulary[x.argmax(-1)] == batch.targets for x in foreseen])
    total = Acceptance(0, 0, (0,) * len(foreseen))
    for document in range(len(replied)):
        total += go_over(is_right[:, batch.document == document].tolist())
    return total


def own_replies(folder: Path, documents: Sequence[Document]) -> list[Document]:
    """The documents with the model's own greedy reply in place of the last thing that is said."""
    from m2serve.engine.engine import Engine
    from m2serve.engine.request import SamplingParams

    end = Tokenizer.load(folder).control.turn_end
    engine = Engine.load(folder, max_num_seqs=BATCH)
    prompts = [document.token_ids[: _last_reply(document)].tolist() for document in documents]
    params = SamplingParams(max_tokens=MAX_NEW_TOKENS, temperature=0, eos_token_ids=(end,))
    found = replies(engine, prompts, [params] * len(prompts))
    return [
        Document(np.array([*prompt, *ids]), np.array([False] * len(prompt) + [True] * len(ids)))
        for prompt, (ids, _) in zip(prompts, found, strict=True)
    ]


def _last_reply(document: Document) -> int:
    """Where the last thing that is said begins."""
    silent = np.flatnonzero(~document.is_said[: np.flatnonzero(document.is_said)[-1]])
    return int(silent[-1]) + 1


def report(by_kind: Mapping[str, Acceptance]) -> str:
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
    kinds = probe_documents(Tokenizer.load(options.model))
    replied = iter(own_replies(options.model, [d for kind in kinds.values() for d in kind]))
    found = {
        kind: acceptance(draft, vocabulary, target, [next(replied) for _ in documents])
        for kind, documents in kinds.items()
    }
    print(report(found))


if __name__ == "__main__":
    main()
