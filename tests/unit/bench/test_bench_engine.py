"""The benchmark measures what it says: every format runs, bytes and times add up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from m2serve.bench.dummy import FORMATS, dummy_model
from m2serve.bench.engine import EngineBenchConfig, run_engine_bench
from m2serve.bench.operations import OperationMeter, tensor_bytes
from m2serve.bench.shapes import M2_5, MID, named_shape
from m2serve.checkpoint.weights import DenseWeight
from m2serve.errors import UsageError
from m2serve.kernels.dequantize import dequantize
from m2serve.kernels.dispatch import select_kernels
from m2serve.spec.cost import count_parameters, linear_bytes

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
    assert named_shape("m2.5", 3) == replace(M2_5, num_hidden_layers=3)
    with pytest.raises(UsageError, match=r"m3.*mid"):
        named_shape("m3")


@pytest.mark.parametrize("format", FORMATS)
def test_a_dummy_has_the_bytes_and_the_size_of_real_weights(format: str) -> None:
    model = dummy_model(
        SMALL,
        format,
        attention_format=format,
        device=CPU,
        dtype=torch.bfloat16,
        kernels=select_kernels(CPU),
    )
    layer = model.weights.layers[0]
    assert tensor_bytes(layer.attention.q_proj) == linear_bytes(SMALL.q_size, 256, format)
    assert tensor_bytes(layer.moe.w2) == 8 * linear_bytes(256, 128, format)
    values = dequantize(layer.moe.w13)
    assert values.shape == (8, 2, 128, 256)
    assert 0.5 < float(values.std()) * 256**0.5 < 2.0


@pytest.mark.parametrize("format", ["bf16", "nvfp4"])
def test_times_and_bytes_add_up(format: str) -> None:
    result = run_engine_bench(
        EngineBenchConfig(shape=SMALL, format=format, batch=3, prompt=20, output=6)
    )
    assert sum(result.operations_s.values()) == pytest.approx(result.decode_step_s)
    assert result.decode_tokens_per_s == pytest.approx(3 / result.decode_step_s)
    expected = result.decode_bytes / result.decode_step_s / 1e9
    assert result.decode_gb_per_s == pytest.approx(expected)
    assert {"experts", "linear", "lm_head", "rest"} <= result.operations_s.keys()
    dense_bytes = 4 * (
        SMALL.vocab_size * 256 + 2 * (8 * 256 + 2 * (SMALL.q_size + SMALL.kv_size) * 256)
    )
    assert dense_bytes < result.decode_bytes


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


def test_one_output_token_leaves_nothing_to_measure() -> None:
    with pytest.raises(UsageError, match="--output"):
        run_engine_bench(EngineBenchConfig(shape=SMALL, format="bf16", output=1))
