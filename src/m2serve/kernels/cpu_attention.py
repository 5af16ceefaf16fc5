"""Attention, norms and routing of the native library, with the signatures of the reference.

Sums are float32 whatever the dtype of the activations. The cache may be float32, bfloat16,
float8_e4m3fn (values beyond 448 saturate), or int8 with a float32 scale for every token and head.
"""

from __future__ import annotations

import ctypes
import math

import torch

from m2serve.checkpoint.weights import DenseWeight
from m2serve.kernels.cpu_library import CpuLibrary
from m2serve.kernels.cpu_structs import CpuBatch, CpuKVCache
from m2serve.kernels.cpu_weights import cpu_weight

# m2_kv_format of cpu/token_types.h.
KV_FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.float8_e4m3fn: 3}


def cpu_kv_cache(
    keys: torch.Tensor,
    values: torch.Tensor,
    key_scales: torch.Tensor | None = None,
    value_scales: torch.Tensor | None = None,
) -> CpuKVCache:
    """Of keys and values [..., num_blocks, block_size, G, D] and, for int8, scales [..., G].

    In memory block_size and G have to be the other way round, as model.allocate_kv_cache makes it.
    """
    has_scales = key_scales is not None and value_scales is not None
    assert has_scales == (keys.dtype == torch.int8)
    return CpuKVCache(
        KV_FORMATS[keys.dtype],
        *keys.shape[-4:],
        address(keys.transpose(-3, -2)),
        address(values.transpose(-3, -2)),
        None if key_scales is None else address(key_scales.transpose(-2, -1)),
        None if value_scales is None else address(value_scales.transpose(-2, -1)),
    )


def address(tensor: torch.Tensor) -> int:
    """Of the first element of a contiguous tensor in main memory."""
    assert tensor.is_contiguous()
    assert tensor.is_cpu
    return tensor.data_ptr()


def rotary_frequencies(rotary_dim: int, theta: float) -> torch.Tensor:
    """float32 [rotary_dim / 2]: theta^(-2i / rotary_dim), rounded as in the reference."""
    exponents = torch.arange(0, rotary_dim, 2).float() / rotary_dim
    return 1.0 / theta**exponents


class CpuTokenKernels:
    """Signatures as in kernels.reference, unless said otherwise."""

    def __init__(self, library: CpuLibrary) -> None:
        self._library = library

    def paged_attention(
        self,
        q_TQD: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        query_start_loc: torch.Tensor,
        seq_lens: torch.Tensor,
        block_table: torch.Tensor,
        key_scales: torch.Tensor | None = None,
        value_scales: torch.Tensor | None = None,
        may_round: bool | None = None,
    ) -> torch.Tensor:
        """Causal attention over a paged cache; an int8 one has scales [..., block_size, G].

        With AMX and where it may round, the tokens of a prompt attend in bfloat16 and a decoding
        one with 16 of the 24 bits of float32, unless the cache is float32. By default it may if q
        is bfloat16.
        """
        q = q_TQD.float().contiguous()
        out = torch.empty_like(q)
        table = block_table.contiguous()
        cache = cpu_kv_cache(keys, values, key_scales, value_scales)
        batch = CpuBatch(
            num_tokens=q.shape[0],
            num_sequences=len(seq_lens),
            blocks=table.shape[1],
            query_start_loc=address(query_start_loc),
            seq_lens=address(seq_lens),
            block_table=address(table),
        )
        if may_round is None:
            may_round = q_TQD.dtype == torch.bfloat16
        self._call("paged_attention", cache, batch, q.shape[1], int(may_round), q, out)
        return out.to(q_TQD.dtype)

    def norm_rotate_and_store(
        self,
        q_TQD: torch.Tensor,
        k_TGD: torch.Tensor,
        v_TGD: torch.Tensor,
        q_norm: torch.Tensor,
        k_norm: torch.Tensor,
        eps: float,
        positions_T: torch.Tensor,
        frequencies: torch.Tensor,
        cache: CpuKVCache,
        slot_mapping_T: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(q, k) float32: each normed over all its heads, then rotated; k and v go to the cache.

        `frequencies` is `rotary_frequencies`, `cache` one layer's, the norms are float32.
        """
        q, k, v = (x.to(torch.float32, copy=True).contiguous() for x in (q_TQD, k_TGD, v_TGD))
        batch = CpuBatch(
            num_tokens=q.shape[0],
            positions=address(positions_T),
            slot_mapping=address(slot_mapping_T),
        )
        sizes = (q.shape[1], 2 * len(frequencies), eps)
        tensors = (frequencies, q_norm, k_norm, q, k, v)
        self._call("norm_rotate_and_store", cache, batch, *sizes, *tensors)
        return q, k

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x * rsqrt(mean(x²) + eps) * weight over the last dim."""
        rows = x.float().contiguous()
        out = torch.empty_like(rows)
        sizes = (math.prod(x.shape[:-1]), x.shape[-1], eps)
        self._call("rms_norm", rows, weight.float().contiguous(), *sizes, out)
        return out.to(x.dtype)

    def route(
        self, x_TH: torch.Tensor, gate_EH: torch.Tensor, bias_E: torch.Tensor, top_k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(weights float32 [T, k], ids int64 [T, k]); of equal scores those torch.topk takes."""
        x = x_TH.float().contiguous()
        weights = torch.empty(x.shape[0], top_k)
        ids = torch.empty(x.shape[0], top_k, dtype=torch.int64)
        gate = cpu_weight(DenseWeight(gate_EH))
        assert gate is not None
        self._call("route", gate, bias_E, x, x.shape[0], top_k, weights, ids)
        return weights, ids

    def _call(self, name: str, *arguments: ctypes.Structure | torch.Tensor | int | float) -> None:
        self._library.follow_torch_threads()
        function = getattr(self._library.functions, f"m2_{name}")
        if function(*(_c_argument(argument) for argument in arguments)):
            raise MemoryError(f"m2_{name} found no memory for its buffers")


def _c_argument(value: ctypes.Structure | torch.Tensor | int | float) -> object:
    match value:
        case ctypes.Structure():
            return ctypes.byref(value)
        case torch.Tensor():
            return ctypes.c_void_p(address(value))
        case int():
            return ctypes.c_int64(value)
        case _:
            return ctypes.c_float(value)
