"""Every operation of the decoder in plain PyTorch: the definition, and the oracle of fast kernels.

Letters: T tokens of the step, S sequences, H hidden size, Q query heads, G key/value heads, D head
size, E experts, k experts a token, I expert width, V vocabulary. Statistics of norms, router and
softmax are float32; everything else has the dtype of the activations, bfloat16 or float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F

from m2serve.checkpoint.weights import DenseWeight, Weight
from m2serve.kernels.dequantize import dequantize, pieces, select

# A quantised matrix is expanded this many rows at a time.
_ROWS_AT_ONCE = 2048
# Scores of one slice of a prefill: query rows times context, over all heads.
_SCORES_AT_ONCE = 1 << 24
# Tokens whose keys and values are copied out of the cache for one slice of the decodes.
_CONTEXT_AT_ONCE = 1 << 17


def linear(x_TK: torch.Tensor, weight: Weight) -> torch.Tensor:
    """x Wᵀ: [T, K] -> [T, N]; batch dims of W count as rows, one matrix after the other.

    Of a quantised W only one piece at a time exists expanded, in x's dtype.
    """
    if isinstance(weight, DenseWeight):
        return F.linear(x_TK, weight.weight.flatten(0, -2).to(x_TK.dtype))
    parts = pieces(weight, _ROWS_AT_ONCE)
    return torch.cat([F.linear(x_TK, dequantize(part).to(x_TK.dtype)) for part in parts], -1)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x * rsqrt(mean(x²) + eps) * weight over the last dim, computed in float32."""
    return F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps).to(x.dtype)


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
    first, second, rest = x_TQD.float().split([half, half, x_TQD.shape[-1] - 2 * half], -1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return torch.cat([*turned, rest], -1).to(x_TQD.dtype)


def write_kv(
    k_TGD: torch.Tensor,
    v_TGD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slot_mapping_T: torch.Tensor,
) -> None:
    """Store the step's keys and values in one layer's cache [num_blocks, block_size, G, D]."""
    blocks, offsets = slot_mapping_T // keys.shape[1], slot_mapping_T % keys.shape[1]
    keys[blocks, offsets] = k_TGD.to(keys.dtype)
    values[blocks, offsets] = v_TGD.to(values.dtype)


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
    starts, lens = query_start_loc.tolist(), seq_lens.tolist()
    decoding = []
    for s, (start, end) in enumerate(pairwise(starts)):
        if end - start == 1:
            decoding.append(s)
        elif end > start:
            out[start:end] = _prefill(q_TQD[start:end], keys, values, lens[s], block_table[s])
    for chosen in _of_similar_length(decoding, lens):
        rows = torch.tensor([starts[s] for s in chosen], device=q_TQD.device)
        table = block_table[torch.tensor(chosen, device=q_TQD.device)]
        q_SQD = q_TQD.index_select(0, rows)
        attended = _decode(q_SQD, keys, values, [lens[s] for s in chosen], table)
        out.index_copy_(0, rows, attended)
    return out


def _of_similar_length(sequences: list[int], lens: list[int]) -> Iterator[list[int]]:
    """Groups, the longest first, each padded to at most _CONTEXT_AT_ONCE tokens (or a single one).

    Without them one long sequence would pad every other one to its length.
    """
    rest = sorted(sequences, key=lens.__getitem__, reverse=True)
    while rest:
        count = max(1, _CONTEXT_AT_ONCE // lens[rest[0]])
        yield rest[:count]
        rest = rest[count:]


def _gather(
    cache: torch.Tensor, block_table: torch.Tensor, num_tokens: int, dtype: torch.dtype
) -> torch.Tensor:
    """[..., B] block ids -> [..., num_tokens, G, D], a copy."""
    ids = block_table[..., : -(-num_tokens // cache.shape[1])]
    blocks = cache.index_select(0, ids.flatten()).view(*ids.shape, *cache.shape[1:])
    return blocks.flatten(-4, -3)[..., :num_tokens, :, :].to(dtype)


def _decode(
    q_SQD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    lens: list[int],
    block_table: torch.Tensor,
) -> torch.Tensor:
    """One query a sequence; the query heads of one key/value head are the rows of one matrix."""
    longest = max(lens)
    k_SCGD = _gather(keys, block_table, longest, q_SQD.dtype)
    v_SCGD = _gather(values, block_table, longest, q_SQD.dtype)
    mask = None
    if min(lens) < longest:
        context = torch.tensor(lens, device=q_SQD.device)
        unseen = torch.arange(longest, device=q_SQD.device) >= context[:, None]
        # A reused block may hold NaN of a failed request, which no mask alone would hide.
        k_SCGD.masked_fill_(unseen[..., None, None], 0)
        v_SCGD.masked_fill_(unseen[..., None, None], 0)
        mask = ~unseen[:, None, None, :]
    out = F.scaled_dot_product_attention(
        q_SQD.unflatten(1, (keys.shape[2], -1)),
        k_SCGD.transpose(1, 2),
        v_SCGD.transpose(1, 2),
        attn_mask=mask,
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
    k_GCD = _gather(keys, block_table, context, q_TQD.dtype).transpose(0, 1)
    v_GCD = _gather(values, block_table, context, q_TQD.dtype).transpose(0, 1)
    first = context - q_TQD.shape[0]
    step = max(1, _SCORES_AT_ONCE // (context * q_TQD.shape[1]))
    slices = []
    for q in q_TQD.split(step):
        last = first + q.shape[0]
        slices.append(_prefill_slice(q, k_GCD[:, :last], v_GCD[:, :last]))
        first = last
    return torch.cat(slices)


def _prefill_slice(q_TQD: torch.Tensor, k_GCD: torch.Tensor, v_GCD: torch.Tensor) -> torch.Tensor:
    """The last T of C tokens; a key/value head's rows are its query heads, one after the other."""
    num_tokens, context = q_TQD.shape[0], k_GCD.shape[1]
    q_GgTD = q_TQD.unflatten(1, (k_GCD.shape[0], -1)).permute(1, 2, 0, 3)
    column = torch.arange(context, device=q_TQD.device)
    seen_TC = column <= column[context - num_tokens :, None]
    out = F.scaled_dot_product_attention(
        q_GgTD.flatten(1, 2)[None],
        k_GCD[None],
        v_GCD[None],
        attn_mask=seen_TC.repeat(q_GgTD.shape[1], 1),
    )[0]
    return out.unflatten(1, (-1, num_tokens)).permute(2, 0, 1, 3).flatten(1, 2)


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
        gate, up = linear(x_TH.index_select(0, rows), select(w13, expert)).chunk(2, -1)
        y = linear(F.silu(gate) * up, select(w2, expert))
        out.index_add_(0, rows, y.float() * scale[start : start + count])
        start += count
    return out.to(x_TH.dtype)
