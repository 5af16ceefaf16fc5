"""The fast bfloat16 path of a CPU computes what the plain one does."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_training_modeling import SMALL, random_model
from test_training_optimizer import fresh

from m2serve.chat.tokenizer import Tokenizer
from training import modeling, precision
from training.batches import (
    IGNORED,
    in_few_sizes,
    make_batch,
    start_worker,
    step_documents,
)
from training.experts import run_experts
from training.modeling import MiniatureM2
from training.optimizer import Optimizer, orthogonalize
from training.team import Order, Team


@pytest.fixture(autouse=True)
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here and in the processes a test starts."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.setattr(modeling, "_rms_norm_fused", modeling._rms_norm_bfloat16)
    monkeypatch.setattr(precision, "can_compile", lambda: False)


SMALL_EXPERTS = fresh()[0].shape.num_local_experts


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def off_by(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def test_experts_in_bfloat16_give_the_same_forward_and_backward() -> None:
    moe = random_model().layers[0].block_sparse_moe
    x = numbers(50, SMALL.hidden_size).requires_grad_()
    ids = moe.route(x)[1]
    ids[:, 0] = 3  # one expert is busy,
    ids[ids == 5] = 6  # and this one has no token at all
    weights = numbers(*ids.shape, seed=1).sigmoid().requires_grad_()

    def with_gradients(out: torch.Tensor) -> list[torch.Tensor]:
        given = (x, weights, moe.w13, moe.w2)
        return [out.detach(), *torch.autograd.grad(out, given, numbers(*x.shape, seed=2))]

    expected = with_gradients(moe.combine(x, weights, ids))
    got = with_gradients(run_experts(x, weights, ids, moe.w13, moe.w2))
    for name, fast, plain in zip(("out", "x", "weights", "w13", "w2"), got, expected, strict=True):
        assert off_by(fast, plain) < 0.02, name
    assert not got[3][5].any()
    assert not got[4][5].any()


@pytest.mark.parametrize("head_dim", [16, 64])  # of 64: in tiles, where there are any
def test_gradients_are_those_of_float32(tokenizer: Tokenizer, head_dim: int) -> None:
    batch = make_batch(step_documents(0, 0, 0, 1200, tokenizer))
    padded = in_few_sizes(batch)
    gradients = []
    for dtype, used in ((torch.float32, batch), (torch.bfloat16, padded)):
        model, _ = fresh(head_dim=head_dim)
        with torch.no_grad():  # no weight zero
            for name, p in sorted(model.named_parameters()):
                p += 0.05 * numbers(*p.shape, seed=len(name))
        model.compute_dtype = dtype
        for layer in model.layers:
            layer.block_sparse_moe.top_k = SMALL_EXPERTS  # rounding tips no token elsewhere
        logits = model(used.token_ids, used.blocks, used.rows, used.is_real).logits
        F.cross_entropy(logits, used.targets, reduction="sum").backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    plain, fast = gradients
    for name, gradient in plain.items():
        assert gradient is not None
        assert off_by(fast[name], gradient) < 0.05, name


def test_padding_changes_no_loss_and_no_load(tokenizer: Tokenizer) -> None:
    batch = make_batch(step_documents(0, 0, 1, 900, tokenizer))
    padded = in_few_sizes(batch)
    assert (
        len(padded.token_ids) % precision.ROWS_MULTIPLE
        == len(padded.rows) % precision.ROWS_MULTIPLE
        == 0
    )
    assert len(padded.token_ids) > len(batch.token_ids)
    assert int((padded.targets == IGNORED).sum()) == len(padded.rows) - len(batch.rows)
    model, _ = fresh()
    results = [model(b.token_ids, b.blocks, b.rows, b.is_real) for b in (batch, padded)]
    losses = [
        float(F.cross_entropy(r.logits, b.targets, reduction="sum").detach())
        for r, b in zip(results, (batch, padded), strict=True)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert torch.equal(results[0].loads, results[1].loads)


def test_a_batch_that_fits_is_left_as_it_is(tokenizer: Tokenizer) -> None:
    padded = in_few_sizes(make_batch(step_documents(0, 0, 1, 900, tokenizer)))
    again = in_few_sizes(padded)
    assert again.blocks == padded.blocks
    assert torch.equal(again.token_ids, padded.token_ids)


def test_matrices_are_orthogonalised_in_bfloat16_too() -> None:
    x = numbers(3, 8, 20)
    plain, fast = orthogonalize(x), orthogonalize(x, torch.bfloat16)
    assert fast.dtype == torch.bfloat16
    assert float((fast.float() - plain).norm() / plain.norm()) < 0.05


def test_a_model_learns_in_bfloat16(tokenizer: Tokenizer) -> None:
    model = MiniatureM2(fresh()[0].shape, torch.Generator().manual_seed(0), torch.bfloat16)
    assert model.wants_few_sizes
    optimizer = Optimizer(model)
    losses = []
    for step in range(24):
        batch = in_few_sizes(make_batch(step_documents(0, 0, step, 1200, tokenizer)))
        logits = model(batch.token_ids, batch.blocks, batch.rows, batch.is_real).logits
        loss = F.cross_entropy(logits, batch.targets)
        loss.backward()
        optimizer.step(1.0)
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.4
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("head_dim", [16, 64])
def test_a_run_of_two_processes_is_repeatable_to_the_bit(
    tokenizer_folder: Path, head_dim: int
) -> None:
    start_worker(tokenizer_folder)
    orders = [Order(seed=3, stage=0, step=step, num_tokens=1600) for step in range(2)]
    runs = []
    for _ in range(2):
        model, optimizer = fresh(head_dim=head_dim)
        model.compute_dtype = torch.bfloat16
        with Team(model, optimizer, tokenizer_folder, 2) as team:
            rows = [team.step(order, 0.5, partial(order.draw, 0, 2)) for order in orders]
        runs.append((model.state_dict(), rows))
    assert runs[0][1] == runs[1][1]
    for name, tensor in runs[0][0].items():
        assert torch.equal(tensor, runs[1][0][name]), name


def test_what_cannot_be_compiled_runs_as_it_stands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(function: object, dynamic: bool) -> Callable[..., torch.Tensor]:
        def fails(*args: object) -> torch.Tensor:
            raise RuntimeError("no compiler")

        return fails

    monkeypatch.setattr(precision, "can_compile", lambda: True)
    monkeypatch.setattr(torch, "compile", broken)

    @precision.fused
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    assert torch.equal(doubled(torch.ones(2)), torch.full((2,), 2.0))
    assert "doubled is not compiled: no compiler" in capsys.readouterr().err
    assert torch.equal(doubled(torch.ones(2)), torch.full((2,), 2.0))


@pytest.mark.skipif(not precision.can_compile(), reason="needs g++ and Python.h")
def test_a_compiled_loop_is_the_function_and_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    monkeypatch.setattr(precision, "can_compile", lambda: True)
    weight = 1 + 0.1 * numbers(32, seed=1)
    results = []
    compiled = precision.fused(modeling._rms_norm_bfloat16)
    for function in (modeling._rms_norm_bfloat16, compiled):
        x = numbers(64, 32).requires_grad_()
        y = function(x, weight, 1e-6)
        y.square().sum().backward()
        assert x.grad is not None
        results.append((y.detach(), x.grad))
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=0.01, atol=0.02)
