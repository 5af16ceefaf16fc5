"""`linear` and `experts` of kernels.reference in C++, on the weights as they are stored."""

from __future__ import annotations

import copy
import ctypes
from typing import Literal

import torch

from m2serve.checkpoint.weights import Weight
from m2serve.kernels import reference
from m2serve.kernels.cpu_library import CpuLibrary
from m2serve.kernels.cpu_structs import CpuWeight
from m2serve.kernels.cpu_weights import cpu_weight

# What the activations become before they meet a weight. "float" leaves them as they are. "bf16"
# rounds them to bfloat16 where a product has many rows and the machine multiplies that (from 5 on,
# with AMX from 2 on where the weights are BF16 in whole tiles); "auto" is that for a model in
# bfloat16, else float. "int8" rounds them to int8 with a scale for every 16 or 32 values, for
# formats with integer codes and a number of rows that is a multiple of 8 (AVX2) or 16 (AVX-512);
# other weights meet them as with "bf16". With AMX a product of 16 rows or more (of experts: 16 for
# each that is hit, on average) is bfloat16 instead of int8, too: what a prompt gives depends by
# rounding on how it was cut, and a batch on its size.
CpuActivation = Literal["auto", "float", "bf16", "int8"]

_FLOAT, BF16_ACTIVATION, INT8_ACTIVATION = range(3)  # m2_activation of cpu/types.h
ACTIVATION_NAMES = ("float", "bf16", "int8")


def activation_code(activation: CpuActivation, dtype: torch.dtype) -> int:
    """m2_activation of cpu/types.h, for a model of `dtype`."""
    if activation == "auto":
        return BF16_ACTIVATION if dtype == torch.bfloat16 else _FLOAT
    return ACTIVATION_NAMES.index(activation)


class CpuMatmul:
    """Signatures as in kernels.reference, which computes what the library cannot take.

    With int8 activations every call interleaves a copy of the weight first: this is for checks. A
    model's step does it once, in place.
    """

    def __init__(self, library: CpuLibrary, activation: CpuActivation) -> None:
        self._library = library
        self._activation = activation

    def linear(self, x_TK: torch.Tensor, weight: Weight) -> torch.Tensor:
        """x Wᵀ: [T, K] -> [T, N]; float32 sums, the result in x's dtype."""
        native, _kept = self.describe(weight)
        if native is None or native.columns != x_TK.shape[-1]:
            return reference.linear(x_TK, weight)
        x = x_TK.contiguous().float()
        y = torch.empty(x.shape[0], native.matrices * native.rows)
        self._library.follow_torch_threads()
        failed = self._library.functions.m2_linear(
            ctypes.byref(native),
            _pointer(x),
            _size(x),
            _pointer(y),
            activation_code(self._activation, x_TK.dtype),
        )
        _check(failed)
        return y.to(x_TK.dtype)

    def experts(
        self,
        x_TH: torch.Tensor,
        w13: Weight,
        w2: Weight,
        weights_Tk: torch.Tensor,
        ids_Tk: torch.Tensor,
    ) -> torch.Tensor:
        """Sum over the chosen experts of weight * W2(silu(W1 x) * W3 x), [T, H], in x's dtype."""
        native13, _kept13 = self.describe(w13)
        native2, _kept2 = self.describe(w2)
        if native13 is None or native2 is None or not _fit(native13, native2, x_TH.shape[-1]):
            return reference.experts(x_TH, w13, w2, weights_Tk, ids_Tk)
        x = x_TH.contiguous().float()
        y = torch.empty_like(x)
        weights, ids = weights_Tk.contiguous().float(), ids_Tk.contiguous().long()
        self._library.follow_torch_threads()
        failed = self._library.functions.m2_experts(
            ctypes.byref(native13),
            ctypes.byref(native2),
            _pointer(x),
            _pointer(weights),
            _pointer(ids),
            _size(ids),
            ctypes.c_int64(ids.shape[1]),
            _pointer(y),
            activation_code(self._activation, x_TH.dtype),
        )
        _check(failed)
        return y.to(x_TH.dtype)

    def describe(self, weight: Weight) -> tuple[CpuWeight | None, Weight]:
        """The weight as the library takes it, and the one that owns what it points to."""
        native = cpu_weight(weight)
        if native is None or self._activation != "int8":
            return native, weight
        copied = copy.deepcopy(weight)
        native = cpu_weight(copied)
        assert native is not None
        _check(self._library.functions.m2_interleave(ctypes.byref(native)))
        return native, copied


def _fit(w13: CpuWeight, w2: CpuWeight, hidden_size: int) -> bool:
    """Whether gate and up of every expert give what its down takes."""
    return (
        w13.columns == hidden_size == w2.rows
        and w13.rows == w2.columns
        and w13.matrices == 2 * w2.matrices
    )


def _check(failed: int) -> None:
    if failed == 1:
        raise MemoryError("no memory for the buffers of a matrix product")
    assert failed == 0, "an expert id is out of range"


def _pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _size(tensor: torch.Tensor) -> ctypes.c_int64:
    return ctypes.c_int64(tensor.shape[0])
