"""ForwardBatch: everything one forward pass needs to know, passed as an argument, never global.

Letters: T tokens of this step, S sequences, B blocks of the longest sequence, R rows that want
logits. The tokens of sequence s are rows query_start_loc[s] to query_start_loc[s + 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ForwardBatch:
    """One step's tokens, flattened over sequences.

    slot_mapping[t] = block_id * block_size + offset, where token t's key and value are written.
    seq_lens[s] counts all tokens of s in the cache after this step (cached and new).
    """

    token_ids: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T]
    slot_mapping: torch.Tensor  # int64 [T]
    query_start_loc: torch.Tensor  # int32 [S + 1], on the CPU
    seq_lens: torch.Tensor  # int32 [S], on the CPU
    block_table: torch.Tensor  # int32 [S, B]
    logits_rows: torch.Tensor  # int64 [R]


@dataclass(frozen=True)
class KVCache:
    """Paged keys and values of all layers: [L, num_blocks, block_size, Hkv, D] each.

    int8 ones have a float32 scale for every token and head, [L, num_blocks, block_size, Hkv]. In
    main memory the vectors of a head of a block lie side by side: the two dims change places.
    """

    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor | None = None
    value_scales: torch.Tensor | None = None

    @property
    def block_size(self) -> int:
        return self.keys.shape[2]

    @property
    def num_blocks(self) -> int:
        return self.keys.shape[1]
