"""Drives a MiniMaxM2 as the engine does, with a block table of the test's choosing."""

from __future__ import annotations

import random

import torch

from m2serve.model.batch import ForwardBatch, KVCache
from m2serve.model.minimax_m2 import MiniMaxM2, allocate_kv_cache

BLOCK_SIZE = 4


class PagedSequences:
    """Sequences of one model over one cache, their blocks handed out in shuffled order."""

    def __init__(self, model: MiniMaxM2, dtype: torch.dtype, num_blocks: int = 256) -> None:
        self.model = model
        device = model.weights.device
        self.cache: KVCache = allocate_kv_cache(model.shape, num_blocks, BLOCK_SIZE, device, dtype)
        # Whatever lies in unused slots must not matter.
        self.cache.keys.fill_(torch.nan)
        self.cache.values.fill_(torch.nan)
        self.free = list(range(num_blocks))
        random.Random(0).shuffle(self.free)
        self.blocks: dict[str, list[int]] = {}
        self.lengths: dict[str, int] = {}

    def run(self, step: list[tuple[str, list[int]]]) -> list[torch.Tensor]:
        """Logits of every new token of each (sequence, token ids), [n, V] each."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        for name, ids in step:
            blocks = self.blocks.setdefault(name, [])
            first = self.lengths.get(name, 0)
            while len(blocks) * BLOCK_SIZE < first + len(ids):
                blocks.append(self.free.pop())
            where = range(first, first + len(ids))
            token_ids += ids
            positions += where
            slots += [blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in where]
            starts.append(starts[-1] + len(ids))
            self.lengths[name] = first + len(ids)
        width = max(len(self.blocks[name]) for name, _ in step)
        table = [self.blocks[n] + [0] * (width - len(self.blocks[n])) for n, _ in step]
        device = self.cache.keys.device
        batch = ForwardBatch(
            token_ids=torch.tensor(token_ids, device=device),
            positions=torch.tensor(positions, device=device),
            slot_mapping=torch.tensor(slots, device=device),
            query_start_loc=torch.tensor(starts, dtype=torch.int32),
            seq_lens=torch.tensor([self.lengths[n] for n, _ in step], dtype=torch.int32),
            block_table=torch.tensor(table, dtype=torch.int32, device=device),
            logits_rows=torch.arange(len(token_ids), device=device),
        )
        with torch.inference_mode():
            logits = self.model.compute_logits(self.model.forward(batch, self.cache))
        return list(logits.split([len(ids) for _, ids in step]))

    def greedy(self, name: str, prompt: list[int], count: int) -> list[int]:
        """The `count` most likely tokens after the prompt, one decode step each."""
        out: list[int] = []
        ids = prompt
        for _ in range(count):
            [logits] = self.run([(name, ids)])
            out.append(int(logits[-1].argmax()))
            ids = out[-1:]
        return out
