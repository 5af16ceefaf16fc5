from __future__ import annotations

import random

import torch

from m2serve.engine.step import ScheduledSequence, ScheduledStep
from m2serve.engine.step_batch import StepBatcher
from m2serve.model.batch import ForwardBatch

BLOCK_SIZE = 4


def sequence(
    start: int,
    token_ids: tuple[int, ...],
    block_ids: tuple[int, ...],
    *,
    samples: bool = True,
    prompt_targets: tuple[int, ...] = (),
) -> ScheduledSequence:
    return ScheduledSequence(
        request_id=str(block_ids),
        token_ids=token_ids,
        start=start,
        block_ids=block_ids,
        samples=samples,
        prompt_targets=prompt_targets,
    )


def batch_of(*sequences: ScheduledSequence) -> ForwardBatch:
    return batcher().build(ScheduledStep(sequences))


def batcher() -> StepBatcher:
    return StepBatcher(BLOCK_SIZE, torch.device("cpu"))


def test_a_mixed_step() -> None:
    batch = batch_of(
        sequence(5, (70,), (9, 3)),
        sequence(2, (10, 11, 12, 13), (7, 8), samples=False, prompt_targets=(11, 12, 13, 14)),
        sequence(0, (20, 21), (1,), prompt_targets=(21,)),
    )
    assert batch.token_ids.tolist() == [70, 10, 11, 12, 13, 20, 21]
    assert batch.positions.tolist() == [5, 2, 3, 4, 5, 0, 1]
    assert batch.slot_mapping.tolist() == [13, 30, 31, 32, 33, 4, 5]
    assert batch.query_start_loc.tolist() == [0, 1, 5, 7]
    assert batch.seq_lens.tolist() == [6, 6, 2]
    assert batch.block_table.tolist() == [[9, 3], [7, 8], [1, 0]]
    assert batch.logits_rows.tolist() == [0, 6, 1, 2, 3, 4, 5]


def test_types_are_those_the_model_expects() -> None:
    batch = batch_of(sequence(0, (1,), (0,), samples=False))
    for name in ("token_ids", "positions", "slot_mapping", "logits_rows"):
        assert getattr(batch, name).dtype == torch.int64, name
    for name in ("query_start_loc", "seq_lens", "block_table"):
        assert getattr(batch, name).dtype == torch.int32, name
    assert batch.logits_rows.tolist() == []


def assert_is_batch_of(batch: ForwardBatch, sequences: list[ScheduledSequence]) -> None:
    """Built one token after the other."""
    wanted = [
        (token, s.start + i, s.block_ids[(s.start + i) // 4] * 4 + (s.start + i) % 4)
        for s in sequences
        for i, token in enumerate(s.token_ids)
    ]
    rows = zip(batch.token_ids, batch.positions, batch.slot_mapping, strict=True)
    assert [tuple(map(int, row)) for row in rows] == wanted
    assert batch.seq_lens.tolist() == [s.end for s in sequences]
    width = batch.block_table.shape[1]
    assert batch.block_table.tolist() == [
        [*s.block_ids, *[0] * (width - len(s.block_ids))] for s in sequences
    ]
    assert len(batch.query_start_loc) == len(sequences) + 1
    assert len(batch.logits_rows) == sum(s.samples for s in sequences)


def test_random_steps_of_one_batcher() -> None:
    rng = random.Random(0)
    one = batcher()
    for _ in range(200):
        sequences = []
        for _ in range(rng.randint(1, 6)):
            start, count = rng.randint(0, 12), rng.randint(1, 9)
            num_blocks = -(-(start + count) // BLOCK_SIZE)
            block_ids = tuple(rng.sample(range(1000), num_blocks))
            token_ids = tuple(rng.randrange(10**6) for _ in range(count))
            sequences.append(sequence(start, token_ids, block_ids, samples=rng.random() < 0.5))
        assert_is_batch_of(one.build(ScheduledStep(tuple(sequences))), sequences)


def test_sequences_that_grow_leave_and_lose_their_blocks() -> None:
    """What the scheduler does to a batch, step after step, with rows that stay and rows that move.

    A row keeps the very tuple of its blocks while it has no new one, as the scheduler's do.
    """
    rng = random.Random(1)
    one = batcher()
    blocks: dict[int, tuple[int, ...]] = {}
    lengths: dict[int, int] = {}
    for step in range(600):
        if len(blocks) < 2 or rng.random() < 0.1:
            lengths[step], blocks[step] = rng.randint(1, 30), ()
        for name in [name for name in blocks if len(blocks) > 1 and rng.random() < 0.05]:
            del blocks[name]
        for name in blocks:
            if rng.random() < 0.03:  # preempted and back, with other blocks
                blocks[name] = ()
        sequences = []
        for name in blocks:
            lengths[name] += 1
            missing = -(-lengths[name] // BLOCK_SIZE) - len(blocks[name])
            if missing:
                blocks[name] += tuple(rng.sample(range(1000), missing))
            sequences.append(sequence(lengths[name] - 1, (rng.randrange(99),), blocks[name]))
        assert_is_batch_of(one.build(ScheduledStep(tuple(sequences))), sequences)
