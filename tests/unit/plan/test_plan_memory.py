"""The memory model against every published figure that its sources have right, and its own sums."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2serve.plan.configuration import Configuration, sizes
from m2serve.plan.memory import (
    kv_bytes_per_token,
    num_local_experts,
    plan_memory,
    stage_layers,
    weight_terms,
)
from m2serve.plan.overhead import GIB
from m2serve.records import Parallelism
from m2serve.spec.engines import find_engine
from m2serve.spec.hardware import parse_hardware
from m2serve.spec.variants import Variant, dequantised, find_variant

FP8 = "MiniMaxAI/MiniMax-M2.5"
NVFP4 = "mconcat/MiniMax-M2.5-NVFP4"
INT8 = "Eco-Tech/MiniMax-M2.5-w8a8-QuaRot"
REAP_139B = "lukealonso/MiniMax-M2.5-REAP-139B-A10B-NVFP4"
REAP_139B_ALL = "saricles/MiniMax-M2.5-REAP-139B-A10B-NVFP4-GB10"
REAP_172B_ALL = "saricles/MiniMax-M2.5-REAP-172B-A10B-NVFP4-GB10"
BF16 = "as BF16"
INT4 = "INT4 in groups of 128, symmetric"


def variant_of(name: str) -> Variant:
    if name == BF16:
        return dequantised(find_variant(FP8))
    if name == INT4:
        import dataclasses

        whole = find_variant("QuantTrio/MiniMax-M2-AWQ")
        plain = dataclasses.replace(whole, experts_format="int4-g128", checkpoint_bytes=0)
        total = 123_870_000_000  # published; the sum of the formats is checked in tests of spec
        return dataclasses.replace(plain, checkpoint_bytes=total)
    return find_variant(name)


def configuration(hardware: str, name: str, share: float = 0.92, **cut: object) -> Configuration:
    engine = find_engine("vllm")
    return Configuration(
        engine,
        engine.default_version,
        variant_of(name),
        parse_hardware(hardware),
        Parallelism(**cut),  # type: ignore[arg-type]
        4096,
        gpu_memory_utilization=share,
    )


@pytest.mark.parametrize(
    ("name", "cut", "published_gib"),
    [
        (FP8, {}, 230_121_630_720 / GIB),  # hf-mem's count of the release
        (FP8, {"tensor": 4}, 53.75),  # loaded on four RTX Pro 6000
        (BF16, {}, 457.38e9 / GIB),
        (INT8, {}, 214.5),
        (NVFP4, {}, 126.0),  # the model card's GB are GiB
        ("saricles/MiniMax-M2.7-NVFP4-GB10", {}, 130.6e9 / GIB),
        (REAP_139B_ALL, {}, 75.0),
        (REAP_172B_ALL, {}, 99e9 / GIB),
        ("mlx-community/MiniMax-M2.1-8bit", {}, 242e9 / GIB),
        ("nameistoken/MiniMax-M2.5-Quark-W8A8-INT8", {}, 216.0),
    ],
)
def test_weights_as_published(name: str, cut: dict[str, int], published_gib: float) -> None:
    variant, parallelism = variant_of(name), Parallelism(**cut)  # type: ignore[arg-type]
    terms = weight_terms(variant, parallelism, 0, 256, 62)
    assert sum(t.num_bytes for t in terms) / GIB == pytest.approx(published_gib, rel=0.01)


@pytest.mark.parametrize(
    ("tokens", "cut", "dtype", "published_bytes"),
    [
        (1_000_000, {}, "auto", 253.95e9),
        (196_608, {}, "auto", 46.5 * GIB),
        (399_424, {"tensor": 4}, "auto", 23.62 * GIB),  # "400K" on four cards of 96 GB
        (497_600, {"tensor": 2}, "auto", 58.84 * GIB),  # two MI300X
        (204_800, {"tensor": 2}, "auto", 24.22 * GIB),  # two Strix Halo
        (65_536, {}, "auto", 15_872 * 2**20),  # ik_llama.cpp, f16
        (196_608, {}, "fp8", 24_964_497_408),  # hf-mem
    ],
)
def test_kv_cache_as_published(
    tokens: int, cut: dict[str, int], dtype: str, published_bytes: float
) -> None:
    shape = sizes(variant_of(FP8))[0]
    each = kv_bytes_per_token(shape, Parallelism(**cut), 62, dtype)  # type: ignore[arg-type]
    assert tokens * each == pytest.approx(published_bytes, rel=0.01)


# Hardware, format, tensor ranks, and weights and KV cache in GiB a device, KV tokens in thousands
# (BF16), all with 7.5 GiB of overhead and 0.92 of the memory (DGX Spark: 4 GiB and 0.93).
CAPACITY = [
    ("1xrtx-pro-6000", REAP_139B, 1, 78.2, 9),
    ("2xrtx-pro-6000", NVFP4, 2, 62.6, 151),
    ("2xrtx-pro-6000", INT4, 2, 57.7, 192),
    ("4xrtx-pro-6000", FP8, 4, 53.6, 454),
    ("8xrtx-pro-6000", FP8, 8, 26.8, 1815),
    ("4xh100", FP8, 4, 53.6, 206),
    ("8xh100", FP8, 8, 26.8, 1319),
    ("1xh200", INT4, 1, 115.4, 27),
    ("2xh200", FP8, 2, 107.2, 123),
    ("2xh200", NVFP4, 2, 62.6, 500),
    ("4xh200", FP8, 4, 53.6, 1152),
    ("8xh200", FP8, 8, 26.8, 3209),
    ("4xh20", FP8, 4, 53.6, 454),
    ("4xa100", FP8, 4, 53.6, 212),
    ("2xa100", INT4, 2, 57.7, 71),
    ("1xb200", NVFP4, 1, 125.2, 136),
    ("2xb200", FP8, 2, 107.2, 423),
    ("2xb200", NVFP4, 2, 62.6, 800),
    ("4xb200", FP8, 4, 53.6, 1753),
    ("1xb300", FP8, 1, 214.3, 107),
    ("1xb300", NVFP4, 1, 125.2, 484),
    ("2xgb300", FP8, 2, 107.2, 1189),
    ("2xmi300x", FP8, 2, 107.2, 524),
    ("4xmi300x", FP8, 4, 53.6, 1954),
    ("1xmi355x", FP8, 1, 214.3, 182),
    ("2xmi355x", FP8, 2, 107.2, 1271),
    ("1xdgx-spark", REAP_139B, 1, 78.2, 123),
    ("1xdgx-spark", REAP_172B_ALL, 1, 92.1, 64),
    ("2xdgx-spark", NVFP4, 2, 62.6, 378),
    ("8x910b3", INT8, 8, 26.8, 737),
    ("16x910c", INT8, 8, 13.4, 2382),
]


@pytest.mark.parametrize(("hardware", "name", "tensor", "weights_gib", "kv_thousands"), CAPACITY)
def test_capacity_rows(
    hardware: str, name: str, tensor: int, weights_gib: float, kv_thousands: float
) -> None:
    """With the rows' own overhead. The rows cut router and norms evenly, which every rank holds in
    full: that much weight more and room less is right. Thousands are rounded, too.
    """
    is_spark = "spark" in hardware
    data = 2 if tensor == 8 and hardware.startswith("16x") else 1
    c = configuration(
        hardware, name, 0.93 if is_spark else 0.92, tensor=tensor, data=data, expert_parallel=True
    )
    rank = plan_memory(c).ranks[0]
    whole = sizes(c.held)[1]
    even = whole.total / tensor / data
    copied = rank.term("weights") - even
    assert copied <= whole.router + whole.norms + whole.attention / 8
    assert (rank.term("weights") - copied) / GIB == pytest.approx(weights_gib, rel=0.002)
    room = rank.budget_bytes - (4.0 if is_spark else 7.5) * GIB - even
    each = kv_bytes_per_token(c.shape, c.parallelism, 62, "auto")
    assert room / each * data / 1000 == pytest.approx(kv_thousands, rel=0.01, abs=0.5)


def test_what_does_not_fit_as_published() -> None:
    assert plan_memory(configuration("8x910b3", BF16, tensor=8)).kv_cache_tokens == 0
    assert plan_memory(configuration("1xh200", FP8)).shortfall_bytes > 0
    assert plan_memory(configuration("1xrtx-pro-6000", NVFP4)).shortfall_bytes > 0
    assert plan_memory(configuration("1xdgx-spark", NVFP4)).shortfall_bytes > 0
    assert plan_memory(configuration("2xa100", NVFP4, 0.95, tensor=2)).shortfall_bytes == 0


def test_two_cards_of_64_gb_do_not_hold_nvfp4() -> None:
    c = configuration("2x910b3", NVFP4, 0.95, tensor=2)
    assert plan_memory(c).shortfall_bytes > 0


def test_unequal_stages_of_the_model_card() -> None:
    """40, 11 and 11 layers are 86.4, 23.4 and 24.6 GB; 10 GB less with offload."""
    c = configuration(
        "1xrtx-pro-6000+2xrtx-5090", NVFP4, 0.95, pipeline=3, pipeline_layers=(40, 11, 11)
    )
    loaded = [rank.term("weights") / 1e9 for rank in plan_memory(c).ranks]
    assert loaded == pytest.approx([86.4, 23.4, 24.6], rel=0.01)
    with_offload = plan_memory(c.replace(cpu_offload_bytes=10 * 10**9)).ranks
    left = [(rank.term("weights") + rank.term("offloaded")) / 1e9 for rank in with_offload]
    assert left == pytest.approx([76.4, 13.4, 14.6], rel=0.01)


def test_published_remainders_of_overhead() -> None:
    """What engines took beside weights and KV cache, within the quarter the estimate claims."""
    for hardware, name, cut, measured in (
        ("2xmi300x", FP8, {"tensor": 2}, 6.8),
        ("4xrtx-pro-6000", FP8, {"tensor": 4}, 8.7),
        ("1xdgx-spark", REAP_139B, {}, 4.0),
    ):
        rank = plan_memory(configuration(hardware, name, **cut)).ranks[0]  # type: ignore[arg-type]
        assert rank.term("overhead") / GIB == pytest.approx(measured, rel=0.25)


def test_experts_whole_or_cut_take_the_same() -> None:
    cut = plan_memory(configuration("8xh200", NVFP4, tensor=8)).ranks[0]
    whole = plan_memory(configuration("8xh200", NVFP4, tensor=8, expert_parallel=True)).ranks[0]
    assert cut.term("weights.experts") == whole.term("weights.experts")


def test_experts_that_do_not_divide_lie_unevenly() -> None:
    """154 experts over 8 ranks: two of them hold 20, six hold 19."""
    ranks = plan_memory(configuration("8xh200", REAP_139B, tensor=8, expert_parallel=True)).ranks
    experts = [rank.term("weights.experts") for rank in ranks]
    assert len(set(experts)) == 2
    assert experts[0] == experts[1] > experts[2]
    assert experts[0] / experts[2] == pytest.approx(20 / 19)


def test_attention_is_whole_on_every_data_parallel_rank() -> None:
    ranks = plan_memory(configuration("8xh200", FP8, data=8, expert_parallel=True)).ranks
    assert ranks[0].term("weights.attention") == sizes(variant_of(FP8))[1].attention
    assert ranks[0].term("weights.experts") * 8 == sizes(variant_of(FP8))[1].experts


def test_more_ranks_than_heads_copy_them() -> None:
    shape = sizes(variant_of(FP8))[0]
    eight = kv_bytes_per_token(shape, Parallelism(tensor=8), 62, "auto")
    assert kv_bytes_per_token(shape, Parallelism(tensor=16), 62, "auto") == eight == 253_952 // 8


def test_context_ranks_share_the_kv_cache() -> None:
    c = configuration("16x910c", INT8, 0.85, tensor=8, prefill_context=2, expert_parallel=True)
    memory = plan_memory(c)
    each = memory.ranks[0].term("kv_cache") // (253_952 // 8)
    assert memory.replica_tokens == memory.kv_cache_tokens == 2 * each


def test_even_stages_as_vllm_cuts_them() -> None:
    shape = sizes(variant_of(FP8))[0]
    assert stage_layers(shape, Parallelism(pipeline=3)) == (21, 21, 20)
    assert stage_layers(shape, Parallelism(pipeline=4)) == (15, 16, 16, 15)


@given(
    tensor=st.sampled_from([1, 2, 4, 8]),
    pipeline=st.integers(1, 8),
    data=st.sampled_from([1, 2, 4]),
    expert_parallel=st.booleans(),
    name=st.sampled_from([FP8, NVFP4, INT8, REAP_139B]),
)
def test_the_ranks_hold_the_checkpoint(
    tensor: int, pipeline: int, data: int, expert_parallel: bool, name: str
) -> None:
    """Every part is held once over the ranks that cut it and in full by those that copy it."""
    cut = Parallelism(tensor, pipeline, data, expert_parallel)
    variant = variant_of(name)
    whole, layers = sizes(variant)[1], stage_layers(sizes(variant)[0], cut)

    def rank_terms(rank: int) -> dict[str, int]:
        stage, experts = rank // tensor % pipeline, num_local_experts(variant, cut, rank)
        terms = weight_terms(variant, cut, stage, experts, layers[stage])
        return {term.name: term.num_bytes for term in terms}

    ranks = [rank_terms(rank) for rank in range(cut.world_size)]

    def total(part: str) -> int:
        return sum(rank.get(f"weights.{part}", 0) for rank in ranks)

    rounding = 2 * cut.world_size * 62
    assert math.isclose(total("experts"), whole.experts, abs_tol=rounding)
    assert math.isclose(total("attention"), whole.attention * data, abs_tol=rounding)
    assert math.isclose(total("embedding"), whole.embedding * data, abs_tol=rounding)
    assert math.isclose(total("lm_head"), whole.lm_head * data, abs_tol=rounding)
    assert math.isclose(total("router"), whole.router * data * tensor, abs_tol=rounding)
