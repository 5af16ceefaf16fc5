"""Causal attention inside documents, laid end to end in blocks of one length.

Letters: T tokens, C documents of a block, Q query and G key/value heads of D.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from training import tile_attention
from training.precision import is_mixed_on_cpu


def attend(
    q_TQD: torch.Tensor,
    k_TGD: torch.Tensor,
    v_TGD: torch.Tensor,
    blocks: Sequence[tuple[int, int]],
) -> torch.Tensor:
    """What each token reads from those before it in its document, [T, Q * D]; `blocks` are (number
    of documents, tokens of each)."""
    if is_mixed_on_cpu(q_TQD) and tile_attention.is_available(q_TQD.shape[-1]):
        lengths = [length for count, length in blocks for _ in range(count)]
        return tile_attention.attend_documents(q_TQD, k_TGD, v_TGD, lengths)
    sizes = [count * length for count, length in blocks]
    parts = zip(blocks, q_TQD.split(sizes), k_TGD.split(sizes), v_TGD.split(sizes), strict=True)
    return torch.cat([_attend_block(*heads, *block) for block, *heads in parts])


def _attend_block(
    q_TQD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, count: int, length: int
) -> torch.Tensor:
    heads = (x.unflatten(0, (count, length)).transpose(1, 2) for x in (q_TQD, k_TGD, v_TGD))
    out_CQLD = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
    return out_CQLD.transpose(1, 2).flatten(0, 1).flatten(1)
