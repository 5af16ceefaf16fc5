"""Two processes take the step that one would take with all the documents."""

from pathlib import Path

import torch
import torch.nn.functional as F
from test_training_optimizer import fresh

from training.batches import draw_batch, start_worker
from training.modeling import MiniatureM2
from training.optimizer import Optimizer, balance_experts, shares_of_work
from training.team import MAX_GRADIENT_NORM, Order, Team

ORDERS = [Order(seed=3, stage=0, step=step, num_tokens=1600, factor=0.5) for step in range(2)]


def step_of_all(model: MiniatureM2, optimizer: Optimizer, order: Order) -> tuple[float, int]:
    """The reference: one backward pass over everybody's documents; mean loss and tokens."""
    batches = [draw_batch(*order.drawing(rank, 2)) for rank in range(2)]
    results = [model(b.token_ids, b.blocks, b.rows, b.is_real) for b in batches]
    logits = torch.cat([result.logits for result in results])
    loss = F.cross_entropy(logits, torch.cat([b.targets for b in batches]))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
    optimizer.step(order.factor)
    balance_experts(model, results[0].loads + results[1].loads, order.factor)
    return float(loss.detach()), sum(int(b.is_real.sum()) for b in batches)


def test_two_processes_take_the_step_of_one(tokenizer_folder: Path) -> None:
    start_worker(tokenizer_folder)
    model, optimizer = fresh()
    with Team(model, optimizer, tokenizer_folder, 2) as team:
        rows = [
            team.step(order, lambda order=order: draw_batch(*order.drawing(0, 2)))
            for order in ORDERS
        ]
    expected, expected_optimizer = fresh()
    for order, row in zip(ORDERS, rows, strict=True):
        loss, num_tokens = step_of_all(expected, expected_optimizer, order)
        assert abs(row["loss"] - loss) < 1e-3
        assert row["tokens"] == num_tokens
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    for name, tensor in expected_optimizer.state.items():
        torch.testing.assert_close(optimizer.state[name], tensor, rtol=1e-2, atol=1e-4, msg=name)


def test_processes_draw_other_documents() -> None:
    drawings = [order.drawing(rank, 2) for order in ORDERS for rank in range(2)]
    assert len({number for _, _, number, _ in drawings}) == 4
    assert {num_tokens for *_, num_tokens in drawings} == {800}


def test_every_parameter_is_one_process_s() -> None:
    parameters = dict(fresh()[0].named_parameters())
    lots = shares_of_work(parameters, 2)
    assert sorted(lots[0] + lots[1]) == sorted(parameters)
    assert lots[0]
    assert lots[1]
