"""A scheduled step as the tensors of one forward pass, built with numpy in whole arrays."""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch

from m2serve.engine.step import ScheduledStep
from m2serve.model.batch import ForwardBatch


def forward_batch(step: ScheduledStep, block_size: int, device: torch.device) -> ForwardBatch:
    """The step's ForwardBatch on `device`.

    `logits_rows` are the last rows of the sequences that sample, in the step's order, then the
    rows that score prompt tokens, sequence by sequence.
    """
    counts = np.array([sequence.num_tokens for sequence in step.sequences])
    starts = np.array([sequence.start for sequence in step.sequences])
    query_start_loc = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=query_start_loc[1:])
    num_tokens = int(query_start_loc[-1])
    owner = np.repeat(np.arange(len(counts)), counts)

    block_table = _block_table(step)
    token_ids = np.fromiter(
        chain.from_iterable(sequence.token_ids for sequence in step.sequences),
        dtype=np.int64,
        count=num_tokens,
    )
    positions = np.arange(num_tokens) + (starts - query_start_loc[:-1])[owner]
    blocks = block_table[owner, positions // block_size].astype(np.int64)
    slot_mapping = blocks * block_size + positions % block_size

    # One transfer for all that has a row a token.
    per_token = torch.from_numpy(np.stack([token_ids, positions, slot_mapping])).to(device)
    return ForwardBatch(
        token_ids=per_token[0],
        positions=per_token[1],
        slot_mapping=per_token[2],
        query_start_loc=torch.from_numpy(query_start_loc),
        seq_lens=torch.from_numpy((starts + counts).astype(np.int32)),
        block_table=torch.from_numpy(block_table).to(device),
        logits_rows=torch.from_numpy(_logits_rows(step, query_start_loc)).to(device),
    )


def _block_table(step: ScheduledStep) -> np.ndarray:
    """int32 [S, B]; the unused end of a row is 0."""
    width = max(len(sequence.block_ids) for sequence in step.sequences)
    table = np.zeros((len(step.sequences), width), dtype=np.int32)
    for row, sequence in zip(table, step.sequences, strict=True):
        row[: len(sequence.block_ids)] = sequence.block_ids
    return table


def _logits_rows(step: ScheduledStep, query_start_loc: np.ndarray) -> np.ndarray:
    samples = np.array([sequence.samples for sequence in step.sequences])
    rows = [query_start_loc[1:][samples] - 1]
    for start, sequence in zip(query_start_loc, step.sequences, strict=False):
        if sequence.num_prompt_logits:
            rows.append(np.arange(start, start + sequence.num_prompt_logits))
    return np.concatenate(rows).astype(np.int64)
