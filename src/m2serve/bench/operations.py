"""Time and bytes of every operation of the decoder: the native one counts them itself, around the
others the table of kernels is wrapped."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from m2serve.bench.bandwidth import synchronize
from m2serve.checkpoint.weights import Weight
from m2serve.kernels.dispatch import Kernels
from m2serve.model.native import NativeMiniMaxM2


@dataclass(frozen=True)
class Costs:
    """Since the last reset: seconds by operation, and bytes of weights read."""

    seconds: dict[str, float]
    weight_bytes: int


class StepMeter:
    """Of a native model."""

    def __init__(self, model: NativeMiniMaxM2) -> None:
        self._model = model
        self._every_forward = tensor_bytes(model.weights.lm_head)
        each: list[int] = []
        for layer in model.weights.layers:
            attention, moe = layer.attention, layer.moe
            linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
            self._every_forward += sum(map(tensor_bytes, linears)) + moe.gate.nbytes
            both = tensor_bytes(moe.w13) + tensor_bytes(moe.w2)
            each.append(both // len(moe.correction_bias))
        # Where layers differ in format: every layer has as many hits as the others, or nearly.
        self._every_hit = sum(each) / len(each)

    def reset(self) -> None:
        self._model.step.take_costs()

    def take(self) -> Costs:
        found = self._model.step.take_costs()
        forwards = found.num_forwards * self._every_forward
        return Costs(found.seconds, forwards + round(found.experts_hit * self._every_hit))


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

    def take(self) -> Costs:
        costs = Costs(dict(self.seconds), self.weight_bytes)
        self.reset()
        return costs

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
