"""The formats' definitions on values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_dequantize import from_weight

from m2serve.checkpoint.weights import (
    DenseWeight,
    Fp8BlockWeight,
    Int4Weight,
    Int8Weight,
    Mxfp4Weight,
    Nvfp4Weight,
    Weight,
)
from m2serve.kernels import reference
from m2serve.kernels.dequantize import dequantize, e4m3, e8m0, pieces, row_range, select
from m2serve.kernels.reference import linear

E4M3 = torch.float8_e4m3fn


def bytes_of(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def test_e4m3_and_e8m0_tables() -> None:
    stored = bytes_of(0x38, 0x3C, 0x08, 0x01, 0x7E, 0xBC).view(E4M3)
    assert e4m3(stored).tolist() == [1.0, 1.5, 2**-6, 2**-9, 448.0, -1.5]
    assert e4m3(bytes_of(0x7F, 0xFF).view(E4M3)).isnan().all()
    assert e8m0(bytes_of(255)).isnan().all()
    assert e8m0(bytes_of(0, 1, 127, 128, 254)).tolist() == [2.0**-127, 2.0**-126, 1, 2, 2.0**127]


def test_nvfp4_bytes() -> None:
    packed = torch.cat([bytes_of(0xB2, 0x97), torch.zeros(6, dtype=torch.uint8)])[None]
    scale = torch.tensor([[2.0]]).to(E4M3)
    weight = Nvfp4Weight(packed, scale, torch.tensor(0.5))
    assert dequantize(weight)[0, :4].tolist() == [1.0, -1.5, 6.0, -0.5]


def test_mxfp4_scale_is_a_power_of_two() -> None:
    packed = torch.full((1, 16), 0x2A, dtype=torch.uint8)  # even k: -1.0, odd k: 1.0
    values = dequantize(Mxfp4Weight(packed, bytes_of(130)[None]))
    assert values[0, :2].tolist() == [-8.0, 8.0]


def test_int4_symmetric_and_with_zero_points() -> None:
    packed = bytes_of(0x10, 0x32, 0x54, 0x76)[None]
    scale = torch.tensor([[0.5, 2.0]], dtype=torch.bfloat16)
    symmetric = dequantize(Int4Weight(packed, scale, None, 4))
    assert symmetric.tolist() == [[-4.0, -3.5, -3.0, -2.5, -8.0, -6.0, -4.0, -2.0]]
    shifted = dequantize(Int4Weight(packed, scale, bytes_of(0, 15)[None], 4))
    assert shifted.tolist() == [[0.0, 0.5, 1.0, 1.5, -22.0, -20.0, -18.0, -16.0]]


def test_int8_scale_belongs_to_the_row() -> None:
    weight = torch.tensor([[1, -128], [127, 0]], dtype=torch.int8)
    values = dequantize(Int8Weight(weight, torch.tensor([2.0, 0.5])))
    assert values.tolist() == [[2.0, -256.0], [63.5, 0.0]]


def test_fp8_scale_is_multiplied_block_by_block() -> None:
    """Also where the last blocks are cut off."""
    weight = Fp8BlockWeight(
        torch.ones(5, 7).to(E4M3), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), (2, 4)
    )
    values = dequantize(weight)
    assert values[:, 0].tolist() == [1, 1, 3, 3, 5]
    assert values[0].tolist() == [1, 1, 1, 1, 2, 2, 2]
    assert torch.equal(dequantize(row_range(weight, 2, 5)), values[2:5])


def test_select_and_row_range_are_slices_of_the_whole() -> None:
    packed = torch.randint(0, 256, (3, 2, 4, 16), dtype=torch.uint8)
    scale = torch.rand(3, 2, 4, 2).to(E4M3)
    stack = Nvfp4Weight(packed, scale, torch.rand(3, 2), torch.rand(3, 2))
    one = select(select(stack, 2), 1)
    assert torch.equal(dequantize(one), dequantize(stack)[2, 1])
    assert torch.equal(dequantize(row_range(one, 1, 3)), dequantize(one)[1:3])


def random_bytes(*size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


def random_e4m3(*size: int) -> torch.Tensor:
    codes = random_bytes(*size)
    return codes.where(codes % 128 != 127, 0).view(E4M3)  # without NaN


def every_kind() -> dict[str, Weight]:
    """Random bits as all experts of a layer would hold them, 3 experts of [2, 40, 64]."""
    scale = torch.rand(3, 2, 40, 4)
    return {
        "dense": DenseWeight(torch.randn(3, 2, 40, 64).bfloat16()),
        "fp8": Fp8BlockWeight(random_e4m3(3, 2, 40, 64), torch.rand(3, 2, 3, 2), (16, 48)),
        "nvfp4": Nvfp4Weight(
            random_bytes(3, 2, 40, 32), random_e4m3(3, 2, 40, 4), torch.rand(3, 2), torch.rand(3, 2)
        ),
        "mxfp4": Mxfp4Weight(random_bytes(3, 2, 40, 32), random_bytes(3, 2, 40, 2) // 2),
        "int4": Int4Weight(random_bytes(3, 2, 40, 32), scale.bfloat16(), None, 16),
        "int4 with zero points": Int4Weight(
            random_bytes(3, 2, 40, 32), scale, random_bytes(3, 2, 40, 4) % 16, 16
        ),
        "int8": Int8Weight(random_bytes(3, 2, 40, 64).view(torch.int8), scale[..., 0].half()),
    }


@pytest.mark.parametrize("kind", every_kind())
def test_every_format_means_what_numpy_says(kind: str) -> None:
    weight = every_kind()[kind]
    before = [part.clone() for part in vars(weight).values() if isinstance(part, torch.Tensor)]
    values = dequantize(weight)
    np.testing.assert_array_equal(values.numpy(), from_weight(weight))
    after = [part for part in vars(weight).values() if isinstance(part, torch.Tensor)]
    for was, part in zip(before, after, strict=True):
        assert torch.equal(was.view(torch.uint8), part.view(torch.uint8))


@pytest.mark.parametrize("kind", every_kind())
@pytest.mark.parametrize("max_rows", [1, 17, 32, 1000])
def test_pieces_are_the_whole(kind: str, max_rows: int) -> None:
    weight = every_kind()[kind]
    values = [dequantize(piece) for piece in pieces(weight, max_rows)]
    assert torch.equal(torch.cat(values), dequantize(weight).flatten(0, -2))
    most = max(max_rows, 16) if kind == "fp8" else max_rows
    assert max(len(piece) for piece in values) <= most


@pytest.mark.parametrize("kind", every_kind())
def test_linear_expands_a_matrix_in_pieces(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expanded: list[int] = []

    def counting(weight: Weight) -> torch.Tensor:
        values = dequantize(weight)
        expanded.append(values.shape[-2])
        return values

    monkeypatch.setattr(reference, "_ROWS_AT_ONCE", 16)
    monkeypatch.setattr(reference, "dequantize", counting)
    weight = every_kind()[kind]
    x = torch.randn(3, 64)
    exact = x.double() @ dequantize(weight).double().flatten(0, -2).T
    error = (linear(x, weight) - exact).abs().max() / exact.abs().max()
    assert error < 1e-6
    assert expanded == ([] if kind == "dense" else [16, 16, 8] * 6)
