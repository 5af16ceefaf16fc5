"""How many blocks the KV cache gets, and how long a sequence may then be. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass

from m2serve.engine.config import EngineConfig
from m2serve.errors import ResourceError, UsageError
from m2serve.spec.cost import kv_slot_bytes
from m2serve.spec.shape import ModelShape
from m2serve.spec.units import GIB


@dataclass(frozen=True)
class CacheSize:
    """`reason` says, for a person, where `max_model_len` comes from."""

    num_blocks: int
    max_model_len: int
    reason: str


def check_config(config: EngineConfig, shape: ModelShape) -> None:
    """Raise UsageError for a setting that no checkpoint of this shape can be served with."""
    limits = {
        "max_num_seqs": (1, 4096),
        "max_num_batched_tokens": (0, 1 << 20),
        "block_size": (1, 1024),
        "max_model_len": (0, shape.max_position_embeddings),
        "kv_cache_memory_bytes": (0, 1 << 50),
        "used_vocab_size": (0, shape.vocab_size),
        "num_threads": (0, 4096),
    }
    for field, (low, high) in limits.items():
        value = getattr(config, field)
        if not low <= value <= high:
            raise UsageError(f"{_flag(field)} is {value}; allowed: {low} to {high} here")
    if config.max_model_len == 1:
        raise UsageError("--max-model-len is 1; a prompt and an output need at least 2 tokens")


def kv_cache_size(
    config: EngineConfig, shape: ModelShape, *, dtype: str, free_bytes: int, share: float
) -> CacheSize:
    """Blocks for `kv_cache_memory_bytes`, or for `share` of the free memory.

    The latter is cut to what `max_num_seqs` sequences of full length need. `dtype` is the cache's,
    one of spec.cost.DTYPE_BYTES; int8 has scales beside it. Raises ResourceError when one sequence
    of `max_model_len` does not fit; without `max_model_len` the context is cut to what fits.
    """
    block_bytes = kv_slot_bytes(shape, dtype) * config.block_size
    wanted_len = config.max_model_len or shape.max_position_embeddings
    blocks_per_seq = -(-wanted_len // config.block_size)
    if config.kv_cache_memory_bytes:
        num_blocks = _given_bytes(config, free_bytes) // block_bytes
        source = f"--kv-cache-memory-bytes {config.kv_cache_memory_bytes}"
    else:
        num_blocks = int(free_bytes * share) // block_bytes
        num_blocks = min(num_blocks, config.max_num_seqs * blocks_per_seq)
        source = f"{share:.0%} of the {free_bytes / GIB:.2f} GiB of memory that are free"
    if num_blocks >= blocks_per_seq:
        reason = "as asked" if config.max_model_len else "the checkpoint's context length"
        return CacheSize(num_blocks, wanted_len, reason)
    fitting_len = num_blocks * config.block_size
    if config.max_model_len or fitting_len < 2:
        raise ResourceError(
            f"One sequence of {wanted_len} tokens needs {blocks_per_seq * block_bytes} bytes of "
            f"KV cache, but {source} hold {fitting_len} tokens. Give a smaller --max-model-len or "
            "a larger --kv-cache-memory-bytes."
        )
    reason = f"what {source} hold; the checkpoint's context length is {wanted_len}"
    return CacheSize(num_blocks, fitting_len, reason)


def _given_bytes(config: EngineConfig, free_bytes: int) -> int:
    if config.kv_cache_memory_bytes > free_bytes:
        raise ResourceError(
            f"--kv-cache-memory-bytes is {config.kv_cache_memory_bytes}, but only {free_bytes} "
            "bytes of memory are free after loading. Give a smaller one."
        )
    return config.kv_cache_memory_bytes


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")
