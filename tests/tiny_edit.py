"""Changing a checkpoint on disk, to see what becomes of a damaged one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

INDEX_FILE = "model.safetensors.index.json"


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Apply `change` to all tensors and write them back as one shard with its index."""
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors.update({name: tensor.clone() for name, tensor in load_file(shard).items()})
        shard.unlink()
    change(tensors)
    file = "model-00000-of-00001.safetensors"
    save_file(tensors, folder / file)
    edit_json(
        folder / INDEX_FILE, lambda index: index.update(weight_map=dict.fromkeys(tensors, file))
    )


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the object in a JSON file."""
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")
