"""The native experts against the reference, with the routings that go wrong."""

from __future__ import annotations

import pytest
import torch
from stored import FORMATS, make_weight

from m2serve.checkpoint.weights import Int4Weight, Int8Weight, Weight
from m2serve.kernels import reference
from m2serve.kernels.cpu_library import load_cpu_library
from m2serve.kernels.cpu_linear import CpuActivation, CpuMatmul

LIBRARY = load_cpu_library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="no CPU kernels here")

HIDDEN, WIDTH, NUM_EXPERTS = 384, 256, 9


def matmul(activation: CpuActivation = "auto") -> CpuMatmul:
    assert LIBRARY is not None
    return CpuMatmul(LIBRARY, activation)


def tamed(weight: Weight) -> Weight:
    """Without the rows that would drown all others."""
    if isinstance(weight, Int4Weight | Int8Weight):
        weight.scale.copy_(weight.scale.clamp(max=1) / 50)
    elif weight.__class__.__name__ == "Mxfp4Weight":
        weight.scale.clamp_(max=120)
    elif weight.__class__.__name__ == "Nvfp4Weight":
        weight.global_scale.mul_(1e-3)
    elif weight.__class__.__name__ == "Fp8BlockWeight":
        weight.scale.clamp_(max=1e-3)
    return weight


def pair(format: str) -> tuple[Weight, Weight]:
    w13 = tamed(make_weight(format, WIDTH, HIDDEN, batch=(NUM_EXPERTS, 2)))
    return w13, tamed(make_weight(format, HIDDEN, WIDTH, batch=(NUM_EXPERTS,), seed=1))


def spread_ids(num_tokens: int, top_k: int) -> torch.Tensor:
    return torch.rand(num_tokens, NUM_EXPERTS).topk(top_k).indices


def hot_ids(num_tokens: int, top_k: int) -> torch.Tensor:
    """Every token chooses expert 4, few choose any other, and expert 0 gets none."""
    ids = torch.full((num_tokens, top_k), 4)
    ids[:, 1:] = torch.arange(1, top_k)
    return ids


def assert_near(y: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert y.shape == expected.shape
    assert float((y - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("num_tokens", [1, 2, 5, 33, 200])
@pytest.mark.parametrize("format", FORMATS)
def test_spread_and_hot_experts(format: str, num_tokens: int) -> None:
    w13, w2 = pair(format)
    x = torch.randn(num_tokens, HIDDEN)
    for ids in (spread_ids(num_tokens, 3), hot_ids(num_tokens, 3), spread_ids(num_tokens, 1)):
        weights = torch.rand(ids.shape)
        expected = reference.experts(x, w13, w2, weights, ids)
        assert float(expected.abs().max()) > 0
        assert_near(matmul().experts(x, w13, w2, weights, ids), expected, 3e-6)


@pytest.mark.parametrize("format", [name for name in FORMATS if name.startswith(("nv", "mx", "i"))])
def test_int8_activations_are_near(format: str) -> None:
    w13, w2 = pair(format)
    x, ids = torch.randn(40, HIDDEN), spread_ids(40, 3)
    weights = torch.rand(ids.shape)
    expected = reference.experts(x, w13, w2, weights, ids)
    for weight in (w13, w2):
        described, _ = matmul("int8").describe(weight)
        assert described is not None
        assert described.interleaved
    y = matmul("int8").experts(x, w13, w2, weights, ids)
    assert_near(y, expected, 3e-2)
    assert not torch.equal(y, expected)


def test_the_number_of_threads_changes_no_bit() -> None:
    w13, w2 = pair("nvfp4")
    x, ids = torch.randn(40, HIDDEN), spread_ids(40, 3)
    weights = torch.rand(ids.shape)
    before = torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(matmul().experts(x, w13, w2, weights, ids))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_more_tokens_than_one_slice() -> None:
    w13 = tamed(make_weight("int8", 32, 64, batch=(NUM_EXPERTS, 2)))
    w2 = tamed(make_weight("int8", 64, 32, batch=(NUM_EXPERTS,), seed=1))
    x, ids = torch.randn(2500, 64), spread_ids(2500, 2)
    weights = torch.rand(ids.shape)
    expected = reference.experts(x, w13, w2, weights, ids)
    assert_near(matmul().experts(x, w13, w2, weights, ids), expected, 3e-6)


def test_no_tokens() -> None:
    w13, w2 = pair("bf16")
    ids = torch.empty(0, 3, dtype=torch.int64)
    assert matmul().experts(torch.empty(0, HIDDEN), w13, w2, torch.empty(0, 3), ids).numel() == 0


def test_bfloat16_activations_keep_their_type() -> None:
    w13, w2 = pair("bf16")
    x, ids = torch.randn(30, HIDDEN).bfloat16(), spread_ids(30, 3)
    weights = torch.rand(ids.shape)
    y = matmul().experts(x, w13, w2, weights, ids)
    assert y.dtype == torch.bfloat16
    assert_near(y.float(), reference.experts(x.float(), w13, w2, weights, ids), 2e-2)


def test_huge_gates_saturate() -> None:
    w13, w2 = pair("f32")
    x, ids = torch.randn(4, HIDDEN) * 1e3, spread_ids(4, 2)
    weights = torch.rand(ids.shape)
    expected = reference.experts(x, w13, w2, weights, ids)
    assert_near(matmul().experts(x, w13, w2, weights, ids), expected, 3e-6)


def test_an_expert_named_twice_counts_twice() -> None:
    w13, w2 = pair("f32")
    x, ids = torch.randn(8, HIDDEN), torch.full((8, 8), 3)
    weights = torch.rand(ids.shape)
    once = reference.experts(x, w13, w2, weights.sum(1, keepdim=True), ids[:, :1])
    assert_near(matmul().experts(x, w13, w2, weights, ids), once, 3e-6)


def test_an_id_out_of_range_is_refused() -> None:
    w13, w2 = pair("bf16")
    x, weights = torch.randn(1, HIDDEN), torch.rand(1, 2)
    for ids in ([[0, NUM_EXPERTS]], [[-1, 0]]):
        with pytest.raises(AssertionError):
            matmul().experts(x, w13, w2, weights, torch.tensor(ids))
