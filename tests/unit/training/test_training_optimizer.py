"""Muon's step, the balance of the experts, and going on as if never stopped."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from m2serve.chat.tokenizer import Tokenizer
from m2serve.spec.shape import ModelShape
from training.batches import make_batch, step_documents
from training.checkpointing import Counters, drop_rows_from, has_checkpoint, restore, save
from training.modeling import MiniatureM2
from training.optimizer import Optimizer, balance_experts, load_summary, orthogonalize
from training.probe import append_scores, probe_documents, score
from training.schedule import Budget, rate_factor

SMALL = ModelShape(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    head_dim=16,
    rotary_dim=8,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    intermediate_size=16,
    num_local_experts=4,
    num_experts_per_tok=2,
    vocab_size=2048,
    max_position_embeddings=1024,
)


def fresh(seed: int = 0, head_dim: int = SMALL.head_dim) -> tuple[MiniatureM2, Optimizer]:
    shape = replace(SMALL, head_dim=head_dim)
    model = MiniatureM2(shape, torch.Generator().manual_seed(seed))
    return model, Optimizer(model)


def train(
    model: MiniatureM2, optimizer: Optimizer, steps: range, tokenizer: Tokenizer
) -> list[float]:
    losses = []
    for step in steps:
        batch = make_batch(step_documents(0, 0, step, 1200, tokenizer))
        result = model(batch.token_ids, batch.blocks, batch.rows, batch.is_real)
        loss = F.cross_entropy(result.logits, batch.targets)
        loss.backward()
        optimizer.step(1.0)
        balance_experts(model, result.loads, 1.0)
        losses.append(float(loss.detach()))
    return losses


def test_orthogonalize_brings_singular_values_near_one() -> None:
    x = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(x))
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3


def test_a_model_learns(tokenizer: Tokenizer) -> None:
    model, optimizer = fresh()
    losses = train(model, optimizer, range(24), tokenizer)
    assert losses[-1] < losses[0] - 0.5


def test_a_resumed_run_is_the_run(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model, optimizer = fresh()
    train(model, optimizer, range(2), tokenizer)
    save(tmp_path / "checkpoint", model, optimizer, Counters(2, 99, 1.5, 7))
    straight = train(model, optimizer, range(2, 4), tokenizer)

    other, other_optimizer = fresh(seed=5)
    counters = restore(tmp_path / "checkpoint", other, other_optimizer)
    assert counters == Counters(2, 99, 1.5, 7)
    assert train(other, other_optimizer, range(2, 4), tokenizer) == straight
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_save_that_was_interrupted_leaves_the_one_before(tmp_path: Path) -> None:
    model, optimizer = fresh()
    folder = tmp_path / "checkpoint"
    assert not has_checkpoint(folder)
    save(folder, model, optimizer, Counters(1))
    folder.rename(tmp_path / "checkpoint.old")  # as far as a save had got
    assert has_checkpoint(folder)
    assert restore(folder, model, optimizer).step == 1


def test_an_earlier_checkpoint_has_no_map_to_the_head(tmp_path: Path) -> None:
    model, optimizer = fresh()
    save(tmp_path / "checkpoint", model, optimizer, Counters(1))
    stored = load_file(tmp_path / "checkpoint" / "state.safetensors")
    kept = {name: tensor for name, tensor in stored.items() if not name.endswith("head_map")}
    assert len(kept) == len(stored) - 4
    save_file(kept, tmp_path / "checkpoint" / "state.safetensors")
    other, other_optimizer = fresh(seed=5)
    with torch.no_grad():
        other.head_map.fill_(1.0)
    restore(tmp_path / "checkpoint", other, other_optimizer)
    assert torch.equal(other.head_weight(), model.lm_head)


def test_a_save_replaces_the_one_before(tmp_path: Path) -> None:
    model, optimizer = fresh()
    for step in (1, 2):
        save(tmp_path / "checkpoint", model, optimizer, Counters(step))
    assert restore(tmp_path / "checkpoint", model, optimizer).step == 2
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_logged_steps_that_run_again_are_forgotten(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(5)))
    drop_rows_from(log, 3)
    assert log.read_text().count("\n") == 3
    curves = tmp_path / "curves.csv"
    curves.write_text("step,kind\n0,a\n4,a\n")
    drop_rows_from(curves, 3)
    assert curves.read_text() == "step,kind\n0,a\n"
    drop_rows_from(tmp_path / "absent", 3)


def test_the_bias_moves_towards_balance() -> None:
    model, _ = fresh()
    loads = torch.tensor([[10.0, 2.0, 4.0, 4.0]] * 2)
    balance_experts(model, loads, 1.0)
    bias = model.layers[0].block_sparse_moe.e_score_correction_bias
    assert bias[1] > 0 > bias[0]
    assert float(bias.sum()) == pytest.approx(0.0, abs=1e-6)
    assert load_summary(loads) == {"max_load": 2.0, "min_load": 0.4}


def test_balancing_spreads_a_lopsided_router() -> None:
    model, _ = fresh()
    moe = model.layers[0].block_sparse_moe
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, 32, generator=generator) + 1.0
    with torch.no_grad():
        moe.gate[0] += 0.1  # likes every token
        moe.gate[1] -= 0.1  # likes none

    def loads() -> torch.Tensor:
        return torch.bincount(moe.route(x)[1].flatten(), minlength=4).float()

    before = load_summary(loads()[None])["max_load"]
    for _ in range(200):
        balance_experts(model, loads()[None].expand(2, -1), 1.0)
    after = load_summary(loads()[None])
    assert after["max_load"] < min(before, 1.2)
    assert after["min_load"] > 0.8


def test_the_rate_warms_up_holds_and_ends_at_zero() -> None:
    assert rate_factor(0.0) < 0.02
    assert rate_factor(0.1) == rate_factor(0.3) == 1.0
    assert 0.0 < rate_factor(0.9) < 0.2
    assert rate_factor(1.0) == 0.0
    assert Budget(steps=10).progress(5, 1e9) == 0.5
    assert Budget(minutes=2).progress(5, 60.0) == 0.5
    assert Budget(minutes=2, begin=0.4).progress(5, 60.0) == pytest.approx(0.7)


def test_the_probe_scores_every_kind(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model, _ = fresh()
    documents = probe_documents(tokenizer, 2)
    scores = [score(model, kind, part) for kind, part in documents.items()]
    assert all(0 <= s.exact <= 1 and s.loss > 0 for s in scores)
    for step in (0, 5):
        append_scores(tmp_path / "curves.csv", scores, step, 10, 1.0)
    lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * len(documents)
