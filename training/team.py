"""One step, computed by several processes of one thread each.

On a CPU two such processes are faster than one of two threads: nothing waits between the many small
operations of a step. Each has documents of its own; weights, gradients and the optimizer's state
lie in shared memory, and each process moves the weights it owns. With a given number of processes
every sum has one order, so a run stays repeatable to the bit. On a GPU the team is one process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import multiprocessing

from training.batches import Batch, draw_batch, start_worker
from training.memory import keep_freed_memory
from training.modeling import MiniatureM2
from training.optimizer import Optimizer, balance_experts, load_summary, shares_of_work

MAX_GRADIENT_NORM = 1.0
# A process that has waited this long for another takes it for dead.
PATIENCE_S = 900.0


@dataclass(frozen=True)
class Order:
    """A step to compute: the numbers of its documents, how many tokens all processes together draw,
    and the learning rate as a share of its peak."""

    seed: int
    stage: int
    step: int
    num_tokens: int
    factor: float

    def drawing(self, rank: int, num_processes: int) -> tuple[int, int, int, int]:
        """Arguments of `draw_batch` for one process."""
        number = self.step * num_processes + rank
        return self.seed, self.stage, number, self.num_tokens // num_processes


@dataclass(frozen=True)
class Shared:
    """What all P processes see.

    `order` float64 [5]. The others have a row a process: `gradients` [P, ...] by parameter, `loads`
    float32 [P, L, E], `sums` float64 [P, 4]: tokens, predicted tokens, their loss, and the square
    of the gradients' norm over what the process owns.
    """

    model: MiniatureM2
    optimizer: Optimizer
    gradients: Mapping[str, torch.Tensor]
    order: torch.Tensor
    loads: torch.Tensor
    sums: torch.Tensor

    @classmethod
    def of(cls, model: MiniatureM2, optimizer: Optimizer, num_processes: int) -> Shared:
        """Moves weights and state to shared memory where other processes are to see them."""
        device = model.norm.device
        gradients = {
            name: torch.zeros(num_processes, *p.shape, device=device)
            for name, p in model.named_parameters()
        }
        shape = model.shape
        loads = torch.zeros(num_processes, shape.num_hidden_layers, shape.num_local_experts)
        shared = cls(
            model,
            optimizer,
            gradients,
            order=torch.zeros(5, dtype=torch.float64),
            loads=loads.to(device),
            sums=torch.zeros(num_processes, 4, dtype=torch.float64),
        )
        if num_processes > 1:
            model.share_memory()
            tensors = (*optimizer.state.values(), *gradients.values())
            for tensor in (*tensors, shared.order, shared.loads, shared.sums):
                tensor.share_memory_()
        return shared

    @property
    def num_processes(self) -> int:
        return len(self.sums)


class Member:
    """What each of the processes does."""

    def __init__(self, rank: int, shared: Shared, barrier: Barrier | None) -> None:
        self._rank = rank
        self._shared = shared
        self._barrier = barrier
        self._parameters = dict(shared.model.named_parameters())
        self._own = shares_of_work(self._parameters, shared.num_processes)[rank]

    def wait(self) -> None:
        """For all the others; raises BrokenBarrierError when one is gone."""
        if self._barrier is not None:
            self._barrier.wait(PATIENCE_S)

    def compute(self, batch: Batch) -> None:
        """This process's row of gradients, loads and sums."""
        shared, rank = self._shared, self._rank
        for name, p in self._parameters.items():
            p.grad = shared.gradients[name][rank].zero_()
        device = shared.model.norm.device
        batch = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            result = shared.model(batch.token_ids, batch.blocks, batch.rows, batch.is_real)
        loss = F.cross_entropy(result.logits, batch.targets, reduction="sum")
        loss.backward()
        shared.loads[rank] = result.loads
        sums = (int(batch.is_real.sum()), len(batch.targets), float(loss.detach()), 0.0)
        shared.sums[rank] = torch.tensor(sums, dtype=torch.float64)

    def update(self, factor: float) -> None:
        """Move what this process owns by the mean gradient of all of them."""
        shared = self._shared
        predicted = float(shared.sums[:, 1].sum())
        mean = {name: shared.gradients[name].sum(0).div_(predicted) for name in self._own}
        shared.sums[self._rank, 3] = sum(float(g.square().sum()) for g in mean.values())
        self.wait()
        clip = min(1.0, MAX_GRADIENT_NORM / (gradient_norm(shared) + 1e-6))
        for name, p in self._parameters.items():
            p.grad = mean[name].mul_(clip) if name in mean else None
        shared.optimizer.step(factor)
        if self._rank == 0:
            balance_experts(shared.model, shared.loads.sum(0), factor)


class Team:
    """The first process's side of it; a context, at whose end the others are ended."""

    def __init__(
        self, model: MiniatureM2, optimizer: Optimizer, tokenizer_folder: Path, num_processes: int
    ) -> None:
        self._shared = Shared.of(model, optimizer, num_processes)
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(num_processes) if num_processes > 1 else None
        self._member = Member(0, self._shared, barrier)
        self._others = [
            context.Process(
                target=_serve, args=(rank, self._shared, barrier, tokenizer_folder), daemon=True
            )
            for rank in range(1, num_processes)
        ]

    @property
    def num_processes(self) -> int:
        return self._shared.num_processes

    def __enter__(self) -> Team:
        for process in self._others:
            process.start()
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._others:
            process.kill()
            process.join()

    def step(self, order: Order, draw: Callable[[], Batch]) -> dict[str, float]:
        """Run the step; `draw` brings the first process's documents. Returns what the log says."""
        shared, member = self._shared, self._member
        numbers = (order.seed, order.stage, order.step, order.num_tokens, order.factor)
        shared.order.copy_(torch.tensor(numbers, dtype=torch.float64))
        member.wait()
        member.compute(draw())
        member.wait()
        member.update(order.factor)
        member.wait()
        tokens, predicted, loss, _ = shared.sums.sum(0).tolist()
        return {
            "tokens": int(tokens),
            "predicted": int(predicted),
            "loss": round(loss / predicted, 4),
            "gradient_norm": round(gradient_norm(shared), 3),
            "rate": round(order.factor, 4),
            **load_summary(shared.loads.sum(0)),
        }


def gradient_norm(shared: Shared) -> float:
    """Of the whole mean gradient, before clipping."""
    return math.sqrt(float(shared.sums[:, 3].sum()))


def _serve(rank: int, shared: Shared, barrier: Barrier, tokenizer_folder: Path) -> None:
    """Step after step, until the first process ends this one."""
    torch.set_num_threads(1)
    keep_freed_memory()
    start_worker(tokenizer_folder)
    member = Member(rank, shared, barrier)
    while True:
        member.wait()
        *numbers, factor = shared.order.tolist()
        order = Order(*map(int, numbers), factor)
        member.compute(draw_batch(*order.drawing(rank, shared.num_processes)))
        member.wait()
        member.update(order.factor)
        member.wait()
