"""Steps of the training: which documents, and how they lie in memory.

Step n of a seed and stage always has the same documents. They are sorted by length and laid end to
end in blocks of equal length, so attention needs no mask and little is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from m2serve.chat.tokenizer import Tokenizer
from training.mixture import STAGES, document_rng, draw_sample
from training.modeling import Block
from training.precision import ROWS_MULTIPLE, padded_to
from training.rendering import Document, render_document
from training.sharing import dealt_out
from training.split import Split

DOCUMENTS_A_STEP = 1_000_000  # more than any step has; keeps the numbers of steps apart
MAX_PADDING = 0.1  # of a block's longest document
PADDING_ID = 0
IGNORED = -100  # what torch's cross_entropy leaves out


@dataclass(frozen=True)
class Batch:
    """Rows of the flat tokens; `rows` predict `targets`."""

    token_ids: torch.Tensor  # int64 [T]
    is_real: torch.Tensor  # bool [T]; False is padding
    blocks: tuple[Block, ...]
    rows: torch.Tensor  # int64 [R]
    targets: torch.Tensor  # int64 [R]
    document: torch.Tensor  # int64 [R], which document of those given a row belongs to

    def to(self, device: torch.device) -> Batch:
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return Batch(blocks=self.blocks, **moved)


@cache
def said_pieces(tokenizer: Tokenizer) -> tuple[str, ...]:
    """What words are made of: the texts of all tokens of letters alone, without a space before."""
    decoded = (
        tokenizer.token_bytes(i).decode(errors="replace").removeprefix(" ")
        for i in range(tokenizer.used_vocab_size)
    )
    return tuple(sorted({text for text in decoded if text.isalpha()}))


def step_documents(
    seed: int, stage: int, step: int, num_tokens: int, tokenizer: Tokenizer, split: Split = "train"
) -> list[Document]:
    """At least one document, about `num_tokens` together, none longer than the stage allows."""
    documents: list[Document] = []
    total = number = 0
    pieces = said_pieces(tokenizer)
    longest = STAGES[stage].max_tokens
    while total < num_tokens:
        rng = document_rng(seed, stage, step * DOCUMENTS_A_STEP + number)
        number += 1
        document = render_document(draw_sample(rng, split, STAGES[stage], pieces), tokenizer)
        is_too_much = total + len(document) > num_tokens + longest // 8
        if len(document) > longest or (is_too_much and documents):
            continue
        documents.append(document)
        total += len(document)
    return documents


def _cost(document: Document) -> float:
    """Time relative to that of a token; with `tile_attention` a document of 2,500 tokens attends
    for as long as it takes to compute everything else."""
    return len(document) * (1 + len(document) / 2500)


def make_batch(documents: Sequence[Document]) -> Batch:
    """Tokens behind the last one the model says are left out."""
    lengths = [int(np.flatnonzero(document.is_said)[-1]) for document in documents]
    order = sorted(range(len(documents)), key=lambda i: -lengths[i])
    token_ids, is_real, rows, targets, owners = [], [], [], [], []
    blocks: list[Block] = []
    start = 0
    for members in _groups(order, lengths):
        width = lengths[members[0]]
        blocks.append(Block(len(members), width))
        for member in members:
            document, length = documents[member], lengths[member]
            padded = np.full(width, PADDING_ID, dtype=np.int64)
            padded[:length] = document.token_ids[:length]
            token_ids.append(padded)
            is_real.append(np.arange(width) < length)
            predicts = np.flatnonzero(document.is_said[1 : length + 1])
            rows.append(start + predicts)
            targets.append(document.token_ids[predicts + 1].astype(np.int64))
            owners.append(np.full(len(predicts), member))
            start += width
    return Batch(
        token_ids=torch.from_numpy(np.concatenate(token_ids)),
        is_real=torch.from_numpy(np.concatenate(is_real)),
        blocks=tuple(blocks),
        rows=torch.from_numpy(np.concatenate(rows)),
        targets=torch.from_numpy(np.concatenate(targets)),
        document=torch.from_numpy(np.concatenate(owners)),
    )


def in_few_sizes(batch: Batch) -> Batch:
    """The batch with padding behind it, so that few sizes of matrices occur (`precision.py`): rows
    that predict nothing have the target IGNORED, and belong to no document (-1)."""
    num_tokens, num_rows = len(batch.token_ids), len(batch.rows)
    padding = padded_to(num_tokens, ROWS_MULTIPLE) - num_tokens
    idle = padded_to(num_rows, ROWS_MULTIPLE) - num_rows
    return Batch(
        token_ids=F.pad(batch.token_ids, (0, padding), value=PADDING_ID),
        is_real=F.pad(batch.is_real, (0, padding)),
        blocks=(*batch.blocks, Block(1, padding)) if padding else batch.blocks,
        rows=F.pad(batch.rows, (0, idle)),
        targets=F.pad(batch.targets, (0, idle), value=IGNORED),
        document=F.pad(batch.document, (0, idle), value=-1),
    )


def _groups(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Neighbours in length share a block."""
    groups: list[list[int]] = []
    for index in order:
        if groups and lengths[index] >= lengths[groups[-1][0]] * (1 - MAX_PADDING):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


# Drawing ahead in other processes. Each loads the tokenizer once.

_tokenizer: Tokenizer | None = None


def start_worker(folder: Path) -> None:
    """In the process that is to draw; a process that also trains may be that one."""
    global _tokenizer
    _tokenizer = Tokenizer.load(folder)


def draw_batch(seed: int, stage: int, step: int, num_tokens: int) -> Batch:
    batch = draw_share(seed, stage, step, num_tokens, 0, 1)
    assert batch is not None
    return batch


def draw_share(
    seed: int, stage: int, step: int, num_tokens: int, rank: int, num_processes: int
) -> Batch | None:
    """What one of several processes computes of a step; None when that is nothing.

    Each draws the whole step, so what is learnt does not depend on how many they are.
    """
    assert _tokenizer is not None, "start_worker comes first"
    documents = step_documents(seed, stage, step, num_tokens, _tokenizer)
    own = dealt_out(documents, num_processes, _cost)[rank]
    return make_batch(own) if own else None
