"""The formats' definitions on values worked out by hand."""

from __future__ import annotations

import torch

from m2serve.checkpoint.weights import (
    Fp8BlockWeight,
    Int4Weight,
    Int8Weight,
    Mxfp4Weight,
    Nvfp4Weight,
)
from m2serve.kernels.dequantize import dequantize, e8m0, row_range, select, unpack_nibbles
from m2serve.kernels.reference import linear

E4M3 = torch.float8_e4m3fn


def bytes_of(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def test_e4m3_and_e8m0_tables() -> None:
    e4m3 = bytes_of(0x38, 0x3C, 0x08, 0x01, 0x7E).view(E4M3).float().tolist()
    assert e4m3 == [1.0, 1.5, 2**-6, 2**-9, 448.0]
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
    assert torch.equal(unpack_nibbles(bytes_of(0x21)), bytes_of(1, 2))


def test_linear_expands_large_matrices_in_pieces() -> None:
    weight = Int8Weight(
        torch.randint(-128, 128, (5000, 8), dtype=torch.int8), torch.rand(5000) + 0.1
    )
    x = torch.randn(3, 8)
    assert torch.allclose(linear(x, weight), x @ dequantize(weight).T, rtol=1e-4, atol=1e-3)
