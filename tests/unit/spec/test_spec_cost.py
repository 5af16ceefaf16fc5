"""Counts of the released models, written out as numbers."""

import dataclasses

import pytest

from m2serve.errors import UsageError
from m2serve.spec.cost import (
    active_bytes_per_token,
    attention_parameters,
    checkpoint_bytes,
    count_parameters,
    expert_parameters,
    fp8_checkpoint_tensors,
    group_size,
    kv_bytes_per_token,
    kv_elements_per_token,
    linear_bytes,
    weight_bytes,
)
from m2serve.spec.shape import ModelShape

M2 = ModelShape(
    hidden_size=3072,
    num_hidden_layers=62,
    num_attention_heads=48,
    num_key_value_heads=8,
    head_dim=128,
    rotary_dim=64,
    rope_theta=5e6,
    rms_norm_eps=1e-6,
    intermediate_size=1536,
    num_local_experts=256,
    num_experts_per_tok=8,
    vocab_size=200064,
    max_position_embeddings=196608,
)


@pytest.mark.parametrize(
    ("experts", "total", "active", "active_with_head"),
    [
        (256, 228_689_764_864, 9_801_359_872, 10_415_956_480),
        (192, 172_507_452_032, 9_789_166_208, 10_403_762_816),
        (180, 161_973_268_376, 9_786_879_896, 10_401_476_504),
        (154, 139_149_203_788, 9_781_926_220, 10_396_522_828),
    ],
)
def test_parameters(experts: int, total: int, active: int, active_with_head: int) -> None:
    count = count_parameters(dataclasses.replace(M2, num_local_experts=experts))
    assert count.total == total
    assert count.active == active
    assert count.active_with_lm_head == active_with_head
    assert count.active_with_lm_head + count.embedding == active_with_head + 614_596_608


def test_components() -> None:
    count = count_parameters(M2)
    assert count.embedding == count.lm_head == 614_596_608
    assert count.attention == 62 * 44_047_360
    assert expert_parameters(M2) == 14_155_776
    assert attention_parameters(M2) == 44_047_360 - 6144 - 1024
    assert count.router + count.experts == 62 * 3_624_665_344


def test_official_fp8_release() -> None:
    assert checkpoint_bytes(M2, attention="fp8", experts="fp8") == 230_121_630_720
    assert fp8_checkpoint_tensors(M2) == 96_103


@pytest.mark.parametrize(
    ("attention", "experts", "gigabytes"),
    [
        ("bf16", "nvfp4", 134.4),
        ("bf16", "int4-g32", 134.4),
        ("bf16", "int4-g128", 123.9),
        ("bf16", "bf16", 457.5),
        ("fp8", "nvfp4", 131.7),
    ],
)
def test_other_releases(attention: str, experts: str, gigabytes: float) -> None:
    size = checkpoint_bytes(M2, attention=attention, experts=experts)
    assert size / 1e9 == pytest.approx(gigabytes, rel=1e-3)


def test_ragged_fp8_blocks_round_up() -> None:
    assert linear_bytes(129, 130, "fp8") == 129 * 130 + 4 * 4


def test_bits_groups_and_zero_points() -> None:
    assert linear_bytes(128, 256, "bits-4.5") == 128 * 256 * 9 // 16
    assert linear_bytes(3, 3, "bits-2.73") == 4
    assert linear_bytes(128, 256, "int4-g64") == 128 * 128 + 2 * 128 * 4
    assert linear_bytes(128, 256, "int4-g64-zp") == 128 * 128 + 2 * 128 * 4 + 128 * 2
    assert [group_size(f) for f in ("fp8", "nvfp4", "int4-g128-zp", "int8")] == [128, 16, 128, 0]


@pytest.mark.parametrize("format", ["bits-0", "bits-", "bits-nan", "bits-33", "int4-g", "int4-g4"])
def test_formats_without_a_sensible_number_are_refused(format: str) -> None:
    with pytest.raises(UsageError, match=format):
        linear_bytes(128, 128, format)


def test_components_of_the_official_release() -> None:
    parts = weight_bytes(M2, attention="fp8", experts="fp8")
    assert parts.total == checkpoint_bytes(M2, attention="fp8", experts="fp8")
    assert parts.router == 4 * 62 * 786_688
    assert parts.embedding == parts.lm_head == 2 * 614_596_608
    assert parts.experts == 62 * 256 * 3 * (1536 * 3072 + 4 * 12 * 24)
    smaller = weight_bytes(M2, attention="fp8", experts="fp8", head="fp8", router_dtype="bfloat16")
    assert parts.total - smaller.total == 62 * 2 * 786_688 + 614_596_608 - 4 * 1563 * 24


@pytest.mark.parametrize(
    ("attention", "head", "gigabytes"),
    [("bf16", "bf16", 10.74), ("fp8", "bf16", 8.01), ("fp8", "fp8", 7.39), ("int8", "int8", 7.40)],
)
def test_decoding_with_nvfp4_experts_reads(attention: str, head: str, gigabytes: float) -> None:
    size = active_bytes_per_token(M2, "nvfp4", attention, head)
    assert round(size / 1e9, 2) == gigabytes


def test_active_bytes_are_those_of_the_active_parameters() -> None:
    count = count_parameters(M2)
    everything_in_two_bytes = active_bytes_per_token(M2, "bf16", "bf16", "bf16")
    assert everything_in_two_bytes == 2 * (count.active_with_lm_head + M2.hidden_size)
    with_float32_router = active_bytes_per_token(M2, "bf16", "bf16", "bf16", router_dtype="float32")
    assert with_float32_router - everything_in_two_bytes == 2 * count.router


def test_kv_cache() -> None:
    assert kv_elements_per_token(M2) == 126_976
    assert kv_bytes_per_token(M2, "bfloat16") == 248 * 1024
    assert kv_bytes_per_token(M2, "fp8") == 124 * 1024


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="float7"):
        kv_bytes_per_token(M2, "float7")
    with pytest.raises(UsageError, match="q2_k"):
        linear_bytes(2, 2, "q2_k")
