"""Stopping and going on: weights, optimizer state and counters, as safetensors and JSON."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from training.modeling import MiniatureM2
from training.optimizer import Optimizer

_TENSORS = "state.safetensors"
_COUNTERS = "state.json"
_LATER = ".head_map"  # which earlier checkpoints lack; nothing but zeros is what they mean


@dataclass(frozen=True)
class Counters:
    """`step` is the next one to run; `tokens` counts what has been read, padding left out;
    `precision` is that of the products, a key of precision.PRECISIONS."""

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    seed: int = 0
    precision: str = "float32"


def save(folder: Path, model: MiniatureM2, optimizer: Optimizer, counters: Counters) -> None:
    write_state(folder, _tensors(model, optimizer), asdict(counters))


def write_state(
    folder: Path, tensors: Mapping[str, torch.Tensor], counters: Mapping[str, Any]
) -> None:
    """Written beside the old one and then put in its place, so a crash leaves one that is whole:
    what reads it puts the old one back."""
    fresh = folder.with_name(folder.name + ".new")
    fresh.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(whole, fresh / _TENSORS)
    (fresh / _COUNTERS).write_text(json.dumps(counters))
    old = _old(folder)
    if folder.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def has_checkpoint(folder: Path) -> bool:
    """Whether there is one to go on from, perhaps after a save was interrupted."""
    return folder.is_dir() or _old(folder).is_dir()


def _old(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


def restore(folder: Path, model: MiniatureM2, optimizer: Optimizer) -> Counters:
    """Load in place; raises FileNotFoundError or KeyError when the folder does not fit."""
    stored, counters = read_state(folder)
    with torch.no_grad():
        for name, tensor in _tensors(model, optimizer).items():
            if name.endswith(_LATER) and name not in stored:
                tensor.zero_()
            else:
                tensor.copy_(stored[name])
    return Counters(**counters)


def read_state(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `write_state` was given; raises FileNotFoundError where nothing was written."""
    counters = read_counters(folder)
    return load_file(folder / _TENSORS), counters


def read_counters(folder: Path) -> dict[str, Any]:
    """As `read_state`, without the tensors."""
    if _old(folder).is_dir() and not folder.is_dir():
        _old(folder).rename(folder)
    counters: dict[str, Any] = json.loads((folder / _COUNTERS).read_text())
    return counters


def _tensors(model: MiniatureM2, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    return {f"model.{n}": t for n, t in model.state_dict().items()} | optimizer.state


def drop_rows_from(path: Path, step: int) -> None:
    """Forget what was logged behind the checkpoint: those steps are about to be run again."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if _step_of(line) < step))


def _step_of(line: str) -> float:
    """Of a line of `log.jsonl` or `curves.csv`; the head of the latter counts as the first, and
    half a line, of a write that was cut off, as the last."""
    if line.startswith("{"):
        try:
            return int(json.loads(line)["step"])
        except ValueError:
            return math.inf
    first = line.partition(",")[0]
    return int(first) if first.isdigit() else -1
