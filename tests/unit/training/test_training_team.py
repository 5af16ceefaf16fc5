"""Two processes take the step that one would take with all the documents."""

import multiprocessing
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from test_training_optimizer import fresh

from m2serve.chat.tokenizer import Tokenizer
from training.batches import draw_batch, start_worker, step_documents
from training.modeling import MiniatureM2
from training.optimizer import Optimizer, balance_experts
from training.sharing import dealt_out
from training.team import MAX_GRADIENT_NORM, NoRoom, Order, Team

FACTOR = 0.5
ORDERS = [Order(seed=3, stage=0, step=step, num_tokens=1600) for step in range(2)]


class Usage(NamedTuple):
    free: int


def step_of_all(model: MiniatureM2, optimizer: Optimizer, order: Order) -> tuple[float, int]:
    """The reference: one backward pass over everybody's documents; mean loss and tokens."""
    b = draw_batch(order.seed, order.stage, order.step, order.num_tokens)
    result = model(b.token_ids, b.blocks, b.rows, b.is_real)
    loss = F.cross_entropy(result.logits, b.targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
    optimizer.step(FACTOR)
    balance_experts(model, result.loads, FACTOR)
    return float(loss.detach()), int(b.is_real.sum())


def steps_of_two(
    folder: Path, orders: list[Order]
) -> tuple[MiniatureM2, Optimizer, list[dict[str, float]]]:
    start_worker(folder)
    model, optimizer = fresh()
    with Team(model, optimizer, folder, 2) as team:
        rows = [team.step(order, FACTOR, partial(order.draw, 0, 2)) for order in orders]
    return model, optimizer, rows


def test_two_processes_take_the_step_of_one(tokenizer_folder: Path) -> None:
    model, optimizer, rows = steps_of_two(tokenizer_folder, ORDERS)
    assert max(row["gradient_norm"] for row in rows) > MAX_GRADIENT_NORM, "nothing was clipped"
    expected, expected_optimizer = fresh()
    for order, row in zip(ORDERS, rows, strict=True):
        loss, num_tokens = step_of_all(expected, expected_optimizer, order)
        assert abs(row["loss"] - loss) < 1e-3
        assert row["tokens"] == num_tokens
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    for name, tensor in expected_optimizer.state.items():
        torch.testing.assert_close(optimizer.state[name], tensor, rtol=1e-2, atol=1e-4, msg=name)


def test_a_run_is_repeatable_to_the_bit(tokenizer_folder: Path) -> None:
    first, second = (steps_of_two(tokenizer_folder, ORDERS)[0].state_dict() for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_work_is_dealt_out_whole_and_evenly(tokenizer: Tokenizer) -> None:
    documents = step_documents(0, 0, 0, 8000, tokenizer)
    lots = dealt_out(documents, 2, len)
    assert sorted(map(id, documents)) == sorted(id(one) for lot in lots for one in lot)
    sizes = [sum(map(len, lot)) for lot in lots]
    assert abs(sizes[0] - sizes[1]) < 0.1 * sum(sizes)
    assert dealt_out("abc", 2, lambda letter: 1) == [["a", "c"], ["b"]]
    assert dealt_out([7], 3, float) == [[7], [], []]


def test_a_process_without_documents_takes_part(tokenizer_folder: Path) -> None:
    start_worker(tokenizer_folder)
    order = Order(seed=3, stage=0, step=0, num_tokens=1)
    assert order.draw(1, 2) is None
    _, _, [row] = steps_of_two(tokenizer_folder, [order])
    expected, expected_optimizer = fresh()
    loss, num_tokens = step_of_all(expected, expected_optimizer, order)
    assert row["tokens"] == num_tokens
    assert abs(row["loss"] - loss) < 1e-3


def test_nobody_waits_for_a_process_that_is_gone(tokenizer_folder: Path) -> None:
    start_worker(tokenizer_folder)
    model, optimizer = fresh()
    with Team(model, optimizer, tokenizer_folder, 2) as team:
        team.step(ORDERS[0], FACTOR, partial(ORDERS[0].draw, 0, 2))
        [other] = multiprocessing.active_children()
        time.sleep(0.5)  # until it waits for the next step
        other.kill()
        with pytest.raises(RuntimeError, match=r"ended with -9; the same command goes on"):
            team.step(ORDERS[1], FACTOR, partial(ORDERS[1].draw, 0, 2))


def test_too_little_shared_memory_is_said_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.team.shutil.disk_usage", lambda path: Usage(free=1 << 10))
    monkeypatch.setattr("training.team.SHARED_MEMORY", tmp_path)
    with pytest.raises(NoRoom, match="--processes 1"):
        Team(*fresh(), tmp_path, 2)
