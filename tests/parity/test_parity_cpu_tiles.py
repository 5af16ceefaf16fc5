"""Many rows in the tile registers of AMX: activations and weights in bfloat16, float32 sums."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from stored import FORMATS, make_weight, num_columns

from m2serve.checkpoint.weights import DenseWeight, Int8Weight, Nvfp4Weight, Weight
from m2serve.kernels.cpu_library import load_cpu_library
from m2serve.kernels.cpu_linear import CpuMatmul
from m2serve.kernels.dequantize import dequantize

LIBRARY = load_cpu_library()
pytestmark = pytest.mark.skipif(LIBRARY is None or LIBRARY.isa != "amx", reason="no AMX here")

TILES_FROM = 16  # kTilesFrom of isa_amx.cpp
NUM_ROWS = (16, 17, 31, 32, 33, 47, 48, 49, 64, 200, 530)
TILE_FORMATS = [name for name in FORMATS if name != "f32"]


def matmul(activation: Literal["float", "int8"] = "float") -> CpuMatmul:
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


@pytest.mark.parametrize("format", TILE_FORMATS)
def test_few_rows_stay_with_the_vectors(format: str) -> None:
    weight = make_weight(format, 64, 256)
    x = torch.randn(TILES_FROM, num_columns(weight))
    many = matmul("int8").linear(x, weight)
    few = matmul("int8").linear(x[:-1], weight)
    assert_tiles(many, x, weight)
    if not isinstance(weight, DenseWeight):
        assert not torch.equal(few, many[:-1])


@pytest.mark.parametrize("activation", ["float", "int8"])
@pytest.mark.parametrize("format", TILE_FORMATS)
def test_stacked_matrices_are_rows(format: str, activation: Literal["float", "int8"]) -> None:
    weight = make_weight(format, 130 if activation == "float" else 144, 384, batch=(3, 2))
    x = torch.randn(40, num_columns(weight))
    if activation == "int8":
        assert_tiles(matmul("int8").linear(x, weight), x, weight)
    else:
        assert_tiles_rounded(matmul().linear(x.bfloat16(), weight), x, weight)


@pytest.mark.parametrize("format", TILE_FORMATS)
def test_the_number_of_threads_changes_no_bit(format: str) -> None:
    weight = make_weight(format, 304, 700)
    x = torch.randn(70, num_columns(weight))
    before = torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(matmul("int8").linear(x, weight))
    torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_infinities_and_nan_of_one_token_stay_with_it() -> None:
    weight = make_weight("bf16", 64, 256)
    x = torch.randn(40, 256)
    plain = matmul("int8").linear(x, weight)
    x[7, 3], x[20, 100] = torch.inf, torch.nan
    y = matmul("int8").linear(x, weight)
    others = [row for row in range(40) if row not in (7, 20)]
    assert torch.equal(y[others], plain[others])
    assert bool(y[20].isnan().all())
    assert not bool(y[7].isfinite().any())
