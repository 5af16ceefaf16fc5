"""Many rows in the tile registers of AMX: activations and weights in bfloat16, float32 sums."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from stored import FORMATS, fp8, int4, int8, make_weight, num_columns
from test_parity_cpu_experts import assert_near, hot_ids, pair, spread_ids, tamed
from threads import of_threads

from m2serve.checkpoint.weights import (
    Fp8BlockWeight,
    Int8Weight,
    Nvfp4Weight,
    Weight,
)
from m2serve.kernels import reference
from m2serve.kernels.cpu_library import load_cpu_library
from m2serve.kernels.cpu_linear import CpuActivation, CpuMatmul
from m2serve.kernels.dequantize import dequantize

LIBRARY = load_cpu_library()
pytestmark = pytest.mark.skipif(LIBRARY is None or LIBRARY.isa != "amx", reason="no AMX here")

TILES_FROM = 16  # kTilesFrom of isa_amx.cpp
NUM_ROWS = (16, 17, 31, 32, 33, 47, 48, 49, 64, 200, 530)
TILE_FORMATS = [name for name in FORMATS if name != "f32"]


def matmul(activation: CpuActivation = "auto") -> CpuMatmul:
    assert LIBRARY is not None
    return CpuMatmul(LIBRARY, activation)


def tile_weight(weight: Weight) -> torch.Tensor:
    """What the tiles hold, times what their sums are multiplied with: [N, K] float64. The scale of
    a row or of a whole matrix is not rounded."""
    values = dequantize(weight).double()
    outside = torch.ones((), dtype=torch.float64)
    if isinstance(weight, Int8Weight):
        outside = weight.scale.double().reshape(*values.shape[:-1], 1)
    elif isinstance(weight, Nvfp4Weight):
        outside = weight.global_scale.double().reshape(*values.shape[:-2], 1, 1)
    return ((values / outside).bfloat16().double() * outside).flatten(0, -2)


def lost(x: torch.Tensor) -> torch.Tensor:
    """Subnormal numbers, of which a weight may have as many as it has columns, count as zero."""
    return 1.2e-38 * (1 + x.abs().sum(-1, keepdim=True))


def assert_tiles(y: torch.Tensor, x: torch.Tensor, weight: Weight) -> None:
    values = tile_weight(weight)
    rounded = x.bfloat16().double()
    expected = F.linear(rounded, values)
    bound = 2e-6 * F.linear(rounded.abs(), values.abs()) + lost(rounded)
    error = (y.double() - expected).abs()
    assert bool((error <= bound).all()), float((error / bound).max())


def assert_tiles_rounded(y: torch.Tensor, x: torch.Tensor, weight: Weight) -> None:
    """The result itself is bfloat16, too."""
    assert y.dtype == torch.bfloat16
    values, rounded = tile_weight(weight), x.bfloat16().double()
    expected = F.linear(rounded, values)
    bound = 2e-6 * F.linear(rounded.abs(), values.abs()) + 2**-8 * expected.abs() + lost(rounded)
    assert bool(((y.double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("columns", [160, 256, 700, 1536])
@pytest.mark.parametrize("format", TILE_FORMATS)
def test_any_number_of_rows(format: str, columns: int) -> None:
    weight = make_weight(format, 77, columns)
    for rows in NUM_ROWS if columns == 700 else (16, 40):
        x = torch.randn(rows, num_columns(weight)) * 10 ** torch.randn(rows, 1)
        assert_tiles_rounded(matmul().linear(x.bfloat16(), weight), x, weight)


@pytest.mark.parametrize("columns", [160, 256, 700, 1536])
@pytest.mark.parametrize("format", TILE_FORMATS)
def test_sums_are_float32(format: str, columns: int) -> None:
    """int8 asked for: what has slabs meets the tiles interleaved, the rest as stored."""
    weight = make_weight(format, 80, columns)
    for rows in NUM_ROWS if columns == 700 else (16, 40):
        x = torch.randn(rows, num_columns(weight)) * 10 ** torch.randn(rows, 1)
        x[0] = 0
        assert_tiles(matmul("int8").linear(x, weight), x, weight)


@pytest.mark.parametrize("format", [name for name in TILE_FORMATS if name not in ("bf16", "f16")])
def test_few_rows_stay_with_the_vectors(format: str) -> None:
    weight = make_weight(format, 64, 256)
    x = torch.randn(TILES_FROM, num_columns(weight))
    many = matmul("int8").linear(x, weight)
    few = matmul("int8").linear(x[:-1], weight)
    assert_tiles(many, x, weight)
    assert not torch.equal(few, many[:-1])


@pytest.mark.parametrize("activation", ["auto", "int8"])
@pytest.mark.parametrize("format", TILE_FORMATS)
def test_stacked_matrices_are_rows(format: str, activation: CpuActivation) -> None:
    weight = make_weight(format, 130 if activation == "auto" else 144, 384, batch=(3, 2))
    x = torch.randn(40, num_columns(weight))
    if activation == "int8":
        assert_tiles(matmul("int8").linear(x, weight), x, weight)
    else:
        assert_tiles_rounded(matmul().linear(x.bfloat16(), weight), x, weight)


@pytest.mark.parametrize("rows", [70, 1099])
@pytest.mark.parametrize("format", TILE_FORMATS)
def test_the_number_of_threads_changes_no_bit(format: str, rows: int) -> None:
    weight = make_weight(format, 304, 700)
    x = torch.randn(rows, num_columns(weight))
    run = functools.partial(matmul("int8").linear, x, weight)
    one = of_threads(1, run)
    assert all(torch.equal(of_threads(count, run), one) for count in (2, 5))


@pytest.mark.parametrize("columns", [256, 200])
def test_infinities_and_nan_of_one_token_stay_with_it(columns: int) -> None:
    """Columns in whole tiles, and not."""
    weight = make_weight("bf16", 64, columns)
    x = torch.randn(40, columns)
    plain = matmul("int8").linear(x, weight)
    x[7, 3], x[20, 100] = torch.inf, torch.nan
    y = matmul("int8").linear(x, weight)
    others = [row for row in range(40) if row not in (7, 20)]
    assert torch.equal(y[others], plain[others])
    assert bool(y[20].isnan().all())
    assert not bool(y[7].isfinite().any())


@pytest.mark.parametrize("block_size", [(128, 64), (48, 192), (7, 64)])
def test_fp8_of_other_blocks(block_size: tuple[int, int]) -> None:
    stored = fp8((), 80, 400)
    assert isinstance(stored, Fp8BlockWeight)
    scale = torch.rand(-(-80 // block_size[0]), -(-400 // block_size[1]))
    weight = Fp8BlockWeight(stored.weight, scale, block_size)
    x = torch.randn(40, 400)
    assert_tiles(matmul("int8").linear(x, weight), x, weight)


@pytest.mark.parametrize("has_zero_point", [False, True])
@pytest.mark.parametrize("group", [64, 256])
def test_int4_of_other_groups(group: int, has_zero_point: bool) -> None:
    weight = int4(group, torch.float16, has_zero_point)((), 96, 768)
    x = torch.randn(40, 768)
    assert_tiles(matmul("int8").linear(x, weight), x, weight)
    assert_tiles_rounded(matmul().linear(x.bfloat16(), weight), x, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rows", [96, 90])
def test_int8_with_other_scales(dtype: torch.dtype, rows: int) -> None:
    stored = int8((), rows, 260)
    assert isinstance(stored, Int8Weight)
    weight = Int8Weight(stored.weight, stored.scale.to(dtype))
    x = torch.randn(40, 260)
    assert_tiles(matmul("int8").linear(x, weight), x, weight)


@pytest.mark.parametrize("format", TILE_FORMATS)
def test_few_columns_and_few_rows_of_weights(format: str) -> None:
    for rows, columns in ((16, 32), (5, 160), (1, 128), (33, 128)):
        weight = make_weight(format, max(rows, 2), columns)
        if num_columns(weight) == 0:
            continue
        x = torch.randn(20, num_columns(weight))
        assert_tiles(matmul("int8").linear(x, weight), x, weight)


def expected_experts(
    x: torch.Tensor, w13: Weight, w2: Weight, weights: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """In float64 but for what the tiles round: activations, what lies between, and the weights."""
    num_experts = ids.max() + 1
    between = tile_weight(w13).unflatten(0, (-1, 2, tile_weight(w2).shape[1]))
    down = tile_weight(w2).unflatten(0, (-1, x.shape[1]))
    y = torch.zeros(x.shape, dtype=torch.float64)
    for expert in range(int(num_experts)):
        token, place = (ids == expert).nonzero(as_tuple=True)
        gate, up = (F.linear(x[token].bfloat16().double(), part) for part in between[expert])
        hidden = (F.silu(gate) * up).bfloat16().double()
        y.index_add_(0, token, F.linear(hidden, down[expert]) * weights[token, place, None])
    return y


@pytest.mark.parametrize("activation", ["auto", "int8"])
@pytest.mark.parametrize("format", TILE_FORMATS)
def test_experts(format: str, activation: CpuActivation) -> None:
    """Also one that all tokens name, one that one token names, last, and one named twice."""
    w13, w2 = pair(format)
    x = torch.randn(200, w2_rows(w2)).bfloat16().float()
    last = spread_ids(200, 2).clamp(max=7)
    last[-1, -1] = 8
    twice = hot_ids(200, 3)
    twice[5] = 4
    for ids in (spread_ids(200, 3), hot_ids(200, 3), last, twice):
        weights = torch.rand(ids.shape)
        given = x if activation == "int8" else x.bfloat16()
        y = matmul(activation).experts(given, w13, w2, weights, ids).double()
        assert_near(y, expected_experts(x, w13, w2, weights, ids), 1e-2)


@pytest.mark.parametrize("format", ["bf16", "fp8", "nvfp4", "int8"])
def test_experts_whose_rows_of_activations_fill_a_cache(format: str) -> None:
    """Tokens of the hot expert meet its weights in three slices."""
    w13 = tamed(make_weight(format, 64, 3072, batch=(5, 2)))
    w2 = tamed(make_weight(format, 3072, 64, batch=(5,), seed=1))
    x = torch.randn(400, 3072).bfloat16().float() / 8
    ids = torch.where(torch.rand(400, 1) < 0.9, 3, 1)
    weights = torch.rand(ids.shape)
    y = matmul("int8").experts(x, w13, w2, weights, ids).double()
    assert_near(y, expected_experts(x, w13, w2, weights, ids), 1e-2)


@pytest.mark.parametrize("width", [544, 1056])
@pytest.mark.parametrize("format", ["fp8", "nvfp4", "int8"])
def test_experts_of_several_panels(format: str, width: int) -> None:
    """What every panel gives is scaled and added by itself."""
    w13 = tamed(make_weight(format, width, 64, batch=(9, 2)))
    w2 = tamed(make_weight(format, 64, width, batch=(9,), seed=1))
    x, ids = torch.randn(200, 64).bfloat16().float(), spread_ids(200, 3)
    weights = torch.rand(ids.shape)
    run = functools.partial(matmul("int8").experts, x, w13, w2, weights, ids)
    one = of_threads(1, run)
    assert_near(one.double(), expected_experts(x, w13, w2, weights, ids), 1e-2)
    assert torch.equal(of_threads(2, run), one)
    assert torch.equal(of_threads(5, run), one)


@pytest.mark.parametrize("width", [40, 20, 7])
def test_what_lay_behind_the_last_column_does_not_count(width: int) -> None:
    """The same memory has held the NaN of a wider expert."""
    x, ids = torch.randn(60, 64).bfloat16().float(), torch.zeros(60, 1, dtype=torch.int64)
    weights = torch.ones(60, 1)
    wide = make_weight("f16", 512, 64, batch=(1, 2)), make_weight("f16", 64, 512, batch=(1,))
    spoilt = matmul("int8").experts(x * torch.nan, *wide, weights, ids)
    assert bool(spoilt.isnan().all())
    w13 = make_weight("f16", width, 64, batch=(1, 2))
    w2 = make_weight("f16", 64, width, batch=(1,), seed=1)
    y = matmul("int8").experts(x, w13, w2, weights, ids).double()
    assert_near(y, expected_experts(x, w13, w2, weights, ids), 1e-2)


def w2_rows(w2: Weight) -> int:
    return int(dequantize(w2).shape[-2])


@pytest.mark.parametrize(
    ("first", "second"), [("f32", "nvfp4"), ("nvfp4", "f32"), ("int8", "bf16")]
)
def test_experts_of_two_formats(first: str, second: str) -> None:
    (w13, _), (_, w2) = pair(first), pair(second)
    width = min(num_columns(w2), dequantize(w13).shape[-2])
    assert width == num_columns(w2)
    x, ids = torch.randn(100, w2_rows(w2)), spread_ids(100, 3)
    weights = torch.rand(ids.shape)
    expected = reference.experts(x, w13, w2, weights, ids)
    assert_near(matmul("int8").experts(x, w13, w2, weights, ids), expected, 2e-2)


@pytest.mark.parametrize("format", ["bf16", "nvfp4", "int4-g128-zero-points"])
def test_experts_of_any_number_of_threads(format: str) -> None:
    w13, w2 = pair(format)
    x, ids = torch.randn(100, w2_rows(w2)), spread_ids(100, 3)
    weights = torch.rand(ids.shape)
    run = functools.partial(matmul("int8").experts, x, w13, w2, weights, ids)
    one = of_threads(1, run)
    assert torch.equal(of_threads(2, run), one)
    assert torch.equal(of_threads(5, run), one)


def test_experts_of_more_tokens_than_one_slice() -> None:
    """The last slice has too few rows an expert for the tiles."""
    w13 = tamed(make_weight("int8", 32, 64, batch=(9, 2)))
    w2 = tamed(make_weight("int8", 64, 32, batch=(9,), seed=1))
    x, ids = torch.randn(2054, 64).bfloat16().float(), spread_ids(2054, 2)
    weights = torch.rand(ids.shape)
    y = matmul("int8").experts(x, w13, w2, weights, ids).double()
    assert_near(y[:2048], expected_experts(x, w13, w2, weights, ids)[:2048], 1e-2)
    few = matmul("int8").experts(x[2048:], w13, w2, weights[2048:], ids[2048:])
    assert torch.equal(y[2048:], few.double())
