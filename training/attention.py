"""Causal attention inside documents of one length, laid end to end.

Letters: T tokens of C documents, Q query and G key/value heads of D.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from training.precision import is_mixed_on_cpu, padded_to

LENGTH_MULTIPLE = 32  # few sizes of matrices, see precision.py
MAX_WHOLE = 1024  # tokens; behind it half of the scores computed in vain cost more than they save


def attend(
    q_TQD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, count: int, length: int
) -> torch.Tensor:
    """What each token reads from those before it in its document, [T, Q * D]."""
    q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in (q_TQD, k_TGD, v_TGD))
    if not is_mixed_on_cpu(q):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    elif length <= MAX_WHOLE:
        out = _whole(q, k, v)
    else:
        out = _in_float32(q, k, v).bfloat16()
    return out.transpose(1, 2).flatten(0, 1).flatten(1)


def _in_float32(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The CPU's fused attention is slower in bfloat16, which autocast would make of its inputs."""
    with torch.autocast("cpu", enabled=False):
        heads = (q.float(), k.float(), v.float())
        return F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)


def _whole(q_CQLD: torch.Tensor, k_CGLD: torch.Tensor, v_CGLD: torch.Tensor) -> torch.Tensor:
    """All scores at once, so that the products are large ones. The padding lies behind every token:
    none attends to it."""
    count, num_heads, length, head_dim = q_CQLD.shape
    padded = padded_to(length, LENGTH_MULTIPLE)
    q, k, v = (F.pad(x, (0, 0, 0, padded - length)) for x in (q_CQLD, k_CGLD, v_CGLD))
    k, v = k.flatten(0, 1), v.flatten(0, 1)
    q = q.reshape(len(k), -1, head_dim)  # the queries that share a key lie behind one another
    future = torch.full((padded, padded), -torch.inf, dtype=q.dtype).triu(1)
    scores = torch.bmm(q, k.transpose(1, 2)).unflatten(1, (-1, padded)) * head_dim**-0.5
    shares = torch.softmax(scores + future, -1, dtype=scores.dtype)
    out = torch.bmm(shares.flatten(1, 2), v)
    return out.view(count, num_heads, padded, head_dim)[:, :, :length]
