"""Time and bytes of every operation of the decoder, by wrapping the kernels' table."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from m2serve.bench.bandwidth import synchronize
from m2serve.checkpoint.weights import Weight
from m2serve.kernels.dispatch import Kernels


class OperationMeter:
    """`seconds` by operation and `weight_bytes` read, since the last `reset`.

    Bytes count each matrix once a call, and of the experts those that were hit. The linear of
    `lm_head` is an operation of its own.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.lm_head: Weight | None = None
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.weight_bytes = 0

    def reset(self) -> None:
        self.seconds.clear()
        self.weight_bytes = 0

    def wrap(self, kernels: Kernels) -> Kernels:
        """The same kernels, each timed; on a GPU every call then waits for the device."""
        timed = {
            field.name: self._timed(field.name, getattr(kernels, field.name))
            for field in dataclasses.fields(kernels)
        }
        return Kernels(**timed)

    def _timed(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            synchronize(self._device)
            start = time.perf_counter()
            result = run(*arguments)
            synchronize(self._device)
            is_head = name == "linear" and arguments[1] is self.lm_head
            self.seconds["lm_head" if is_head else name] += time.perf_counter() - start
            self.weight_bytes += _weight_bytes(name, arguments)
            return result

        return call


def _weight_bytes(name: str, arguments: tuple[Any, ...]) -> int:
    if name == "linear":
        return tensor_bytes(arguments[1])
    if name == "route":
        return int(arguments[1].nbytes)
    if name == "experts":
        _, w13, w2, _, ids = arguments
        num_experts = next(_tensors(w2)).shape[0]
        num_hit = int(torch.unique(ids).numel())
        return (tensor_bytes(w13) + tensor_bytes(w2)) * num_hit // num_experts
    return 0


def tensor_bytes(weight: Weight) -> int:
    """Bytes of a weight as it lies in memory."""
    return sum(tensor.nbytes for tensor in _tensors(weight))


def _tensors(weight: Weight) -> Iterator[torch.Tensor]:
    for field in dataclasses.fields(weight):
        value = getattr(weight, field.name)
        if isinstance(value, torch.Tensor):
            yield value
