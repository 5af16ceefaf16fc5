"""The decoder as one call of the native CPU library; what it computes is MiniMaxM2's.

Activations are float32 from the embedding to the logits, whatever the compute dtype.
"""

from __future__ import annotations

import ctypes
import logging

import torch

from m2serve.checkpoint.weights import DenseWeight, Weight
from m2serve.errors import CheckpointError, UsageError
from m2serve.kernels.cpu_attention import address, cpu_kv_cache, rotary_frequencies
from m2serve.kernels.cpu_decoder import CpuDecoder
from m2serve.kernels.cpu_library import CpuLibrary, describe_cpu_kernels, load_cpu_library
from m2serve.kernels.cpu_linear import (
    ACTIVATION_NAMES,
    BF16_ACTIVATION,
    INT8_ACTIVATION,
    CpuActivation,
    activation_code,
)
from m2serve.kernels.cpu_step import CpuStep
from m2serve.kernels.cpu_structs import CpuBatch, CpuKVCache, CpuLayer, CpuModel, CpuWeight
from m2serve.kernels.cpu_weights import cpu_weight, describe_weight, has_integer_codes
from m2serve.kernels.dispatch import Kernels, select_kernels
from m2serve.model.batch import ForwardBatch, KVCache
from m2serve.model.layers import LayerWeights, ModelWeights
from m2serve.model.minimax_m2 import MiniMaxM2
from m2serve.spec.shape import ModelShape

logger = logging.getLogger(__name__)

_MOST_NAMED = 3


def make_model(
    shape: ModelShape, weights: ModelWeights, cpu_activation: CpuActivation = "auto"
) -> MiniMaxM2:
    """The fastest decoder there is for the device, the formats and the dtype of the weights.

    With int8 activations the weights are put in another order where they lie: they are the model's
    alone from then on. Raises UsageError for activations asked for where the native kernels do not
    run, and CheckpointError for a matrix with a NaN that they would not pass on.
    """
    device = weights.device
    kernels = select_kernels(device)
    library = load_cpu_library() if device.type == "cpu" else None
    if library is None and cpu_activation != "auto":
        raise UsageError(
            f"--cpu-activation {cpu_activation} is for the native CPU kernels, which do not run on "
            f"{device} here ({describe_cpu_kernels()})"
        )
    if library is not None:
        packed = _Packed(shape, weights, cpu_activation, library)
        if not packed.missing:
            model = NativeMiniMaxM2(shape, weights, kernels, library, packed)
            is_in_vain = (cpu_activation == "int8" and not packed.num_int8()) or (
                cpu_activation == "bf16" and library.isa == "avx2"
            )
            logger.log(
                logging.WARNING if is_in_vain else logging.INFO,
                "%s, %d threads, %s",
                describe_cpu_kernels(),
                torch.get_num_threads(),
                packed.describe_activations(),
            )
            return model
        if cpu_activation != "auto":
            raise UsageError(
                f"--cpu-activation {cpu_activation} is for the native CPU kernels, which cannot "
                f"take {packed.missing} of this checkpoint; leave the option out"
            )
        lost = "PyTorch runs the model around them, slower"
        logger.warning("the CPU kernels cannot take %s: %s", packed.missing, lost)
    elif device.type == "cpu":
        logger.warning("%s", describe_cpu_kernels())
    return MiniMaxM2(shape, weights, kernels)


class NativeMiniMaxM2(MiniMaxM2):
    """Made by `make_model`."""

    def __init__(
        self,
        shape: ModelShape,
        weights: ModelWeights,
        kernels: Kernels,
        library: CpuLibrary,
        packed: _Packed,
    ) -> None:
        super().__init__(shape, weights, kernels)
        self._packed = packed
        if packed.model.activation == INT8_ACTIVATION:
            weights.mark_interleaved()
        self.step = CpuStep(library, packed.model)
        left = packed.not_interleaved() if weights.is_interleaved else []
        if left:
            logger.warning(
                "no int8 activations for %d matrices, whose rows are no whole slabs: %s%s",
                len(left),
                ", ".join(left[:_MOST_NAMED]),
                ", ..." if len(left) > _MOST_NAMED else "",
            )
        self._kv_cache: tuple[KVCache, CpuKVCache] | None = None

    def forward(self, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
        """As MiniMaxM2.forward, but float32; the cache may also be int8 or fp8."""
        return self.step.forward(_cpu_batch(batch), self._cpu_cache(kv_cache))

    def compute_logits(self, x_RH: torch.Tensor) -> torch.Tensor:
        """float32 logits [R, V]."""
        return self.step.logits(x_RH.contiguous())

    def precision(self) -> str:
        return self._packed.precision()

    def layers_computed(self) -> int:
        return self.step.layers_computed()

    def make_decoder(self, kv_cache: KVCache, used_vocab_size: int) -> CpuDecoder:
        """Decode steps that run while Python goes on; only ids below `used_vocab_size`.

        Raises MemoryError when the system gives no thread.
        """
        keep = (self.weights, self._packed, kv_cache)
        return CpuDecoder(self.step, self._cpu_cache(kv_cache), used_vocab_size, keep)

    def _cpu_cache(self, kv_cache: KVCache) -> CpuKVCache:
        """Made once: an engine has one cache."""
        if self._kv_cache is None or self._kv_cache[0] is not kv_cache:
            self._kv_cache = kv_cache, _cpu_cache(kv_cache)
        return self._kv_cache[1]


class _Packed:
    """The weights as m2_model of cpu/step.h, and what it points into."""

    def __init__(
        self,
        shape: ModelShape,
        weights: ModelWeights,
        activation: CpuActivation,
        library: CpuLibrary,
    ) -> None:
        self._library = library
        self._keep: list[object] = [weights]
        self.missing = ""  # what the library cannot take
        frequencies = rotary_frequencies(shape.rotary_dim, shape.rope_theta)
        numbered = enumerate(weights.layers)
        layers = (CpuLayer * len(weights.layers))(*(self._layer(i, one) for i, one in numbered))
        self.model = CpuModel(
            hidden_size=shape.hidden_size,
            num_layers=shape.num_hidden_layers,
            query_heads=shape.num_attention_heads,
            kv_heads=shape.num_key_value_heads,
            head_dim=shape.head_dim,
            rotary_dim=shape.rotary_dim,
            top_k=shape.num_experts_per_tok,
            rms_norm_eps=shape.rms_norm_eps,
            activation=activation_code(activation, weights.dtype),
            embedding_format=self._weight("embed_tokens", DenseWeight(weights.embedding)).format,
            inverse_frequencies=self._floats("rope", frequencies),
            embedding=address(weights.embedding),
            norm=self._floats("norm", weights.norm),
            layers=ctypes.cast(layers, ctypes.POINTER(CpuLayer)),
            lm_head=self._weight("lm_head", weights.lm_head),
        )
        self._keep.append(layers)

    def _layer(self, index: int, layer: LayerWeights) -> CpuLayer:
        attention, moe = layer.attention, layer.moe

        def weight(name: str, stored: Weight) -> CpuWeight:
            return self._weight(f"layers.{index}.{name}", stored)

        def floats(name: str, stored: torch.Tensor) -> int:
            return self._floats(f"layers.{index}.{name}", stored)

        return CpuLayer(
            input_norm=floats("input_layernorm", layer.input_norm),
            q_norm=floats("self_attn.q_norm", attention.q_norm),
            k_norm=floats("self_attn.k_norm", attention.k_norm),
            post_attention_norm=floats("post_attention_layernorm", layer.post_attention_norm),
            correction_bias=floats("block_sparse_moe.e_score_correction_bias", moe.correction_bias),
            q_proj=weight("self_attn.q_proj", attention.q_proj),
            k_proj=weight("self_attn.k_proj", attention.k_proj),
            v_proj=weight("self_attn.v_proj", attention.v_proj),
            o_proj=weight("self_attn.o_proj", attention.o_proj),
            gate=weight("block_sparse_moe.gate", DenseWeight(moe.gate)),
            w13=weight("block_sparse_moe.experts w1, w3", moe.w13),
            w2=weight("block_sparse_moe.experts w2", moe.w2),
        )

    def precision(self) -> str:
        return f"{self._library.isa}, activations {ACTIVATION_NAMES[self.model.activation]}"

    def describe_activations(self) -> str:
        """To what they are rounded, in words; after the weights were put in order."""
        rounds = self.model.activation in (BF16_ACTIVATION, INT8_ACTIVATION)
        rounds = rounds and self._library.isa != "avx2"
        others = "float, bfloat16 with many rows" if rounds else "float"
        if self.model.activation != INT8_ACTIVATION:
            return f"activations {others}"
        number = f"{self.num_int8()} of {len(self._matrices())}"
        return f"activations int8 for {number} matrices (integer codes), else {others}"

    def num_int8(self) -> int:
        """Matrices that meet int8 activations."""
        return sum(bool(one.interleaved) for one in self._matrices().values())

    def not_interleaved(self) -> list[str]:
        """Matrices with integer codes that are as they were stored."""
        return [
            name
            for name, one in self._matrices().items()
            if has_integer_codes(one) and not one.interleaved
        ]

    def _matrices(self) -> dict[str, CpuWeight]:
        """Those that activations are rounded for; the router's stay float."""
        parts = {"lm_head": self.model.lm_head}
        for index in range(self.model.num_layers):
            layer = self.model.layers[index]
            for name in ("q_proj", "k_proj", "v_proj", "o_proj", "w13", "w2"):
                parts[f"layers.{index} {name}"] = getattr(layer, name)
        return parts

    def _weight(self, name: str, weight: Weight) -> CpuWeight:
        """Raises CheckpointError for a NaN, which the kernels would turn into some number."""
        found = cpu_weight(weight)
        if found is None:
            self.missing = describe_weight(weight)
            return CpuWeight()
        row = self._library.find_nan(found)
        if row is not None:
            matrix = f" of matrix {row // found.rows}" if found.matrices > 1 else ""
            raise _damaged(name, f" in row {row % found.rows}{matrix}")
        return found

    def _floats(self, name: str, tensor: torch.Tensor) -> int:
        """Address of the tensor itself or of a float32 copy; raises as `_weight`."""
        floats = tensor.float().contiguous()
        if bool(floats.isnan().any()):
            raise _damaged(name)
        self._keep.append(floats)
        return address(floats)


def _damaged(name: str, where: str = "") -> CheckpointError:
    return CheckpointError(
        f"{name} holds NaN{where}; the file is damaged or was made wrongly: get it again"
    )


def _cpu_batch(batch: ForwardBatch) -> CpuBatch:
    return CpuBatch(
        num_tokens=batch.token_ids.shape[0],
        num_sequences=batch.seq_lens.shape[0],
        blocks=batch.block_table.shape[1],
        num_logits_rows=batch.logits_rows.shape[0],
        token_ids=_indices(batch.token_ids, torch.int64),
        positions=_indices(batch.positions, torch.int64),
        slot_mapping=_indices(batch.slot_mapping, torch.int64),
        query_start_loc=_indices(batch.query_start_loc, torch.int32),
        seq_lens=_indices(batch.seq_lens, torch.int32),
        block_table=_indices(batch.block_table, torch.int32),
        logits_rows=_indices(batch.logits_rows, torch.int64),
    )


def _indices(tensor: torch.Tensor, dtype: torch.dtype) -> int:
    assert tensor.dtype == dtype
    return address(tensor)


def _cpu_cache(cache: KVCache) -> CpuKVCache:
    return cpu_kv_cache(cache.keys, cache.values, cache.key_scales, cache.value_scales)
