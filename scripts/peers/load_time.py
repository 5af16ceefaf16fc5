"""Seconds from opening a checkpoint until its model is there, the file cache warm.

python scripts/peers/load_time.py CHECKPOINT
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from m2serve.bench.bandwidth import read_bandwidth_gb_per_s
from m2serve.checkpoint.reader import Checkpoint
from m2serve.engine.config import EngineConfig
from m2serve.engine.placement import (
    DTYPES,
    choose_device,
    choose_dtype,
    choose_num_threads,
    has_cpu_kernels,
)
from m2serve.environment import ask_for_huge_pages, this_machine
from m2serve.model.loader import load_model

_CHUNK_BYTES = 1 << 24


def main() -> None:
    ask_for_huge_pages()
    folder = Path(sys.argv[1])
    machine = this_machine()
    config = EngineConfig(model_path=str(folder), device="cpu")
    device = choose_device(config)
    dtype = DTYPES[choose_dtype(config, device, machine)]
    torch.set_num_threads(choose_num_threads(config, machine, has_cpu_kernels(device)))
    warm(folder)
    start = time.perf_counter()
    with Checkpoint.open(folder) as checkpoint:
        model = load_model(checkpoint, device, dtype)
    load_s = time.perf_counter() - start
    figures = {
        "load_s": load_s,
        "weight_gb": model.weights.nbytes / 1e9,
        "read_bandwidth_gb_per_s": read_bandwidth_gb_per_s(device),
    }
    print("RESULT " + json.dumps(figures), flush=True)


def warm(folder: Path) -> None:
    """Read every file once, so that the disk is not what is measured."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while file.read(_CHUNK_BYTES):
                pass


if __name__ == "__main__":
    main()
