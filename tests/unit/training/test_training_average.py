"""Weights between two runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training import average
from training.checkpointing import Counters, restore, save
from training.modeling import MiniatureM2, checkpoint_tensors
from training.optimizer import Optimizer
from training.train import SHAPE

SMALL = replace(
    SHAPE, num_hidden_layers=1, hidden_size=64, intermediate_size=32, num_local_experts=4,
    vocab_size=2048,
)  # fmt: skip


def make_run(folder: Path, tokenizer: Path, seed: int) -> MiniatureM2:
    model = MiniatureM2(SMALL, torch.Generator().manual_seed(seed))
    model.layers[0].block_sparse_moe.e_score_correction_bias += seed
    with torch.no_grad():
        model.head_map.normal_(generator=torch.Generator().manual_seed(seed))
    save(folder / "checkpoint", model, Optimizer(model), Counters(step=seed, tokens=10 * seed))
    shutil.copytree(tokenizer, folder / "tokenizer")
    return model


def test_every_weight_lies_between(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(average, "SHAPE", SMALL)
    first = checkpoint_tensors(make_run(tmp_path / "a", tokenizer_folder, 1))
    second = checkpoint_tensors(make_run(tmp_path / "b", tokenizer_folder, 3))
    average.average(tmp_path / "mean", tmp_path / "a", tmp_path / "b", share=0.25)
    found = MiniatureM2(SMALL, torch.Generator())
    counters = restore(tmp_path / "mean" / "checkpoint", found, Optimizer(found))
    assert counters.tokens == 30
    for name, tensor in checkpoint_tensors(found).items():
        torch.testing.assert_close(tensor, 0.75 * first[name] + 0.25 * second[name])
    head = load_file(tmp_path / "mean" / "model" / "model.safetensors")["lm_head.weight"]
    assert torch.equal(head, found.head_weight().detach().bfloat16())
