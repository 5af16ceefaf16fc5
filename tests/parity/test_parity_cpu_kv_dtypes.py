"""What the native cache stores in each dtype, and what that costs the logits."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from paged import PagedSequences

from m2serve.bench.dummy import dummy_weights
from m2serve.bench.shapes import MID
from m2serve.kernels import reference
from m2serve.kernels.cpu_attention import CpuTokenKernels, cpu_kv_cache, rotary_frequencies
from m2serve.kernels.cpu_library import load_cpu_library
from m2serve.model.minimax_m2 import MiniMaxM2, allocate_kv_cache
from m2serve.model.native import make_model

LIBRARY = load_cpu_library()
if LIBRARY is None:
    pytest.skip("no native kernels here", allow_module_level=True)
NATIVE = CpuTokenKernels(LIBRARY)
CPU = torch.device("cpu")
HEADS, HEAD_DIM = 2, 40


class Cache:
    """One layer's, of 3 blocks of 16 slots, with a value for each of 40 tokens written to it."""

    def __init__(self, dtype: torch.dtype, values: torch.Tensor) -> None:
        size = (3, HEADS, 16, HEAD_DIM)
        self.parts = [torch.zeros(size, dtype=dtype).transpose(1, 2) for _ in range(2)]
        if dtype == torch.int8:
            scales = [torch.full(size[:-1], torch.nan).transpose(1, 2) for _ in range(2)]
            self.parts += scales
        self.slots = torch.randperm(48, generator=torch.Generator().manual_seed(1))[: len(values)]
        ones = torch.ones(HEADS * HEAD_DIM)
        keys = torch.randn(values.shape, generator=torch.Generator().manual_seed(2))
        positions = torch.arange(len(values))
        where = (positions, rotary_frequencies(20, 1e4), cpu_kv_cache(*self.parts), self.slots)
        self.written_keys = NATIVE.norm_rotate_and_store(
            keys, keys, values, ones, ones, 1e-6, *where
        )[1]

    def stored(self, part: int) -> torch.Tensor:
        return self.parts[part].flatten(0, 1)[self.slots]

    def floats(self, part: int) -> torch.Tensor:
        """[num_blocks, block_size, G, D] as the attention has to read it."""
        scale = self.parts[part + 2][..., None].nan_to_num(0) if len(self.parts) == 4 else 1.0
        return self.parts[part].float() * scale


def tokens(spread: float = 1.0) -> torch.Tensor:
    return torch.randn(40, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(0)) * spread


@pytest.mark.parametrize("spread", [1e-3, 0.02, 1.0, 30.0, 1e3])
def test_fp8_is_rounded_as_torch_does_and_saturates(spread: float) -> None:
    values = tokens(spread)
    expected = values.clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(Cache(torch.float8_e4m3fn, values).stored(1).float(), expected.float())


def test_every_fp8_number_survives() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[codes & 0x7F != 0x7F].repeat(13)[: 40 * HEADS * HEAD_DIM]
    values = codes.view(torch.float8_e4m3fn).float().view(-1, HEADS, HEAD_DIM)
    assert torch.equal(Cache(torch.float8_e4m3fn, values).stored(1).float(), values)


@pytest.mark.parametrize("spread", [1e-30, 1e-3, 1.0, 1e6, 1e30])
def test_int8_has_a_scale_for_every_token_and_head(spread: float) -> None:
    values = tokens(spread)
    values[3, 1] = 0
    cache = Cache(torch.int8, values)
    scales = cache.stored(3)
    assert torch.allclose(scales, values.abs().amax(-1) / 127)
    error = (cache.stored(1).float() * scales[..., None] - values).abs()
    assert (error <= 0.501 * scales[..., None]).all()
    assert (cache.stored(1)[3, 1] == 0).all()


@pytest.mark.parametrize("group", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_attention_reads_exactly_what_is_stored(dtype: torch.dtype, group: int) -> None:
    cache = Cache(dtype, tokens())
    starts = torch.tensor([0, 1, 30], dtype=torch.int32)
    lens = torch.tensor([45, 37], dtype=torch.int32)
    table = torch.tensor([[2, 0, 1], [1, 2, 0]], dtype=torch.int32)
    q = torch.randn(30, HEADS * group, HEAD_DIM, generator=torch.Generator().manual_seed(3))
    if dtype == torch.int8:
        for scales in cache.parts[2:]:
            scales.nan_to_num_(0)
    ours = NATIVE.paged_attention(q, *cache.parts[:2], starts, lens, table, *cache.parts[2:])
    floats = (cache.floats(0), cache.floats(1))
    assert torch.allclose(
        ours, reference.paged_attention(q, *floats, starts, lens, table), atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 6, 8])
def test_what_is_not_finite_is_not_hidden(dtype: torch.dtype, wrong: float, group: int) -> None:
    """FP8 has no infinity: it becomes 448, and the request fails where the logits do."""
    values = tokens()
    values[0, 1, 3] = wrong
    cache = Cache(dtype, values)
    q = torch.ones(1, HEADS * group, HEAD_DIM)
    lens, starts = torch.tensor([48], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    table = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    for scales in cache.parts[2:]:
        unwritten = torch.ones(48, dtype=torch.bool)
        unwritten[cache.slots] = False
        scales[unwritten.view(3, 16)] = 0
    out = NATIVE.paged_attention(q, *cache.parts[:2], starts, lens, table, *cache.parts[2:])
    assert out[0, :group].isfinite().all()
    becomes_finite = dtype == torch.float8_e4m3fn and wrong == torch.inf
    assert out[0, group:, 3].isfinite().all() == becomes_finite


# Relative to float32, root mean square over all logits. Measured: bfloat16 0.0026, int8 0.0095,
# fp8 0.040.
MOST_ERROR = {torch.bfloat16: 0.004, torch.int8: 0.014, torch.float8_e4m3fn: 0.06}


@pytest.mark.parametrize("dtype", MOST_ERROR, ids=str)
def test_what_a_dtype_costs(dtype: torch.dtype) -> None:
    """All experts take part in every token, so that no rounding can tip one in or out."""
    shape = replace(
        MID,
        num_hidden_layers=4,
        hidden_size=256,
        num_local_experts=4,
        num_experts_per_tok=4,
        vocab_size=500,
    )
    model = make_model(shape, dummy_weights(shape, "bf16", device=CPU, dtype=torch.float32))
    chooser = random.Random(0)
    ids = [chooser.randrange(shape.vocab_size) for _ in range(300)]

    def logits(dtype: torch.dtype) -> torch.Tensor:
        sequences = PagedSequences(model, torch.float32)
        sequences.cache = allocate_kv_cache(shape, 256, 4, CPU, dtype)
        return torch.cat([*sequences.run([("a", ids[:-1])]), *sequences.run([("a", ids[-1:])])])

    exact = logits(torch.float32)
    error = float((logits(dtype) - exact).norm() / exact.norm())
    assert 1e-6 < error < MOST_ERROR[dtype]


def test_pytorch_reads_a_bfloat16_cache_with_float32_activations() -> None:
    shape = replace(MID, num_hidden_layers=1, hidden_size=128, num_local_experts=8, vocab_size=90)
    native = make_model(shape, dummy_weights(shape, "bf16", device=CPU, dtype=torch.float32))
    plain = MiniMaxM2(shape, native.weights, native.kernels)
    ids = list(range(70))
    ours, theirs = (PagedSequences(m, torch.bfloat16).run([("a", ids)])[0] for m in (native, plain))
    assert torch.allclose(ours, theirs, atol=1e-3)
