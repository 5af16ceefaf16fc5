from __future__ import annotations

from typing import Any

import pytest
from tiny import published_config

from m2serve.engine.cache_size import CacheSize, check_config, kv_cache_size
from m2serve.engine.config import EngineConfig
from m2serve.errors import ResourceError, UsageError
from m2serve.spec.shape import ModelShape

SHAPE = ModelShape.from_config(published_config())
TOKEN_BYTES = 2 * SHAPE.num_hidden_layers * SHAPE.num_key_value_heads * SHAPE.head_dim * 4
BLOCK_BYTES = 16 * TOKEN_BYTES
CONTEXT = SHAPE.max_position_embeddings


def size(free_bytes: int = 10**12, share: float = 0.5, **fields: Any) -> CacheSize:
    config = EngineConfig(model_path="x", **fields)
    return kv_cache_size(config, SHAPE, dtype="float32", free_bytes=free_bytes, share=share)


def test_ample_memory_gives_what_all_sequences_can_need_and_no_more() -> None:
    assert size(max_num_seqs=3) == CacheSize(
        3 * CONTEXT // 16, CONTEXT, "the checkpoint's context length"
    )
    assert size(max_num_seqs=3, max_model_len=100) == CacheSize(3 * 7, 100, "as asked")


def test_free_memory_gives_its_share() -> None:
    blocks = CONTEXT // 16 + 5
    found = size(free_bytes=2 * blocks * BLOCK_BYTES + 1, share=0.5)
    assert (found.num_blocks, found.max_model_len) == (blocks, CONTEXT)


@pytest.mark.parametrize(
    ("dtype", "head_bytes"), [("bfloat16", 128), ("fp8", 64), ("int8", 64 + 4)]
)
def test_a_smaller_dtype_holds_more_tokens(dtype: str, head_bytes: int) -> None:
    """An int8 head, of 64 numbers here, has a float32 scale."""
    token_bytes = 2 * SHAPE.num_hidden_layers * SHAPE.num_key_value_heads * head_bytes
    config = EngineConfig(model_path="x", kv_cache_memory_bytes=10**9)
    found = kv_cache_size(config, SHAPE, dtype=dtype, free_bytes=10**12, share=0.5)
    assert found.num_blocks == 10**9 // (16 * token_bytes)


def test_given_bytes_are_taken_as_they_are() -> None:
    found = size(kv_cache_memory_bytes=1000 * BLOCK_BYTES + 7, max_num_seqs=1, max_model_len=16)
    assert found.num_blocks == 1000
    with pytest.raises(ResourceError, match="only 99 bytes of memory are free"):
        size(kv_cache_memory_bytes=100, free_bytes=99)


def test_without_max_model_len_the_context_is_what_fits() -> None:
    found = size(free_bytes=20 * BLOCK_BYTES)
    assert (found.num_blocks, found.max_model_len) == (10, 160)
    assert found.reason == (
        "what 50% of the 0.00 GiB of memory that are free hold; "
        f"the checkpoint's context length is {CONTEXT}"
    )


def test_one_sequence_that_does_not_fit_says_what_to_change() -> None:
    with pytest.raises(ResourceError) as caught:
        size(max_model_len=161, kv_cache_memory_bytes=10 * BLOCK_BYTES)
    assert str(caught.value) == (
        f"One sequence of 161 tokens needs {11 * BLOCK_BYTES} bytes of KV cache, but "
        f"--kv-cache-memory-bytes {10 * BLOCK_BYTES} hold 160 tokens. Give a smaller "
        "--max-model-len or a larger --kv-cache-memory-bytes."
    )
    with pytest.raises(ResourceError, match="hold 0 tokens"):
        size(free_bytes=BLOCK_BYTES)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_num_seqs", 0),
        ("max_num_batched_tokens", -1),
        ("block_size", 0),
        ("max_model_len", -1),
        ("max_model_len", 1),
        ("max_model_len", CONTEXT + 1),
        ("kv_cache_memory_bytes", -1),
        ("used_vocab_size", SHAPE.vocab_size + 1),
        ("num_threads", -1),
    ],
)
def test_settings_out_of_range_are_refused_by_their_flag(field: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"--{field.replace('_', '-')} is {value}"):
        check_config(EngineConfig(model_path="x", **{field: value}), SHAPE)


def test_the_defaults_are_in_range() -> None:
    check_config(EngineConfig(model_path="x"), SHAPE)
