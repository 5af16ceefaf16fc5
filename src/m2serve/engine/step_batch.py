"""A scheduled step as the tensors of one forward pass, written into buffers that stay.

Most steps resemble the one before: the same sequences, each one token further. So block tables are
not written again while they are the same, and nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain

import numpy as np
import torch

from m2serve.engine.step import ScheduledStep
from m2serve.model.batch import ForwardBatch


class StepBatcher:
    """Makes ForwardBatches on `device`; on a CPU each is overwritten by the next."""

    def __init__(self, block_size: int, device: torch.device) -> None:
        self._block_size = block_size
        self._device = device
        self._block_table = BlockTable()
        self._token_ids = _Buffer(np.int64)
        self._positions = _Buffer(np.int64)
        self._slot_mapping = _Buffer(np.int64)
        self._query_start_loc = _Buffer(np.int32)
        self._seq_lens = _Buffer(np.int32)
        self._logits_rows = _Buffer(np.int64)

    def build(self, step: ScheduledStep) -> ForwardBatch:
        """The step's ForwardBatch.

        `logits_rows` are the last rows of the sequences that sample, in the step's order, then the
        rows that score prompt tokens, sequence by sequence.
        """
        sequences = step.sequences
        counts = [sequence.num_tokens for sequence in sequences]
        query_start_loc = [0, *accumulate(counts)]
        token_ids = list(chain.from_iterable(sequence.token_ids for sequence in sequences))
        block_table = self._block_table.put([sequence.block_ids for sequence in sequences])
        positions, slots = self._places(step, counts, query_start_loc, block_table)
        move = self._move
        return ForwardBatch(
            token_ids=move(self._token_ids.put(token_ids)),
            positions=move(self._positions.put(positions)),
            slot_mapping=move(self._slot_mapping.put(slots)),
            query_start_loc=self._query_start_loc.put(query_start_loc),
            seq_lens=self._seq_lens.put([sequence.end for sequence in sequences]),
            block_table=move(torch.from_numpy(block_table)),
            logits_rows=move(self._logits_rows.put(_logits_rows(step, query_start_loc))),
        )

    def _places(
        self,
        step: ScheduledStep,
        counts: list[int],
        query_start_loc: list[int],
        block_table: np.ndarray,
    ) -> tuple[np.ndarray | list[int], np.ndarray | list[int]]:
        """Position and slot of every token, T each."""
        size = self._block_size
        starts = [sequence.start for sequence in step.sequences]
        if query_start_loc[-1] == len(counts):  # a token each, as in most steps
            return starts, [one.slot(one.start, size) for one in step.sequences]
        owner = np.repeat(np.arange(len(counts)), counts)
        first = np.array(starts) - query_start_loc[:-1]
        positions = np.arange(len(owner)) + first[owner]
        index, offset = np.divmod(positions, size)
        slots = block_table[owner, index].astype(np.int64) * size + offset
        return positions, slots

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self._device.type == "cpu" else tensor.to(self._device)


class _Buffer:
    """An array that grows, and the tensor that shares its memory."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._array = np.zeros(0, dtype)
        self._tensor = self._used = torch.from_numpy(self._array)

    def put(self, values: np.ndarray | list[int]) -> torch.Tensor:
        count = len(values)
        if count > len(self._array):
            self._array = np.zeros(max(count, 2 * len(self._array)), self._array.dtype)
            self._tensor = self._used = torch.from_numpy(self._array)
        self._array[:count] = values
        if self._used.shape[0] != count:
            self._used = self._tensor[:count]
        return self._used


class BlockTable:
    """Rows of block ids, written as far as they differ from the step before."""

    def __init__(self) -> None:
        self._table = np.zeros((0, 0), dtype=np.int32)
        self._rows: list[tuple[int, ...]] = []

    def put(self, rows: Sequence[tuple[int, ...]]) -> np.ndarray:
        """int32 [S, B], B at least the longest row; what is behind the end of a row is 0."""
        self._reserve(len(rows), max(map(len, rows)))
        for index, (row, known) in enumerate(zip(rows, self._rows, strict=False)):
            if row is known:
                continue
            # A sequence that goes on has the blocks it had and one more now and then.
            same = len(known) if row[: len(known)] == known else 0
            self._table[index, same : len(row)] = row[same:]
            self._table[index, len(row) : len(known)] = 0
            self._rows[index] = row
        return self._table[: len(rows)]

    def _reserve(self, num_rows: int, num_blocks: int) -> None:
        old_rows, old_blocks = self._table.shape
        if num_rows <= old_rows and num_blocks <= old_blocks:
            return
        if num_rows > old_rows:
            num_rows = max(num_rows, 2 * old_rows)
        if num_blocks > old_blocks:
            num_blocks = max(num_blocks, 2 * old_blocks)
        self._table = np.zeros((max(num_rows, old_rows), max(num_blocks, old_blocks)), np.int32)
        self._rows = [()] * len(self._table)


def _logits_rows(step: ScheduledStep, query_start_loc: list[int]) -> list[int]:
    ends = zip(step.sequences, query_start_loc[1:], strict=True)
    rows = [end - 1 for sequence, end in ends if sequence.samples]
    for sequence, start in zip(step.sequences, query_start_loc, strict=False):
        if sequence.prompt_targets:
            rows += range(start, start + sequence.num_prompt_logits)
    return rows
