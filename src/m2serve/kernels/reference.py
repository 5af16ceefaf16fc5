"""Every operation of the decoder in plain PyTorch: the definition, and the oracle of fast kernels.

Letters: T tokens of the step, S sequences, H hidden size, Q query heads, G key/value heads, D head
size, E experts, k experts a token, I expert width, V vocabulary. Statistics of norms, router and
softmax are float32; everything else has the dtype of the activations, bfloat16 or float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from m2serve.checkpoint.weights import DenseWeight, QuantizedWeight, Weight
from m2serve.kernels.dequantize import dequantize, row_range, select

# A quantised matrix is expanded this many rows at a time, so the copy stays small.
_ROWS_AT_ONCE = 2048
# Scores of one slice of a prefill: query rows times context, over all heads.
_SCORES_AT_ONCE = 1 << 24


def linear(x_TK: torch.Tensor, weight: Weight) -> torch.Tensor:
    """x Wᵀ: [T, K] -> [T, N]; batch dims of W count as rows, one matrix after the other.

    A quantised W is expanded to x's dtype for the moment.
    """
    if isinstance(weight, DenseWeight):
        return F.linear(x_TK, weight.weight.flatten(0, -2).to(x_TK.dtype))
    return F.linear(x_TK, _expand(weight, x_TK.dtype))


def _expand(weight: QuantizedWeight, dtype: torch.dtype) -> torch.Tensor:
    """A quantised weight as one dense matrix of `dtype`."""
    stored = weight.packed if hasattr(weight, "packed") else weight.weight
    if stored.ndim > 2:
        return dequantize(weight).to(dtype).flatten(0, -2)
    rows = stored.shape[0]
    starts = range(0, rows, _ROWS_AT_ONCE)
    parts = [row_range(weight, start, min(start + _ROWS_AT_ONCE, rows)) for start in starts]
    return torch.cat([dequantize(part).to(dtype) for part in parts])


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x * rsqrt(mean(x²) + eps) * weight over the last dim, computed in float32."""
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return (x32 * scale * weight.float()).to(x.dtype)


def rotary_cos_sin(
    positions_T: torch.Tensor, rotary_dim: int, theta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [T, 1, rotary_dim / 2] each: angle = position * theta^(-2i / rotary_dim)."""
    exponents = torch.arange(0, rotary_dim, 2, device=positions_T.device).float() / rotary_dim
    angles = positions_T.float()[:, None, None] * (1.0 / theta**exponents)
    return angles.cos(), angles.sin()


def apply_rotary(x_TQD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs (i, i + R/2) of the first R dims of each head; the others pass through."""
    half = cos.shape[-1]
    first, second = x_TQD[..., :half].float(), x_TQD[..., half : 2 * half].float()
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return torch.cat([rotated.to(x_TQD.dtype), x_TQD[..., 2 * half :]], -1)


def write_kv(
    k_TGD: torch.Tensor,
    v_TGD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slot_mapping_T: torch.Tensor,
) -> None:
    """Store the step's keys and values in one layer's cache [num_blocks, block_size, G, D]."""
    keys.flatten(0, 1).index_copy_(0, slot_mapping_T, k_TGD.to(keys.dtype))
    values.flatten(0, 1).index_copy_(0, slot_mapping_T, v_TGD.to(values.dtype))


def paged_attention(
    q_TQD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    block_table: torch.Tensor,
) -> torch.Tensor:
    """Causal attention of each sequence's new tokens over its cache: [T, Q, D] -> [T, Q, D].

    `query_start_loc`, `seq_lens` and `block_table` as in ForwardBatch. Sequences with one new
    token are computed together, the others one by one.
    """
    out = torch.empty_like(q_TQD)
    starts = query_start_loc.tolist()
    lens = seq_lens.tolist()
    decoding = [s for s in range(len(lens)) if starts[s + 1] - starts[s] == 1]
    if decoding:
        rows = torch.tensor([starts[s] for s in decoding], device=q_TQD.device)
        context = torch.tensor([lens[s] for s in decoding], device=q_TQD.device)
        which = torch.tensor(decoding, device=q_TQD.device)
        out[rows] = _decode(q_TQD[rows], keys, values, context, block_table[which])
    for s in range(len(lens)):
        start, end = starts[s], starts[s + 1]
        if end - start > 1:
            out[start:end] = _prefill(q_TQD[start:end], keys, values, lens[s], block_table[s])
    return out


def _gather(cache: torch.Tensor, block_table: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """[..., B] block ids -> [..., num_tokens, G, D]."""
    num_blocks = -(-num_tokens // cache.shape[1])
    return cache[block_table[..., :num_blocks]].flatten(-4, -3)[..., :num_tokens, :, :]


def _decode(
    q_SQD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    context_S: torch.Tensor,
    block_table: torch.Tensor,
) -> torch.Tensor:
    """One query a sequence; the query heads of one key/value head are the rows of one matrix."""
    longest = int(context_S.max())
    k_SCGD = _gather(keys, block_table, longest)
    v_SCGD = _gather(values, block_table, longest)
    mask = None
    if int(context_S.min()) < longest:
        unseen = torch.arange(longest, device=q_SQD.device) >= context_S[:, None]
        # A reused block may hold NaN of a failed request, which no mask alone would hide.
        k_SCGD[unseen] = 0
        v_SCGD[unseen] = 0
        mask = ~unseen[:, None, None, :]
    q = q_SQD.unflatten(1, (k_SCGD.shape[2], -1))
    out = F.scaled_dot_product_attention(
        q, k_SCGD.transpose(1, 2), v_SCGD.transpose(1, 2), attn_mask=mask
    )
    return out.flatten(1, 2)


def _prefill(
    q_TQD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    context: int,
    block_table: torch.Tensor,
) -> torch.Tensor:
    """The newest T tokens of one sequence, in slices that bound the score matrix."""
    k_GCD = _gather(keys, block_table, context).transpose(0, 1)
    v_GCD = _gather(values, block_table, context).transpose(0, 1)
    group = q_TQD.shape[1] // k_GCD.shape[0]
    k_QCD, v_QCD = k_GCD.repeat_interleave(group, 0), v_GCD.repeat_interleave(group, 0)
    first = context - q_TQD.shape[0]
    step = max(1, _SCORES_AT_ONCE // (context * q_TQD.shape[1]))
    slices = []
    for q in q_TQD.split(step):
        last = first + q.shape[0]
        column = torch.arange(last, device=q.device)
        mask = column <= torch.arange(first, last, device=q.device)[:, None]
        slices.append(
            F.scaled_dot_product_attention(
                q.transpose(0, 1)[None], k_QCD[None, :, :last], v_QCD[None, :, :last], mask
            )[0].transpose(0, 1)
        )
        first = last
    return torch.cat(slices)


def route(
    x_TH: torch.Tensor, gate_EH: torch.Tensor, bias_E: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights float32 [T, k], expert ids int64 [T, k]).

    The correction bias takes part in the choice only; the weights are the chosen sigmoid scores
    divided by their sum.
    """
    scores = torch.sigmoid(F.linear(x_TH.float(), gate_EH))
    ids = torch.topk(scores + bias_E, top_k, dim=-1).indices
    weights = scores.gather(-1, ids)
    return weights / weights.sum(-1, keepdim=True), ids


def experts(
    x_TH: torch.Tensor,
    w13: Weight,
    w2: Weight,
    weights_Tk: torch.Tensor,
    ids_Tk: torch.Tensor,
) -> torch.Tensor:
    """Sum over the chosen experts of weight * W2(silu(W1 x) * W3 x), [T, H].

    w13 has the batch dims [E, 2] (w1, w3), w2 has [E]. Tokens are sorted by expert and only the
    experts that are hit are touched. The sum is float32, in the order of the experts.
    """
    flat = ids_Tk.flatten()
    order = flat.argsort(stable=True)
    token = order // ids_Tk.shape[1]
    counts = torch.bincount(flat).tolist()
    scale = weights_Tk.flatten()[order, None]
    out = torch.zeros(x_TH.shape, dtype=torch.float32, device=x_TH.device)
    start = 0
    for expert, count in enumerate(counts):
        if count == 0:
            continue
        rows = token[start : start + count]
        x = x_TH[rows]
        gate, up = linear(x, select(w13, expert)).chunk(2, -1)
        y = linear(F.silu(gate) * up, select(w2, expert))
        out.index_add_(0, rows, y.float() * scale[start : start + count])
        start += count
    return out.to(x_TH.dtype)
