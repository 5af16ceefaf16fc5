"""Two four-bit codes a byte, and the E2M1 number format."""

from __future__ import annotations

import torch

# Magnitudes of codes 0..7: bits 2 and 1 are the exponent, bit 0 the mantissa; bit 3 is the sign.
E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
_TIES_THAT_ROUND_UP = (0.75, 1.75, 3.5)


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """uint8 codes 0..15 [..., K] -> uint8 [..., K / 2], the low nibble is the even k."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def pack_words(codes: torch.Tensor) -> torch.Tensor:
    """uint8 codes 0..15 [R, K] -> int32 [R, K / 8], code 8c + i in bits 4i of word c."""
    # Flat, because a dimension of size one may carry a stride that cannot be viewed as int32.
    words = pack_nibbles(codes).flatten().view(torch.int32)
    return words.view(codes.shape[0], codes.shape[1] // 8)


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [..., K / 2] -> uint8 codes 0..15 [..., K]."""
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)


def encode_e2m1(values: torch.Tensor) -> torch.Tensor:
    """float32 -> uint8 codes, nearest value, ties to the even code, saturating at 6."""
    magnitude = values.abs()
    codes = torch.bucketize(magnitude, torch.tensor(_MIDPOINTS))
    for tie in _TIES_THAT_ROUND_UP:
        codes += magnitude == tie
    return codes.to(torch.uint8) | ((values < 0).to(torch.uint8) << 3)
