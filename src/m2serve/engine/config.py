"""How one engine is set up. Field names are vLLM's flag names where the meaning is the same."""

from __future__ import annotations

from typing import Literal

import msgspec

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "bfloat16", "float32"]
KVCacheDType = Literal["auto", "float32", "bfloat16", "int8", "fp8"]
WeightFormat = Literal["", "bf16", "fp8", "int8"]
CpuActivation = Literal["auto", "float", "bf16", "int8"]

# Of a step. On a CPU prompts of hundreds of tokens are computed no faster by more at once, but all
# of a step's prompts wait for the last of them.
DEFAULT_BATCHED_TOKENS = {"cpu": 1024, "cuda": 2048}


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Sent to the engine process in its first frame.

    `used_vocab_size`: ids at or above it are never sampled (0: the whole vocabulary).
    `kv_cache_memory_bytes` 0 means: chosen from the memory that is free after loading.
    `attention_format` and `head_format` "" mean: as stored; else dense weights are requantised
    while loading.
    `cpu_activation` says to what the native CPU kernels round what they multiply weights with
    (kernels.cpu_linear.CpuActivation).
    `kv_cache_dtype` "auto" is the compute dtype; of the native CPU kernels bfloat16, unless `dtype`
    is given.
    `max_num_batched_tokens` 0 means: DEFAULT_BATCHED_TOKENS of the device.
    `max_model_len` 0 means: the checkpoint's own context length, or what the KV cache can hold.
    """

    model_path: str
    device: Device = "auto"
    dtype: DType = "auto"
    max_model_len: int = 0
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 0
    block_size: int = 16
    enable_prefix_caching: bool = True
    kv_cache_memory_bytes: int = 0
    kv_cache_dtype: KVCacheDType = "auto"
    used_vocab_size: int = 0
    num_threads: int = 0
    attention_format: WeightFormat = ""
    head_format: WeightFormat = ""
    cpu_activation: CpuActivation = "auto"
