"""Trains the miniature.

    python -m training.train RUN_FOLDER [--device cpu|cuda] (--minutes N | --steps N) [--seed N]
    python -m training.train RUN_FOLDER --after OTHER_RUN [--begin 0.4] ...

RUN_FOLDER gets the tokenizer, a checkpoint from which the same command goes on, `log.jsonl` (a
line a step), `curves.csv` (held-out scores) and at the end `model/`, the folder to serve.
With --steps, on one machine and with the same --processes and --precision, the run is repeatable to
the bit however often it is interrupted; with --minutes the curriculum follows the clock. With
--after the weights, optimizer state and tokenizer of another run are the start, and the schedule is
entered at --begin.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from m2serve.chat.tokenizer import Tokenizer
from m2serve.environment import this_machine
from m2serve.spec.shape import ModelShape
from training.batches import Batch, start_worker
from training.checkpointing import (
    Counters,
    drop_rows_from,
    has_checkpoint,
    read_counters,
    restore,
    save,
)
from training.export import export
from training.induction import lay_out_induction
from training.memory import keep_freed_memory
from training.mixture import STAGES, stage_at
from training.modeling import MiniatureM2, num_parameters
from training.optimizer import Optimizer
from training.precision import PRECISIONS, fastest_dtype, precision_of
from training.probe import append_scores, probe_documents, score
from training.schedule import Budget, rate_factor
from training.starts import append_start
from training.team import NoRoom, Order, Team
from training.tokenizer import NUM_DOCUMENTS, VOCAB_SIZE, train_tokenizer, write_tokenizer

SHAPE = ModelShape(
    hidden_size=256,
    num_hidden_layers=5,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=64,
    rotary_dim=32,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    intermediate_size=128,
    num_local_experts=16,
    num_experts_per_tok=4,
    vocab_size=VOCAB_SIZE,
    max_position_embeddings=4096,
)
STEP_TOKENS = {"cpu": 8192, "cuda": 32_768}
NUM_PROBES = 20
SAVE_EVERY_S = 300.0
MOST_PROCESSES = 4


class Run:
    """One training run in its folder; goes on where the folder's checkpoint is."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.device = torch.device(options.device)
        self.budget = Budget(
            options.steps, options.minutes, options.begin if options.after else 0.0
        )
        self.step_tokens = options.step_tokens or STEP_TOKENS[options.device]
        self.num_workers = options.workers
        self.num_processes = options.processes
        if options.after and not (folder / "tokenizer").is_dir():
            fresh = folder / "tokenizer.new"
            shutil.copytree(options.after / "tokenizer", fresh, dirs_exist_ok=True)
            fresh.rename(folder / "tokenizer")
        self.tokenizer_folder = _ready_tokenizer(folder / "tokenizer", options.seed)
        generator = torch.Generator().manual_seed(options.seed)
        self.model = MiniatureM2(SHAPE, generator)
        lay_out_induction(self.model, generator)
        self.model.to(self.device)
        self.optimizer = Optimizer(self.model)
        precision = options.precision or precision_of(fastest_dtype(options.device))
        self.counters = Counters(seed=options.seed, precision=precision)
        if has_checkpoint(folder / "checkpoint"):
            found = restore(folder / "checkpoint", self.model, self.optimizer)
            self.counters = replace(found, precision=options.precision or found.precision)
        elif options.after:
            restore(options.after / "checkpoint", self.model, self.optimizer)
        self.model.compute_dtype = PRECISIONS[self.counters.precision]
        drop_rows_from(folder / "log.jsonl", self.counters.step)
        drop_rows_from(folder / "curves.csv", self.counters.step)
        self.probes = probe_documents(Tokenizer.load(self.tokenizer_folder))

    def progress(self) -> float:
        return self.budget.progress(self.counters.step, self.counters.elapsed_s)

    def train(self) -> None:
        """Until the budget is spent; then writes the model's folder."""
        num_processes = self.num_processes
        with Team(self.model, self.optimizer, self.tokenizer_folder, num_processes) as team:
            self._train(team)
        export(self.model, self.tokenizer_folder, self.folder / "model")

    def _train(self, team: Team) -> None:
        next_probe = math.ceil(self.progress() * NUM_PROBES) / NUM_PROBES
        last_save_s = self.counters.elapsed_s
        steps = self._steps()
        while self.progress() < 1.0:
            if self.progress() >= next_probe:
                self._probe()
                next_probe += 1 / NUM_PROBES
            started_s = time.monotonic()
            order, draw = next(steps)
            row = team.step(order, rate_factor(self.progress()), draw)
            row["step_s"] = round(time.monotonic() - started_s, 3)
            elapsed_s = self.counters.elapsed_s + time.monotonic() - started_s
            self._log(row)
            self.counters = replace(
                self.counters,
                step=self.counters.step + 1,
                tokens=self.counters.tokens + int(row["tokens"]),
                elapsed_s=elapsed_s,
            )
            if elapsed_s - last_save_s > SAVE_EVERY_S:
                self._save()
                last_save_s = elapsed_s
        self._probe()
        self._save()
        steps.close()

    def _steps(self) -> Generator[tuple[Order, Callable[[], Batch | None]], None, None]:
        """With what brings this process's documents; with workers, drawn ahead for the stage the
        run is in at that moment."""
        if not self.num_workers:
            start_worker(self.tokenizer_folder)
            while True:
                order = self._order(self.counters.step)
                yield order, partial(order.draw, 0, self.num_processes)
        pool = ProcessPoolExecutor(
            self.num_workers, get_context("spawn"), start_worker, (self.tokenizer_folder,)
        )
        with pool:
            waiting: deque[tuple[Order, Future[Batch | None]]] = deque()
            step = self.counters.step
            try:
                while True:
                    while len(waiting) < 2 * self.num_workers:
                        order = self._order(step)
                        waiting.append((order, pool.submit(order.draw, 0, 1)))
                        step += 1
                    order, drawn = waiting.popleft()
                    yield order, drawn.result
            finally:
                pool.shutdown(cancel_futures=True)

    def _order(self, step: int) -> Order:
        stage = stage_at(self.budget.progress(step, self.counters.elapsed_s))
        num_tokens = round(self.step_tokens * STAGES[stage].step_share)
        return Order(self.counters.seed, stage, step, num_tokens)

    def _log(self, row: dict[str, float]) -> None:
        at = {
            "step": self.counters.step,
            "progress": round(self.progress(), 5),
            "stage": STAGES[stage_at(self.progress())].name,
            "elapsed_s": round(self.counters.elapsed_s, 1),
        }
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(at | row) + "\n")

    def _probe(self) -> None:
        self.model.eval()
        scores = [score(self.model, kind, documents) for kind, documents in self.probes.items()]
        self.model.train()
        at = self.counters
        append_scores(self.folder / "curves.csv", scores, at.step, at.tokens, at.elapsed_s)
        shown = " ".join(f"{s.kind} {s.loss:.2f}/{s.exact:.2f}" for s in scores)
        print(f"{self.progress():6.1%} step {at.step} tokens {at.tokens} {shown}", flush=True)

    def _save(self) -> None:
        save(self.folder / "checkpoint", self.model, self.optimizer, self.counters)

    def describe(self) -> None:
        """Add this start of the run, with what it ran on, to `starts.jsonl`."""
        append_start(
            self.folder,
            self.device,
            step=self.counters.step,
            step_tokens=self.step_tokens,
            parameters=num_parameters(SHAPE),
            precision=self.counters.precision,
            tile_attention=self.model.attends_in_tiles,
            processes=self.num_processes,
        )


def _ready_tokenizer(folder: Path, seed: int) -> Path:
    if not (folder / "tokenizer.json").is_file():
        write_tokenizer(train_tokenizer(VOCAB_SIZE, NUM_DOCUMENTS, seed), folder)
    return folder


def _num_processes(
    parser: argparse.ArgumentParser, options: argparse.Namespace, num_cores: int
) -> int:
    asked = options.processes
    if options.device == "cuda" or options.workers:
        if asked not in (None, 1):
            parser.error("--processes is for a CPU, without --workers, which draw for one process")
        return 1
    if asked is not None and asked < 1:
        parser.error(f"--processes is {asked}; give 1 or more")
    return asked or min(num_cores, MOST_PROCESSES)


def _seed(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Of the run that goes on, or the one asked for."""
    asked: int | None = options.seed
    if not has_checkpoint(options.folder / "checkpoint"):
        return asked or 0
    found = int(read_counters(options.folder / "checkpoint")["seed"])
    if asked not in (None, found):
        parser.error(f"--seed is {asked}; the run in {options.folder} has seed {found}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the miniature.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, default=0.0)
    budget.add_argument("--steps", type=int, default=0)
    parser.add_argument("--seed", type=int, help="default: the checkpoint's, else 0")
    parser.add_argument("--after", type=Path, help="the folder of a run to start from")
    parser.add_argument("--begin", type=float, default=0.4, help="with --after: progress at start")
    parser.add_argument("--step-tokens", type=int, default=0, help="0: by device")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="default: the checkpoint's, else the faster one here",
    )
    parser.add_argument("--processes", type=int, help="default: one a core, at most 4")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw text ahead")
    options = parser.parse_args()
    num_cores = this_machine().num_cores
    options.processes = _num_processes(parser, options, num_cores)
    if options.device == "cpu":
        torch.set_num_threads(max(1, num_cores // options.processes))
        keep_freed_memory()
    options.folder.mkdir(parents=True, exist_ok=True)
    options.seed = _seed(parser, options)
    run = Run(options.folder, options)
    run.describe()
    try:
        run.train()
    except NoRoom as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
