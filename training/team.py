"""One step, computed by several processes.

On two cores two processes of one thread are faster than one of two: nothing waits between the many
small operations of a step. Each has documents of its own; weights, gradients and the state of the
optimizer lie in shared memory, and each process moves the weights it owns. With a given number of
processes every sum has one order, so a run stays repeatable to the bit; with another it differs by
rounding. On a GPU the team is one process.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import multiprocessing

from training.batches import Batch, draw_share, in_few_sizes, start_worker
from training.memory import keep_freed_memory
from training.modeling import MiniatureM2
from training.optimizer import Optimizer, balance_experts, load_summary, update_cost
from training.sharing import dealt_out

MAX_GRADIENT_NORM = 1.0
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Order:
    """Which documents a step has: their numbers, and how many tokens they are together."""

    seed: int
    stage: int
    step: int
    num_tokens: int

    def draw(self, rank: int, num_processes: int) -> Batch | None:
        """The share of one process."""
        numbers = (self.seed, self.stage, self.step, self.num_tokens)
        return draw_share(*numbers, rank, num_processes)


@dataclass(frozen=True)
class Shared:
    """What all P processes see.

    `order` float64 [5]: its four numbers, and the learning rate as a share of its peak. The others
    have a row a process: `gradients` [P, ...] by parameter, `loads` float32 [P, L, E], `sums`
    float64 [P, 4]: tokens, predicted tokens, their loss, and the square of the gradients' norm over
    what the process owns.
    """

    model: MiniatureM2
    optimizer: Optimizer
    gradients: Mapping[str, torch.Tensor]
    order: torch.Tensor
    loads: torch.Tensor
    sums: torch.Tensor

    @classmethod
    def of(cls, model: MiniatureM2, optimizer: Optimizer, num_processes: int) -> Shared:
        """Moves weights and state to shared memory where other processes are to see them.

        Raises NoRoom when there is too little of it.
        """
        if num_processes > 1:
            _check_room(model, optimizer, num_processes)
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

    def __init__(self, rank: int, shared: Shared, meet: Callable[[], None]) -> None:
        self._rank = rank
        self._shared = shared
        self.meet = meet  # returns when all processes are there
        self._parameters = dict(shared.model.named_parameters())
        self._own = dealt_out(
            self._parameters, shared.num_processes, lambda n: update_cost(n, self._parameters[n])
        )[rank]

    def step(self, draw: Callable[[], Batch | None], factor: float) -> None:
        """This process's part of a step that all have begun; returns when all have ended it."""
        self._compute(draw())
        self.meet()
        self._update(factor)
        self.meet()

    def _compute(self, batch: Batch | None) -> None:
        """This process's row of gradients, loads and sums."""
        shared, rank = self._shared, self._rank
        for name, p in self._parameters.items():
            p.grad = shared.gradients[name][rank].zero_()
        shared.loads[rank] = 0
        shared.sums[rank] = 0
        if batch is None:
            return
        device = shared.model.norm.device
        num_tokens, num_predicted = int(batch.is_real.sum()), len(batch.targets)
        if shared.model.wants_few_sizes:
            batch = in_few_sizes(batch)
        batch = batch.to(device)
        result = shared.model(batch.token_ids, batch.blocks, batch.rows, batch.is_real)
        loss = F.cross_entropy(result.logits, batch.targets, reduction="sum")
        loss.backward()
        shared.loads[rank] = result.loads
        sums = (num_tokens, num_predicted, float(loss.detach()), 0.0)
        shared.sums[rank] = torch.tensor(sums, dtype=torch.float64)

    def _update(self, factor: float) -> None:
        """Move what this process owns by the mean gradient of all of them."""
        shared = self._shared
        predicted = float(shared.sums[:, 1].sum())
        mean = {name: shared.gradients[name].sum(0).div_(predicted) for name in self._own}
        shared.sums[self._rank, 3] = sum(float(g.square().sum()) for g in mean.values())
        self.meet()
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
        self._member = Member(0, self._shared, self._meet)
        self._tokenizer_folder = tokenizer_folder
        self._others: list[tuple[BaseProcess, Connection]] = []

    def __enter__(self) -> Team:
        context = multiprocessing.get_context("spawn")
        for rank in range(1, self._shared.num_processes):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(rank, self._shared, theirs, self._tokenizer_folder, torch.get_num_threads()),
                daemon=True,
            )
            process.start()
            theirs.close()
            self._others.append((process, ours))
        return self

    def __exit__(self, *error: object) -> None:
        for process, pipe in self._others:
            pipe.close()
            process.kill()
            process.join()

    def step(
        self, order: Order, factor: float, draw: Callable[[], Batch | None]
    ) -> dict[str, float]:
        """Run the step at `factor` times the peak learning rates; `draw` brings the first process's
        documents. Returns what the log says.

        Raises RuntimeError when another process is gone.
        """
        shared, member = self._shared, self._member
        numbers = (order.seed, order.stage, order.step, order.num_tokens, factor)
        shared.order.copy_(torch.tensor(numbers, dtype=torch.float64))
        member.meet()
        member.step(draw, factor)
        return self._summary(factor)

    def _meet(self) -> None:
        for process, pipe in self._others:
            try:
                wait([pipe, process.sentinel])
                pipe.recv_bytes()
            except (EOFError, OSError) as error:
                process.join()
                ended = f"process {process.name} of the training ended with {process.exitcode}"
                text = f"{ended}; the same command goes on from the last checkpoint"
                raise RuntimeError(text) from error
        for _, pipe in self._others:
            with suppress(OSError):  # who is gone now is missed at the next meeting
                pipe.send_bytes(b"go")

    def _summary(self, factor: float) -> dict[str, float]:
        shared = self._shared
        tokens, predicted, loss, _ = shared.sums.sum(0).tolist()
        return {
            "tokens": int(tokens),
            "predicted": int(predicted),
            "loss": round(loss / predicted, 4),
            "gradient_norm": round(gradient_norm(shared), 3),
            "rate": round(factor, 4),
            **load_summary(shared.loads.sum(0)),
        }


def gradient_norm(shared: Shared) -> float:
    """Of the whole mean gradient, before clipping."""
    return math.sqrt(float(shared.sums[:, 3].sum()))


class NoRoom(Exception):
    """Too little shared memory; the sentence says what to do."""


def _check_room(model: MiniatureM2, optimizer: Optimizer, num_processes: int) -> None:
    weights = sum(t.nbytes for t in model.state_dict().values())
    state = sum(t.nbytes for t in optimizer.state.values())
    needed = state + weights * (1 + num_processes)
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else needed
    if free < needed:
        raise NoRoom(
            f"{num_processes} processes share {needed >> 20} MiB, but {SHARED_MEMORY} has "
            f"{free >> 20} MiB left: give the container more (--shm-size 1g) or use --processes 1"
        )


def _serve(
    rank: int, shared: Shared, pipe: Connection, tokenizer_folder: Path, num_threads: int
) -> None:
    """Step after step, until the first process is gone or ends this one."""

    def meet() -> None:
        try:
            pipe.send_bytes(b"here")
            pipe.recv_bytes()
        except (EOFError, OSError):
            sys.exit(0)

    torch.set_num_threads(num_threads)
    keep_freed_memory()
    start_worker(tokenizer_folder)
    member = Member(rank, shared, meet)
    while True:
        member.meet()
        seed, stage, step, num_tokens, factor = shared.order.tolist()
        order = Order(int(seed), int(stage), int(step), int(num_tokens))
        member.step(partial(order.draw, rank, shared.num_processes), factor)
