"""A whole forward pass as one call of the native library."""

from __future__ import annotations

import ctypes
import logging
import time
from dataclasses import dataclass

import torch

from m2serve.kernels.cpu_attention import address
from m2serve.kernels.cpu_library import CpuLibrary
from m2serve.kernels.cpu_linear import INT8_ACTIVATION
from m2serve.kernels.cpu_structs import CpuBatch, CpuKVCache, CpuModel
from m2serve.spec.units import GIB

logger = logging.getLogger(__name__)

# Operation of cpu/step.h, in the words of kernels.dispatch and of the benchmark.
OPERATIONS = (
    "linear",
    "rms_norm",
    "write_kv",
    "paged_attention",
    "route",
    "experts",
    "lm_head",
)


@dataclass(frozen=True)
class StepCosts:
    """`experts_hit` counts the distinct experts of every layer and forward pass."""

    seconds: dict[str, float]
    num_forwards: int
    experts_hit: int


class CpuStep:
    """Runs one model; owns the buffers of a step, `handle`. Not for several threads at once.

    With int8 activations the rows of the model's matrices are first put in another order, in place.
    On a machine of several NUMA nodes the matrices are then moved to where they are read.
    `native_s` is the time spent in the library so far.
    """

    def __init__(self, library: CpuLibrary, model: CpuModel) -> None:
        self.library = library
        self.model = model
        if model.activation == INT8_ACTIVATION:
            library.follow_torch_threads()
            if library.functions.m2_interleave_weights(ctypes.byref(model)):
                raise MemoryError("no memory to put the rows of the weights in order")
        if len(library.nodes) > 1:
            _place_weights(library, model)
        functions = library.functions
        functions.m2_step_new.restype = ctypes.c_void_p
        functions.m2_layers_computed.restype = ctypes.c_int64
        handle = functions.m2_step_new()
        if not handle:
            raise MemoryError("no memory for the native step")
        self.handle = ctypes.c_void_p(handle)
        self.native_s = 0.0

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self.library.functions.m2_step_free(self.handle)

    def layers_computed(self) -> int:
        """So far, of all forward passes; for any thread, while a step runs, too."""
        count: int = self.library.functions.m2_layers_computed(self.handle)
        return count

    def forward(self, batch: CpuBatch, cache: CpuKVCache) -> torch.Tensor:
        """Normed hidden states float32 [R, H] of the batch's logits rows."""
        hidden = torch.empty(batch.num_logits_rows, self.model.hidden_size)
        self._run("m2_forward", ctypes.byref(cache), ctypes.byref(batch), _pointer(hidden))
        return hidden

    def logits(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        """float32 [R, V] of float32 hidden states."""
        num_rows = hidden_RH.shape[0]
        logits = torch.empty(num_rows, self.model.lm_head.rows)
        rows = ctypes.c_int64(num_rows)
        self._run("m2_logits", _pointer(hidden_RH), rows, _pointer(logits))
        return logits

    def take_costs(self) -> StepCosts:
        """Of all forward passes since the last call."""
        seconds = (ctypes.c_double * len(OPERATIONS))()
        forwards, hits = ctypes.c_int64(), ctypes.c_int64()
        pointers = ctypes.byref(forwards), ctypes.byref(hits)
        self.library.functions.m2_take_costs(self.handle, seconds, *pointers)
        return StepCosts(dict(zip(OPERATIONS, seconds, strict=True)), forwards.value, hits.value)

    def _run(self, name: str, *arguments: object) -> None:
        self.library.follow_torch_threads()
        function = getattr(self.library.functions, name)
        start = time.perf_counter()
        failed = function(self.handle, ctypes.byref(self.model), *arguments)
        self.native_s += time.perf_counter() - start
        if failed:
            raise MemoryError(f"{name} found no memory for its buffers")


def _place_weights(library: CpuLibrary, model: CpuModel) -> None:
    start = time.monotonic()
    library.follow_torch_threads()
    place = library.functions.m2_place_weights
    place.restype = ctypes.c_int64
    num_bytes = place(ctypes.byref(model))
    if num_bytes:
        logger.info(
            "%d threads on %d NUMA nodes, each with its share of %.2f GiB of weights, moved in "
            "%.1f s",
            torch.get_num_threads(),
            len(library.nodes),
            num_bytes / GIB,
            time.monotonic() - start,
        )
    else:
        logger.info(
            "%d NUMA nodes, but the weights stay where they were loaded: too few threads (%d), "
            "binding them was denied, or the weights are small",
            len(library.nodes),
            torch.get_num_threads(),
        )


def _pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(address(tensor))
