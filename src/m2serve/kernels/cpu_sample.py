"""Choosing tokens from logits in main memory, as one call of the native library."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence

import numpy as np
import torch

from m2serve.kernels.cpu_library import CpuLibrary, load_cpu_library

# m2_choice of cpu/sample.h: temperature (above 0), min_p, top_k (1, greedy, to the vocabulary),
# top_p, and a random number in [0, 1).
Choice = tuple[float, float, float, float, float]


class CpuSampler:
    """One thread at a time. `native_s` is the time spent in the library so far."""

    def __init__(self, library: CpuLibrary) -> None:
        self._library = library
        self.native_s = 0.0

    def choose(self, logits: torch.Tensor, choices: Sequence[Choice]) -> list[int]:
        """The token of every row of `logits`, float32 [R, V], by its choice.

        -1 for a row whose largest logit is no finite number. Tokens stand in the order of their
        logits, of equals the lower id first; top_k keeps the first of them, min_p and then top_p
        drop others from the end.
        """
        settings = np.array(choices, dtype=np.float64)
        ids = np.empty(len(choices), dtype=np.int64)
        num_rows, vocab = logits.shape
        assert logits.dtype == torch.float32
        assert logits.stride(1) == 1
        self._library.follow_torch_threads()
        start = time.perf_counter()
        failed = self._library.functions.m2_choose_tokens(
            ctypes.c_void_p(logits.data_ptr()),
            ctypes.c_int64(num_rows),
            ctypes.c_int64(vocab),
            ctypes.c_int64(logits.stride(0)),
            ctypes.c_void_p(settings.ctypes.data),
            ctypes.c_void_p(ids.ctypes.data),
        )
        self.native_s += time.perf_counter() - start
        if failed:
            raise MemoryError("m2_choose_tokens found no memory for its buffers")
        return ids.tolist()


def make_cpu_sampler() -> CpuSampler | None:
    """None without the library."""
    library = load_cpu_library()
    return None if library is None else CpuSampler(library)
