"""The same model code on a CUDA device."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tiny import FORMATS, build_tiny

from m2serve.checkpoint.reader import Checkpoint
from m2serve.model.loader import load_model

sys.path.append(str(Path(__file__).parents[1] / "parity"))
from paged import PagedSequences

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("format", FORMATS)
def test_cuda_logits_are_those_of_the_cpu(format: str, tmp_path: Path) -> None:
    build_tiny(tmp_path, format=format)
    ids = list(range(3, 60))
    logits = {}
    for device, dtype, tolerance in (
        ("cpu", torch.float32, 0.0),
        ("cuda", torch.float32, 1e-3),
        ("cuda", torch.bfloat16, 0.05),
    ):
        with Checkpoint.open(tmp_path) as checkpoint:
            model = load_model(checkpoint, torch.device(device), dtype)
        sequences = PagedSequences(model, dtype)
        sequences.run([("a", ids[:20])])
        [found] = sequences.run([("a", ids[20:])])
        exact = logits.setdefault("exact", found.cpu())
        error = (found.cpu() - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert float(error.median()) <= tolerance
