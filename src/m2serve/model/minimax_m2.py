"""MiniMax-M2, the whole decoder. A Mixtral with four differences:

1. q and k are normalised over the whole projection (all heads at once), before the split.
2. Rotary embedding turns only the first half of each head.
3. The router is a sigmoid; a correction bias takes part in the choice, not in the weights.
4. Heads times head size is not the hidden size; embedding and head are not tied.

No shared expert, no sliding window, no bias in any linear. Letters as in kernels.reference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from m2serve.kernels.dispatch import Kernels
from m2serve.model.batch import ForwardBatch, KVCache
from m2serve.model.layers import AttentionWeights, LayerWeights, ModelWeights, MoeWeights
from m2serve.spec.shape import ModelShape


class MiniMaxM2:
    """Weights and the kernels that compute with them; holds no state but a count between calls."""

    def __init__(self, shape: ModelShape, weights: ModelWeights, kernels: Kernels) -> None:
        if weights.is_interleaved:
            raise RuntimeError("these weights are another model's, in an order only it can read")
        self.shape = shape
        self.weights = weights
        self.kernels = kernels
        self._layers_computed = 0

    def precision(self) -> str:
        """Who computes and how activations are rounded, in two words."""
        outside = self.kernels.describe()["linear"].rpartition(".")[2]
        return "torch" if outside == "reference" else f"torch, products of {outside}"

    def layers_computed(self) -> int:
        """So far, of all forward passes; any thread may look how far a step is."""
        return self._layers_computed

    def forward(self, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
        """Run the batch's tokens through all layers and write their keys and values.

        Returns the normed hidden states [R, H] of the rows `batch.logits_rows`.
        """
        rotary = self.kernels.rotary_cos_sin(
            batch.positions, self.shape.rotary_dim, self.shape.rope_theta
        )
        x_TH = F.embedding(batch.token_ids, self.weights.embedding).to(self.weights.dtype)
        for index, layer in enumerate(self.weights.layers):
            cache = (kv_cache.keys[index], kv_cache.values[index])
            x_TH = self._layer(x_TH, layer, rotary, cache, batch)
            self._layers_computed += 1
        return self._norm(x_TH[batch.logits_rows], self.weights.norm)

    def compute_logits(self, x_RH: torch.Tensor) -> torch.Tensor:
        """float32 logits [R, V]; apart from `forward`, because V times many rows is gigabytes."""
        return self.kernels.linear(x_RH, self.weights.lm_head).float()

    def _layer(
        self,
        x_TH: torch.Tensor,
        layer: LayerWeights,
        rotary: tuple[torch.Tensor, torch.Tensor],
        cache: tuple[torch.Tensor, torch.Tensor],
        batch: ForwardBatch,
    ) -> torch.Tensor:
        normed = self._norm(x_TH, layer.input_norm)
        x_TH = x_TH + self._attention(normed, layer.attention, rotary, cache, batch)
        normed = self._norm(x_TH, layer.post_attention_norm)
        return x_TH + self._moe(normed, layer.moe)

    def _attention(
        self,
        x_TH: torch.Tensor,
        weights: AttentionWeights,
        rotary: tuple[torch.Tensor, torch.Tensor],
        cache: tuple[torch.Tensor, torch.Tensor],
        batch: ForwardBatch,
    ) -> torch.Tensor:
        run = self.kernels
        q = self._norm(run.linear(x_TH, weights.q_proj), weights.q_norm)
        k = self._norm(run.linear(x_TH, weights.k_proj), weights.k_norm)
        v = run.linear(x_TH, weights.v_proj)
        q_TQD = run.apply_rotary(self._heads(q), *rotary)
        k_TGD = run.apply_rotary(self._heads(k), *rotary)
        run.write_kv(k_TGD, self._heads(v), *cache, batch.slot_mapping)
        attended_TQD = run.paged_attention(
            q_TQD, *cache, batch.query_start_loc, batch.seq_lens, batch.block_table
        )
        return run.linear(attended_TQD.flatten(1), weights.o_proj)

    def _moe(self, x_TH: torch.Tensor, weights: MoeWeights) -> torch.Tensor:
        chosen = self.kernels.route(
            x_TH, weights.gate, weights.correction_bias, self.shape.num_experts_per_tok
        )
        return self.kernels.experts(x_TH, weights.w13, weights.w2, *chosen)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self.kernels.rms_norm(x, weight, self.shape.rms_norm_eps)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, self.shape.head_dim))


def allocate_kv_cache(
    shape: ModelShape,
    num_blocks: int,
    block_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> KVCache:
    """A cache of `num_blocks` blocks, uninitialised: memory is taken as blocks are written.

    `dtype` is a floating one, of the native model also float8_e4m3fn or int8.
    """
    outer = (shape.num_hidden_layers, num_blocks)
    heads_first = device.type == "cpu"

    def part(dtype: torch.dtype, *inner: int) -> torch.Tensor:
        if not heads_first:
            size = (*outer, block_size, shape.num_key_value_heads, *inner)
            return torch.empty(size, device=device, dtype=dtype)
        size = (*outer, shape.num_key_value_heads, block_size, *inner)
        return torch.empty(size, device=device, dtype=dtype).transpose(2, 3)

    keys, values = (part(dtype, shape.head_dim) for _ in range(2))
    if dtype != torch.int8:
        return KVCache(keys, values)
    key_scales, value_scales = (part(torch.float32) for _ in range(2))
    return KVCache(keys, values, key_scales, value_scales)
