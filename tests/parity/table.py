"""Prints the README's table: how exactly each storage format is computed.

python tests/parity/table.py
"""

# ruff: noqa: E402

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1])]

from paged import PagedSequences
from test_parity_formats import weight_bytes
from test_parity_transformers import load, prompt, relative_error, their_logits
from tiny import FORMATS, build_tiny
from transformers import MiniMaxM2ForCausalLM


def main() -> None:
    print("| storage format | expert bytes against BF16 | logits against transformers, float32 |")
    print("|---|---|---|")
    ids = prompt(200)
    baseline = 0
    for format in sorted(FORMATS, key=lambda name: name not in ("bf16", "f32")):
        with tempfile.TemporaryDirectory() as folder:
            stored = build_tiny(Path(folder) / "stored", format=format)
            build_tiny(Path(folder) / "dense", format="f32", state=stored.state)
            model = load(stored.folder, torch.float32)
            theirs = MiniMaxM2ForCausalLM.from_pretrained(
                Path(folder) / "dense", dtype=torch.float32
            )
            [logits] = PagedSequences(model, torch.float32).run([("a", ids)])
            error = relative_error(logits, their_logits(theirs.eval(), ids))
        # The dense experts are float32 here, twice what BF16 would take.
        baseline = baseline or weight_bytes(model) // 2
        share = weight_bytes(model) / baseline if format not in ("bf16", "f32") else 1.0
        print(f"| {format} | {share:.2f} | {error:.1e} |")


if __name__ == "__main__":
    main()
