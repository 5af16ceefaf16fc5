"""The benchmark measures what it says: every format runs, bytes and times add up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from m2serve.bench.dummy import FORMATS, dummy_weights
from m2serve.bench.engine import Spread, run_engine_bench
from m2serve.bench.generation import EngineBenchConfig
from m2serve.bench.operations import OperationMeter, tensor_bytes
from m2serve.bench.shapes import M2_5, MID, MINIATURE, named_shape
from m2serve.checkpoint.weights import DenseWeight, Fp8BlockWeight, Weight
from m2serve.errors import UsageError
from m2serve.kernels.cpu_library import load_cpu_library
from m2serve.kernels.dequantize import dequantize
from m2serve.kernels.dispatch import linear_dtype, select_kernels
from m2serve.model.minimax_m2 import MiniMaxM2
from m2serve.model.native import make_model
from m2serve.spec.cost import (
    active_bytes_per_token,
    count_parameters,
    kv_bytes_per_token,
    linear_bytes,
)

CPU = torch.device("cpu")
SMALL = replace(
    MID,
    num_hidden_layers=2,
    num_local_experts=8,
    num_experts_per_tok=2,
    hidden_size=256,
    intermediate_size=128,
    vocab_size=512,
)


def test_shapes() -> None:
    assert count_parameters(M2_5).total == 228_689_764_864
    assert named_shape("miniature") == MINIATURE
    assert named_shape("m2.5", 3) == replace(M2_5, num_hidden_layers=3)
    with pytest.raises(UsageError, match=r"m3.*mid"):
        named_shape("m3")


@pytest.mark.parametrize("format", FORMATS)
def test_a_dummy_has_the_bytes_and_the_size_of_real_weights(format: str) -> None:
    weights = dummy_weights(
        SMALL, format, attention_format=format, device=CPU, dtype=torch.bfloat16
    )
    layer = weights.layers[0]
    assert tensor_bytes(layer.attention.q_proj) == linear_bytes(SMALL.q_size, 256, format)
    assert tensor_bytes(layer.moe.w2) == 8 * linear_bytes(256, 128, format)
    values = dequantize(layer.moe.w13)
    assert values.shape == (8, 2, 128, 256)
    assert 0.5 < float(values.std()) * 256**0.5 < 2.0
    # What rows have in common would send all tokens to the same experts.
    assert float(values.flatten(0, -2).mean(0).abs().max()) < 0.15 * float(values.std())


@pytest.mark.parametrize("part", ["attention_format", "head_format"])
def test_formats_of_attention_and_head(part: str) -> None:
    def made(dtype: torch.dtype, format: str) -> Weight:
        weights = dummy_weights(SMALL, "nvfp4", device=CPU, dtype=dtype, **{part: format})
        head = part == "head_format"
        return weights.lm_head if head else weights.layers[1].attention.o_proj

    for dtype in (torch.float32, torch.bfloat16):
        dense, half = made(dtype, ""), made(dtype, "bf16")
        assert isinstance(dense, DenseWeight)
        assert isinstance(half, DenseWeight)
        assert dense.weight.dtype == linear_dtype(CPU, torch.bfloat16, dtype)
        assert half.weight.dtype == torch.bfloat16
        assert isinstance(made(dtype, "fp8"), Fp8BlockWeight)
    with pytest.raises(UsageError, match="q4_k"):
        made(torch.float32, "q4_k")


def dummy(format: str, *, wrapped: bool, **formats: str) -> MiniMaxM2:
    weights = dummy_weights(SMALL, format, device=CPU, dtype=torch.float32, **formats)
    if wrapped:
        return MiniMaxM2(SMALL, weights, select_kernels(CPU))
    return make_model(SMALL, weights)


# `wrapped`: the decoder of single operations, also where there is a native one.
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("format", ["bf16", "nvfp4"])
def test_times_and_bytes_add_up(format: str, wrapped: bool) -> None:
    model = dummy(format, wrapped=wrapped, attention_format="fp8", head_format="int8")
    result = run_engine_bench(model, EngineBenchConfig(batch=3, prompt=20, output=6, repeat=3))
    assert sum(result.operations_s.values()) == pytest.approx(result.decode_step_s)
    assert result.decode_tokens_per_s.median == pytest.approx(3 / result.decode_step_s)
    for rate in (result.decode_tokens_per_s, result.prefill_tokens_per_s):
        assert 0 < rate.minimum <= rate.median <= rate.maximum
    expected = result.decode_bytes / result.decode_step_s / 1e9
    assert result.decode_gb_per_s == pytest.approx(expected)
    assert result.bandwidth_share == pytest.approx(expected / result.read_bandwidth_gb_per_s)
    assert result.decode_bytes_per_token * 3 == pytest.approx(result.decode_bytes)
    assert {"experts", "linear", "lm_head", "rest"} <= result.operations_s.keys()
    assert result.operations_s.keys() - {"rest"} <= result.implementations.keys()
    in_layers = result.decode_step_s - result.operations_s["lm_head"] - result.operations_s["rest"]
    assert result.decode_layer_s == pytest.approx(in_layers / 2)
    assert result.parameters == count_parameters(SMALL).total
    assert result.weight_bytes == model.weights.nbytes < result.peak_memory_bytes


@pytest.mark.parametrize("wrapped", [True, False])
def test_one_sequence_reads_what_the_cost_model_says(wrapped: bool) -> None:
    model = dummy("nvfp4", wrapped=wrapped, attention_format="fp8", head_format="fp8")
    config = EngineBenchConfig(batch=1, prompt=20, output=5, context=32, repeat=1)
    result = run_engine_bench(model, config)
    weights = active_bytes_per_token(SMALL, "nvfp4", "fp8", "fp8", router_dtype="float32")
    # Norms, the router's bias and the embedding's row are not counted as read.
    norms = 2 * count_parameters(SMALL).norms + 4 * (SMALL.q_size + SMALL.kv_size)
    small = norms + 2 * SMALL.hidden_size + 2 * 4 * SMALL.num_local_experts
    kv_bytes = (32 + 20 + 2) * kv_bytes_per_token(SMALL, "float32")
    assert result.decode_bytes == weights - small + kv_bytes


@pytest.mark.skipif(load_cpu_library() is None, reason="no CPU kernels here")
@pytest.mark.parametrize(("dtype", "head_bytes"), [("bfloat16", 2), ("fp8", 1), ("int8", 1)])
def test_the_cache_may_be_narrower(dtype: str, head_bytes: int) -> None:
    model = dummy("nvfp4", wrapped=False)

    def decode_bytes(kv_cache_dtype: str) -> float:
        config = EngineBenchConfig(prompt=20, output=5, context=32, kv_cache_dtype=kv_cache_dtype)
        return run_engine_bench(model, config).decode_bytes

    heads = 2 * SMALL.num_hidden_layers * SMALL.num_key_value_heads * (32 + 20 + 2)
    less = heads * SMALL.head_dim * (4 - head_bytes) - (4 * heads if dtype == "int8" else 0)
    assert decode_bytes("float32") - decode_bytes(dtype) == less


def test_the_meter_counts_the_experts_that_are_hit() -> None:
    meter = OperationMeter(CPU)
    run = meter.wrap(select_kernels(CPU))
    w13, w2 = DenseWeight(torch.randn(5, 2, 8, 16)), DenseWeight(torch.randn(5, 16, 8))
    ids = torch.tensor([[1, 3], [3, 1], [1, 4]])
    run.experts(torch.randn(3, 16), w13, w2, torch.rand(3, 2), ids)
    assert meter.weight_bytes == 3 * (3 * 8 * 16 * 4)
    assert set(meter.seconds) == {"experts"}
    meter.reset()
    meter.lm_head = w2
    run.linear(torch.randn(3, 8), w2)
    assert meter.weight_bytes == 5 * 16 * 8 * 4
    assert set(meter.seconds) == {"lm_head"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"output": 1}, "--output at least 2"),
        ({"batch": 0}, "--batch"),
        ({"repeat": 0}, "--repeat"),
        ({"context": 24}, "--context is 24; a multiple of 16"),
        ({"context": -16}, "--context is -16"),
        ({"prompt": 300_000}, "the model has 196608 positions"),
    ],
)
def test_a_run_that_measures_nothing_is_refused(change: dict[str, int], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        run_engine_bench(dummy("bf16", wrapped=True), EngineBenchConfig(**change))


def test_the_median_of_an_even_number_is_one_of_them() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0]) == Spread(3.0, 1.0, 4.0)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0)
