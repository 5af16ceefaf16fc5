"""What the native decoder refuses, and what it says."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

import pytest
import torch

from m2serve.bench.dummy import dummy_weights
from m2serve.bench.shapes import MID
from m2serve.checkpoint.weights import DenseWeight, Fp8BlockWeight
from m2serve.errors import CheckpointError, UsageError
from m2serve.kernels.cpu_library import load_cpu_library
from m2serve.kernels.cpu_linear import CpuActivation
from m2serve.model.layers import ModelWeights
from m2serve.model.native import NativeMiniMaxM2, make_model

if load_cpu_library() is None:
    pytest.skip("no native kernels here", allow_module_level=True)

SHAPE = replace(
    MID, num_hidden_layers=2, hidden_size=128, intermediate_size=64, num_local_experts=8,
    vocab_size=96,
)  # fmt: skip


def dummy(format: str) -> ModelWeights:
    cpu = torch.device("cpu")
    return dummy_weights(SHAPE, format, device=cpu, dtype=torch.float32)


def test_a_nan_among_the_codes_is_refused() -> None:
    weights = dummy("fp8")
    w2 = weights.layers[1].moe.w2
    assert isinstance(w2, Fp8BlockWeight)
    w2.weight.view(torch.uint8)[5, 17, 63] = 0xFF
    expected = r"layers\.1\.block_sparse_moe\.experts w2 holds NaN in row 17 of matrix 5; the file"
    with pytest.raises(CheckpointError, match=expected):
        make_model(SHAPE, weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_nan_in_a_dense_matrix_is_refused_and_infinity_is_not(dtype: torch.dtype) -> None:
    weights = dummy("nvfp4")
    head = torch.zeros(96, 128, dtype=dtype)
    head[3] = torch.inf
    head[4] = -torch.inf
    assert make_model(SHAPE, replace(weights, lm_head=DenseWeight(head)))
    head[95, 127] = -torch.nan
    with pytest.raises(CheckpointError, match=r"^lm_head holds NaN in row 95; "):
        make_model(SHAPE, replace(weights, lm_head=DenseWeight(head)))


def test_a_nan_in_a_norm_or_the_embedding_is_refused() -> None:
    weights = dummy("bf16")
    weights.layers[0].attention.k_norm[2] = torch.nan
    with pytest.raises(CheckpointError, match=r"^layers\.0\.self_attn\.k_norm holds NaN; "):
        make_model(SHAPE, weights)
    weights = dummy("bf16")
    weights.embedding[90, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"^embed_tokens holds NaN in row 90; "):
        make_model(SHAPE, weights)


def test_which_kernels_compute_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert isinstance(make_model(SHAPE, dummy("int8"), "int8"), NativeMiniMaxM2)
    assert re.search(r"CPU kernels: (avx|amx)", caplog.text)
    assert re.search(r", \d+ threads, activations int8 for 4 of 13 matrices", caplog.text)


def test_int8_activations_that_change_nothing_are_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    make_model(SHAPE, dummy("fp8"), "int8")
    assert "activations int8 for 0 of" in caplog.text


@pytest.mark.parametrize(
    ("activation", "dtype", "rounds"),
    [
        ("auto", torch.float32, False),
        ("auto", torch.bfloat16, True),
        ("float", torch.bfloat16, False),
        ("bf16", torch.float32, True),
    ],
)
def test_activations_are_rounded_as_asked(
    caplog: pytest.LogCaptureFixture, activation: CpuActivation, dtype: torch.dtype, rounds: bool
) -> None:
    caplog.set_level(logging.INFO)
    cpu = torch.device("cpu")
    weights = dummy_weights(SHAPE, "fp8", device=cpu, dtype=dtype)
    library = load_cpu_library()
    assert library is not None
    make_model(SHAPE, weights, activation)
    assert ("bfloat16 with many rows" in caplog.text) is (rounds and library.isa != "avx2")


def test_matrices_that_keep_float_activations_are_named(caplog: pytest.LogCaptureFixture) -> None:
    shape = replace(SHAPE, vocab_size=100)
    cpu = torch.device("cpu")
    weights = dummy_weights(shape, "int8", head_format="int8", device=cpu, dtype=torch.float32)
    assert make_model(shape, weights, "int8").weights.is_interleaved
    assert (
        "no int8 activations for 1 matrices, whose rows are no whole slabs: lm_head" in caplog.text
    )
    with pytest.raises(RuntimeError, match="in an order only it can read"):
        make_model(shape, weights)


def test_what_the_kernels_cannot_take_is_named(caplog: pytest.LogCaptureFixture) -> None:
    weights = dummy("bf16")
    odd = Fp8BlockWeight(
        torch.zeros(96, 128).to(torch.float8_e4m3fn), torch.ones(6, 4), block_size=(16, 32)
    )
    weights = replace(weights, lm_head=odd)
    assert not isinstance(make_model(SHAPE, weights), NativeMiniMaxM2)
    told = "cannot take a Fp8BlockWeight of weight float8_e4m3fn [96, 128], scale float32 [6, 4]"
    assert told in caplog.text
    with pytest.raises(UsageError, match="--cpu-activation int8 is for the native CPU kernels"):
        make_model(SHAPE, weights, "int8")
