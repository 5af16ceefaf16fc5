"""What stored bytes mean, written a second time in numpy, sharing nothing with the package.

`from_file` reads the tensors of one linear as a file holds them, `from_weight` the in-memory
classes; both return float32 [..., N, K].
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from m2serve.checkpoint.weights import (
    DenseWeight,
    Fp8BlockWeight,
    Int4Weight,
    Int8Weight,
    Mxfp4Weight,
    Nvfp4Weight,
    Weight,
)

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
AWQ_NIBBLE_OF_COLUMN = (0, 4, 1, 5, 2, 6, 3, 7)


def _e4m3_value(byte: int) -> float:
    sign = -1.0 if byte & 0x80 else 1.0
    exponent, mantissa = (byte >> 3) & 0xF, byte & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (8 + mantissa) * 2.0 ** (exponent - 10)


E4M3 = np.array([_e4m3_value(byte) for byte in range(256)], np.float32)
with np.errstate(over="ignore"):
    E8M0 = np.array([*(2.0 ** (byte - 127) for byte in range(255)), np.nan], np.float32)


def from_file(kind: str, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Float32 [N, K] of one linear; `kind` is a storage format's name."""
    match kind:
        case "dense":
            return _floats(tensors["weight"])
        case "fp8-block":
            scale = tensors.get("weight_scale_inv", tensors.get("weight_scale"))
            return _blocks(E4M3[_bytes(tensors["weight"])], _floats(scale), (128, 128))
        case "nvfp4-modelopt":
            factor = _floats(tensors["weight_scale_2"]).reshape(())
            return _nvfp4(tensors["weight"], tensors["weight_scale"], factor)
        case "nvfp4-ct":
            divisor = _floats(tensors["weight_global_scale"]).reshape(())
            return _nvfp4(
                tensors["weight_packed"], tensors["weight_scale"], np.float32(1) / divisor
            )
        case "mxfp4":
            codes = tensors.get("weight_packed", tensors.get("weight"))
            return _groups(E2M1[_nibbles(codes)], E8M0[_bytes(tensors["weight_scale"])])
        case "int4-ct":
            return _int4_packed(tensors)
        case "int4-awq":
            codes = _awq_columns(tensors["qweight"])
            zeros = _awq_columns(tensors["qzeros"])
            group = codes.shape[0] // zeros.shape[0]
            shifted = codes - zeros.repeat(group, 0)
            return (shifted * _floats(tensors["scales"]).repeat(group, 0)).T.astype(np.float32)
        case "int8-ct" | "int8-ascend":
            scale = _floats(tensors["weight_scale"]).reshape(-1, 1)
            return tensors["weight"].numpy().astype(np.float32) * scale
    raise ValueError(kind)


def from_weight(weight: Weight) -> np.ndarray:
    """Float32 [*B, N, K] of an in-memory weight."""
    if isinstance(weight, DenseWeight):
        return _floats(weight.weight)
    if isinstance(weight, Fp8BlockWeight):
        values = E4M3[_bytes(weight.weight)]
        return _blocks(values, _floats(weight.scale), weight.block_size)
    if isinstance(weight, Nvfp4Weight):
        factor = _floats(weight.global_scale)[..., None, None]
        return _nvfp4(weight.packed, weight.scale, factor)
    if isinstance(weight, Mxfp4Weight):
        return _groups(E2M1[_nibbles(weight.packed)], E8M0[_bytes(weight.scale)])
    if isinstance(weight, Int4Weight):
        codes = _nibbles(weight.packed).astype(np.float32)
        zeros = np.float32(8) if weight.zero_point is None else weight.zero_point.numpy()
        scale = _floats(weight.scale)
        zeros = np.broadcast_to(zeros, scale.shape).repeat(weight.group_size, -1)
        return (codes - zeros) * scale.repeat(weight.group_size, -1)
    if isinstance(weight, Int8Weight):
        return weight.weight.numpy().astype(np.float32) * _floats(weight.scale)[..., None]
    raise TypeError(type(weight))


def _floats(tensor: torch.Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.to(torch.float32).numpy()


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).numpy()


def _nibbles(packed: torch.Tensor | None) -> np.ndarray:
    """Codes along K: byte i holds k = 2i in its low half and 2i + 1 in its high half."""
    assert packed is not None
    stored = packed.numpy()
    codes = np.empty((*stored.shape[:-1], stored.shape[-1] * 2), np.uint8)
    codes[..., 0::2] = stored % 16
    codes[..., 1::2] = stored // 16
    return codes


def _blocks(values: np.ndarray, scale: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    rows, columns = values.shape[-2:]
    spread = scale.repeat(block[0], -2)[..., :rows, :].repeat(block[1], -1)[..., :columns]
    return values * spread


def _groups(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return values * scale.repeat(values.shape[-1] // scale.shape[-1], -1)


def _nvfp4(codes: torch.Tensor, scale: torch.Tensor, factor: np.ndarray) -> np.ndarray:
    return _groups(E2M1[_nibbles(codes)], E4M3[_bytes(scale)]) * factor


def _int4_packed(tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    words = tensors["weight_packed"].numpy().astype(np.int64) & 0xFFFFFFFF
    codes = np.stack([(words >> (4 * j)) & 15 for j in range(8)], -1).reshape(len(words), -1)
    scale = _floats(tensors["weight_scale"])
    zeros = np.full(scale.shape, 8)
    if "weight_zero_point" in tensors:
        words = tensors["weight_zero_point"].numpy().astype(np.int64) & 0xFFFFFFFF
        for row in range(len(zeros)):
            zeros[row] = (words[row // 8] >> (4 * (row % 8))) & 15
    group = codes.shape[1] // scale.shape[1]
    return ((codes - zeros.repeat(group, 1)) * scale.repeat(group, 1)).astype(np.float32)


def _awq_columns(tensor: torch.Tensor) -> np.ndarray:
    words = tensor.numpy().astype(np.int64) & 0xFFFFFFFF
    columns = [(words >> (4 * nibble)) & 15 for nibble in AWQ_NIBBLE_OF_COLUMN]
    return np.stack(columns, -1).reshape(len(words), -1)
