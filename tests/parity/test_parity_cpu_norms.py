"""The native norms, rotary embedding, cache writes and routing against the reference."""

from __future__ import annotations

import pytest
import torch

from m2serve.kernels import reference
from m2serve.kernels.cpu_attention import CpuTokenKernels, cpu_kv_cache, rotary_frequencies
from m2serve.kernels.cpu_library import load_cpu_library

LIBRARY = load_cpu_library()
if LIBRARY is None:
    pytest.skip("no native kernels here", allow_module_level=True)
NATIVE = CpuTokenKernels(LIBRARY)

EPS = 1e-6
THETA = 5e6
POSITIONS = torch.tensor([0, 1, 17, 4095, 196_607])


def random(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1, 7, 8, 17, 96, 3072, 6144])
@pytest.mark.parametrize("spread", [1e-4, 1.0, 1e4])
def test_rms_norm(size: int, spread: float) -> None:
    x, weight = random(5, size) * spread, random(size, seed=1)
    ours = NATIVE.rms_norm(x, weight, EPS)
    assert torch.allclose(ours, reference.rms_norm(x, weight, EPS), rtol=1e-5, atol=0)


def test_rms_norm_of_bfloat16_rounds_once() -> None:
    x, weight = random(9, 300).bfloat16(), random(300, seed=1).bfloat16()
    ours, theirs = NATIVE.rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS)
    assert ours.dtype is torch.bfloat16
    assert (ours == theirs).float().mean() > 0.99


def test_rms_norm_leaves_its_input_alone_and_passes_nan_on() -> None:
    x = random(3, 40)
    x[1, 7] = torch.nan
    before = x.clone()
    ours = NATIVE.rms_norm(x, torch.ones(40), EPS)
    assert torch.equal(before.nan_to_num(9.0), x.nan_to_num(9.0))
    assert ours[1].isnan().all()
    assert not ours[[0, 2]].isnan().any()


def empty(num_blocks: int, block_size: int, *inner: int, dtype: torch.dtype) -> torch.Tensor:
    """A cache of nines, its heads before the slots in memory."""
    kv_heads, head_dim = inner
    size = (num_blocks, kv_heads, block_size, head_dim)
    return torch.full(size, 9.0, dtype=dtype).transpose(1, 2)


@pytest.mark.parametrize(
    ("num_heads", "kv_heads", "head_dim", "rotary_dim"),
    [(48, 8, 128, 64), (16, 4, 64, 32), (5, 1, 32, 8), (3, 3, 20, 6), (2, 1, 16, 16)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norm_rotate_and_store(
    num_heads: int, kv_heads: int, head_dim: int, rotary_dim: int, dtype: torch.dtype
) -> None:
    q, k, v = (
        random(len(POSITIONS), heads, head_dim, seed=seed) * 3
        for seed, heads in enumerate((num_heads, kv_heads, kv_heads))
    )
    q_norm, k_norm = random(num_heads * head_dim, seed=4), random(kv_heads * head_dim, seed=5)
    slots = torch.tensor([11, 0, 7, 6, 3])
    keys, values = (empty(4, 3, kv_heads, head_dim, dtype=dtype) for _ in range(2))
    ours = NATIVE.norm_rotate_and_store(
        q,
        k,
        v,
        q_norm,
        k_norm,
        EPS,
        POSITIONS,
        rotary_frequencies(rotary_dim, THETA),
        cpu_kv_cache(keys, values),
        slots,
    )
    rotary = reference.rotary_cos_sin(POSITIONS, rotary_dim, THETA)
    for turned, x, norm in zip(ours, (q, k), (q_norm, k_norm), strict=True):
        normed = reference.rms_norm(x.flatten(1), norm, EPS).view_as(x)
        assert torch.allclose(turned, reference.apply_rotary(normed, *rotary), rtol=1e-5, atol=1e-5)
    # What the cache holds is exactly what came out, rounded once.
    expected_keys, expected_values = (torch.full_like(keys, 9.0) for _ in range(2))
    reference.write_kv(ours[1], v, expected_keys, expected_values, slots)
    assert torch.equal(keys, expected_keys)
    assert torch.equal(values, expected_values)


def check_routing(x: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor, top_k: int) -> None:
    weights, ids = NATIVE.route(x, gate, bias, top_k)
    expected_weights, expected_ids = reference.route(x, gate, bias, top_k)
    assert torch.equal(ids, expected_ids)
    assert torch.allclose(weights, expected_weights, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("num_experts", "top_k"), [(256, 8), (64, 8), (8, 2), (6, 3), (10, 10), (512, 8), (700, 3)]
)
@pytest.mark.parametrize("num_tokens", [1, 3, 40])
def test_route(num_experts: int, top_k: int, num_tokens: int) -> None:
    x, gate = random(num_tokens, 96), random(num_experts, 96, seed=1) * 0.1
    check_routing(x, gate, random(num_experts, seed=2) * 0.3, top_k)


@pytest.mark.parametrize(("num_experts", "top_k"), [(256, 8), (64, 8), (512, 8), (1024, 9), (9, 4)])
def test_of_equal_scores_the_same_experts_as_torch(num_experts: int, top_k: int) -> None:
    """Sums of whole numbers are exact in any order, so equal scores are equal everywhere."""
    generator = torch.Generator().manual_seed(num_experts)
    for spread in (1, 2, 5):
        x = torch.randint(-spread, spread + 1, (20, 16), generator=generator).float()
        gate = torch.randint(-1, 2, (num_experts, 16), generator=generator).float()
        x[0] = 0
        x[1] *= 10  # sigmoids that are exactly one
        check_routing(x, gate, torch.zeros(num_experts), top_k)
        bias = torch.randint(0, 2, (num_experts,), generator=generator).float() / 2
        check_routing(x, gate, bias, top_k)


def test_routing_nan_gives_ids_in_range() -> None:
    x = random(3, 16)
    x[1] = torch.nan
    weights, ids = NATIVE.route(x, random(12, 16, seed=1), torch.zeros(12), 4)
    assert weights[1].isnan().all()
    assert ((ids >= 0) & (ids < 12)).all()
    assert ids[1].unique().numel() == 4
