"""What a run was started as, from which code and on what: a line of `starts.jsonl` a start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from m2serve.environment import this_machine


def append_start(folder: Path, device: torch.device, **facts: Any) -> None:
    """Write and print it; `facts` are the run's own."""
    cpu = this_machine().cpu_name
    start = {
        "command": " ".join(sys.argv[1:]),
        "commit": commit(),
        **facts,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    with (folder / "starts.jsonl").open("a") as file:
        file.write(json.dumps(start) + "\n")
    print(json.dumps(start), flush=True)


def commit() -> str:
    """Of this checkout, with a + when files differ from it; empty without git."""
    here = Path(__file__).parent
    try:
        head, changed = (
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True)
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
