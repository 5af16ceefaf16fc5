"""The native product of every storage format against float64 on what its bytes stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from stored import FORMATS, make_weight, num_columns

from m2serve.checkpoint.weights import DenseWeight, Int4Weight, Nvfp4Weight, Weight
from m2serve.kernels import reference
from m2serve.kernels.cpu_library import load_cpu_library
from m2serve.kernels.cpu_linear import CpuActivation, CpuMatmul
from m2serve.kernels.dequantize import dequantize

LIBRARY = load_cpu_library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="no CPU kernels here")

NUM_ROWS = (*range(1, 34), 200)
MOST_INT8_ROWS = 15 if LIBRARY is not None and LIBRARY.isa == "amx" else 1000  # test_.._tiles.py
INTEGER_FORMATS = [name for name in FORMATS if name.startswith(("nvfp4", "mxfp4", "int"))]


@pytest.fixture(params=[1, 3])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


CHOICES: tuple[CpuActivation, ...] = ("auto", "float", "bf16")


def matmul(activation: CpuActivation = "auto") -> CpuMatmul:
    assert LIBRARY is not None
    return CpuMatmul(LIBRARY, activation)


def assert_near(
    y: torch.Tensor, x: torch.Tensor, weight: Weight, offset_codes: bool = False
) -> None:
    """Within float32's rounding of the terms of each sum.

    Codes with a zero point, and the unsigned codes of int8 products, are summed apart from what
    is subtracted, so that their terms are as large as the largest weight of the row.
    """
    values = dequantize(weight).flatten(0, -2).double()
    terms = values.abs()
    if offset_codes or (isinstance(weight, Int4Weight) and weight.zero_point is not None):
        terms = 4 * terms.amax(-1, keepdim=True).expand_as(terms)
    bound = 1e-6 * F.linear(x.double().abs(), terms) + 1e-37
    error = (y.double() - F.linear(x.double(), values)).abs()
    assert bool((error <= bound).all()), float((error / bound).max())


@pytest.mark.parametrize("columns", [256, 700, 1536])
@pytest.mark.parametrize("format", FORMATS)
def test_any_number_of_rows(format: str, columns: int, num_threads: int) -> None:
    weight = make_weight(format, 77, columns)
    for rows in NUM_ROWS if columns == 700 else (1, 4, 5, 7, 10, 16):
        x = torch.randn(rows, num_columns(weight))
        assert_near(matmul().linear(x, weight), x, weight)


@pytest.mark.parametrize("format", FORMATS)
def test_activations_of_any_size(format: str) -> None:
    weight = make_weight(format, 40, 640)
    for rows in (1, 9):
        x = torch.randn(rows, num_columns(weight))
        x[0, ::2] *= 1e-41
        x[0, 1::3] = 1e8
        x[-1, 64:192] = 0
        assert_near(matmul().linear(x, weight), x, weight)


@pytest.mark.parametrize("format", FORMATS)
def test_stacked_matrices_are_rows(format: str) -> None:
    weight = make_weight(format, 130, 384, batch=(3, 2))
    x = torch.randn(6, num_columns(weight))
    assert_near(matmul().linear(x, weight), x, weight)


@pytest.mark.parametrize("format", ["bf16", "fp8", "nvfp4"])
def test_float_activations_are_not_rounded_where_bfloat16_ones_are(format: str) -> None:
    library = load_cpu_library()
    if library is None or library.isa == "avx2":
        pytest.skip("bfloat16 is not multiplied here")
    weight = make_weight(format, 130, 384)
    x = torch.randn(64, num_columns(weight))
    exact = reference.linear(x, weight)
    errors = {
        activation: float((matmul(activation).linear(x, weight) - exact).abs().max())
        for activation in CHOICES
    }
    assert errors["auto"] == errors["float"] < 0.1 * errors["bf16"]
    rounded = x.bfloat16()
    same = {a: matmul(a).linear(rounded, weight) for a in CHOICES}
    assert torch.equal(same["auto"], same["bf16"])


@pytest.mark.parametrize("columns", [8, 200, 700, 1500, 6220])
def test_bfloat16_weights_against_bfloat16_activations(columns: int) -> None:
    """As they are stored for few rows, by tiles for many; more columns than are taken at once."""
    library = load_cpu_library()
    if library is None or library.isa == "avx2":
        pytest.skip("bfloat16 is not multiplied here")
    weight = make_weight("bf16", 37, columns)
    for rows in (5, 7, 8, 9, 15, 16, 17, 40):
        x = torch.randn(rows, columns)
        rounded, values = x.bfloat16().double(), dequantize(weight).double()
        error = (matmul("bf16").linear(x, weight).double() - F.linear(rounded, values)).abs()
        # The instruction takes subnormal numbers for zero.
        lost = 1.2e-38 * (1 + rounded.abs().sum(-1, keepdim=True))
        assert bool((error <= 1e-6 * F.linear(rounded.abs(), values.abs()) + lost).all())


@pytest.mark.parametrize("columns", [700, 704])
@pytest.mark.parametrize("activation", ["auto", "int8"])
@pytest.mark.parametrize("format", FORMATS)
def test_the_number_of_threads_changes_no_bit(
    format: str, activation: CpuActivation, columns: int
) -> None:
    """Float32 meets many rows in slices, of which none is a few rows, and those of whole vectors
    where they lie; 303 rows of weights leave some behind the last four.
    """
    weight = make_weight(format, 303, columns)
    before = torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        torch.manual_seed(1)
        x = torch.randn(194, num_columns(weight))
        results.append([matmul(activation).linear(x[:rows], weight) for rows in (1, 3, 8, 20, 194)])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("format", FORMATS)
def test_bfloat16_activations(format: str) -> None:
    weight = make_weight(format, 50, 512)
    for rows in (1, 7):
        x = torch.randn(rows, num_columns(weight), dtype=torch.bfloat16)
        y = matmul().linear(x, weight)
        assert y.dtype == torch.bfloat16
        expected = reference.linear(x.float(), weight)
        torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2 * expected.std())


def rounded_to_int8(x: torch.Tensor, group: int) -> torch.Tensor:
    padded = F.pad(x, (0, -x.shape[1] % group)).unflatten(-1, (-1, group))
    most = padded.abs().amax(-1, keepdim=True)
    inverse = torch.full_like(most, 127) / most  # 127 / most would multiply by 1 / most
    codes = torch.where(most > 0, padded * inverse, 0).round()
    return (codes.double() * (most.double() / 127)).flatten(1)[:, : x.shape[1]]


@pytest.mark.parametrize("columns", [256, 700, 1536])
@pytest.mark.parametrize("format", INTEGER_FORMATS)
def test_int8_activations(format: str, columns: int) -> None:
    weight = make_weight(format, 80, columns)
    group = 16 if isinstance(weight, Nvfp4Weight) else 32
    for rows in NUM_ROWS if columns == 700 else (1, 11, 12, 140):
        if rows > MOST_INT8_ROWS:
            continue
        x = torch.randn(rows, num_columns(weight)) * 10 ** torch.randn(rows, 1)
        x[0, :group] = 0
        x[-1, group - 1] = 1000
        y = matmul("int8").linear(x, weight)
        assert_near(y, rounded_to_int8(x, group), weight, offset_codes=True)


@pytest.mark.parametrize(
    ("format", "rows", "columns"),
    [("bf16", 32, 200), ("fp8", 32, 256), ("int4-g32", 30, 256), ("int8", 32, 202)],
)
def test_int8_activations_leave_weights_alone_that_have_no_slabs(
    format: str, rows: int, columns: int
) -> None:
    """Of no integer code, of rows that are no whole slabs, or of half a step."""
    weight = make_weight(format, rows, columns)
    for count in (1, 4):
        x = torch.randn(count, num_columns(weight))
        assert torch.equal(matmul("int8").linear(x, weight), matmul().linear(x, weight))


@pytest.mark.parametrize("columns", [4, 28, 36, 508, 516])
def test_int8_activations_of_part_of_a_group(columns: int) -> None:
    assert LIBRARY is not None
    weight = make_weight("int8", 3 * (8 if LIBRARY.isa == "avx2" else 16), columns)  # whole slabs
    for rows in (1, 2, 7, 13):
        x = torch.randn(rows, columns)
        y = matmul("int8").linear(x, weight)
        assert_near(y, rounded_to_int8(x, 32), weight, offset_codes=True)


def test_no_rows_and_strided_rows() -> None:
    weight = make_weight("nvfp4", 30, 64)
    assert matmul().linear(torch.randn(0, 64), weight).shape == (0, 30)
    x = torch.randn(4, 128)[:, ::2]
    assert_near(matmul().linear(x, weight), x, weight)


def test_what_the_library_cannot_take_is_computed_by_the_reference() -> None:
    x = torch.randn(2, 96)
    odd_blocks = dataclasses.replace(make_weight("fp8", 32, 96), block_size=(16, 48))
    odd_blocks = dataclasses.replace(odd_blocks, scale=torch.rand(2, 2))
    odd_groups = dataclasses.replace(
        make_weight("int4-g32", 32, 96), group_size=96, scale=torch.rand(32, 1)
    )
    strided = DenseWeight(torch.randn(96, 32).T)
    for weight in (odd_blocks, odd_groups, strided, DenseWeight(torch.randn(32, 96).double())):
        torch.testing.assert_close(matmul().linear(x, weight), reference.linear(x, weight))
