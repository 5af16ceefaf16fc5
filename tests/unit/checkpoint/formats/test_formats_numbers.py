"""The number formats, bit by bit, and what two independent readings of them agree on."""

import numpy as np
import pytest
import torch
from tiny_dequantize import E2M1, E4M3, E8M0

from m2serve.checkpoint.formats.nibbles import (
    encode_e2m1,
    pack_nibbles,
    pack_words,
    unpack_nibbles,
)
from m2serve.checkpoint.formats.scales import check_e8m0, check_finite, check_positive
from m2serve.errors import CheckpointError


@pytest.mark.parametrize(
    ("byte", "value"),
    [(0x38, 1.0), (0x3C, 1.5), (0x08, 2.0**-6), (0x01, 2.0**-9), (0x7E, 448.0), (0xB8, -1.0)],
)
def test_e4m3(byte: int, value: float) -> None:
    assert E4M3[byte] == value
    assert torch.tensor([byte], dtype=torch.uint8).view(torch.float8_e4m3fn).float() == value


def test_every_e4m3_byte_is_what_torch_reads() -> None:
    stored = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(stored, E4M3)
    assert sorted(np.flatnonzero(np.isnan(E4M3))) == [0x7F, 0xFF]


def test_e8m0() -> None:
    assert (E8M0[127], E8M0[128], E8M0[0]) == (1.0, 2.0, 2.0**-127)
    assert np.isnan(E8M0[255])


def test_e2m1_round_trips_every_code() -> None:
    codes = encode_e2m1(torch.from_numpy(E2M1))
    assert codes.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11, 12, 13, 14, 15]


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(0.25, 0), (0.75, 1), (1.25, 1), (1.75, 2), (2.5, 2), (3.5, 4), (5.0, 4), (99.0, 6)],
)
def test_e2m1_ties_go_to_the_even_code(value: float, rounded: float) -> None:
    codes = encode_e2m1(torch.tensor([value, -value]))
    assert E2M1[codes[0]] == rounded
    assert E2M1[codes[1]] == -rounded


def test_e2m1_takes_the_nearest_value() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 3
    error = np.abs(E2M1[encode_e2m1(values)] - values.numpy())
    best = np.abs(E2M1[None, :] - values.numpy()[:, None]).min(1)
    np.testing.assert_array_equal(error, best)


def test_nibbles_pack_low_half_first() -> None:
    codes = torch.tensor([[1, 2, 0xF, 0]], dtype=torch.uint8)
    assert pack_nibbles(codes).tolist() == [[0x21, 0x0F]]
    assert torch.equal(unpack_nibbles(pack_nibbles(codes)), codes)


def test_a_word_holds_its_codes_lowest_first() -> None:
    assert pack_words(torch.arange(8, dtype=torch.uint8)[None]).item() == 0x76543210


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_poisoned_scale_is_named_with_its_place(value: float) -> None:
    scale = torch.ones(2, 3)
    scale[1, 2] = value
    with pytest.raises(CheckpointError, match=r"layer\.weight_scale holds NaN or Inf .*\[1, 2\]"):
        check_finite("layer.weight_scale", scale)


@pytest.mark.parametrize("byte", [0x7F, 0xFF])
def test_e4m3_nan_is_refused(byte: int) -> None:
    scale = torch.tensor([[0x38, byte]], dtype=torch.uint8).view(torch.float8_e4m3fn)
    with pytest.raises(CheckpointError, match=r"x\.weight_scale"):
        check_finite("x.weight_scale", scale)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_global_scale_must_be_positive(value: float) -> None:
    with pytest.raises(CheckpointError, match=r"x\.weight_scale_2"):
        check_positive("x.weight_scale_2", torch.tensor(value))


def test_e8m0_nan_is_refused() -> None:
    with pytest.raises(CheckpointError, match="255"):
        check_e8m0("x.weight_scale", torch.tensor([[0, 255]], dtype=torch.uint8))
    check_e8m0("x.weight_scale", torch.tensor([[0, 254]], dtype=torch.uint8))
