"""The decoder as its callers use it: which rows get logits, what is written where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import build_tiny

from m2serve.checkpoint.reader import Checkpoint
from m2serve.kernels.cpu_library import load_cpu_library
from m2serve.kernels.dispatch import select_kernels
from m2serve.model.batch import ForwardBatch, KVCache
from m2serve.model.loader import load_model
from m2serve.model.minimax_m2 import MiniMaxM2, allocate_kv_cache
from m2serve.model.native import make_model

CPU = torch.device("cpu")
BLOCK_SIZE = 4
IDS = [5, 900, 33, 5, 71, 8, 640, 2, 19]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MiniMaxM2:
    folder: Path = tmp_path_factory.mktemp("tiny")
    build_tiny(folder, num_hidden_layers=2)
    with Checkpoint.open(folder) as checkpoint:
        return load_model(checkpoint, CPU, request.param)


def empty_cache(model: MiniMaxM2, num_blocks: int = 5) -> KVCache:
    dtype = model.weights.dtype
    cache = allocate_kv_cache(model.shape, num_blocks, BLOCK_SIZE, CPU, dtype)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    return cache


def one_sequence(ids: list[int], start: int, rows: list[int]) -> ForwardBatch:
    """`ids` from position `start` on, in the blocks 3, 0, 4."""
    blocks = torch.tensor([3, 0, 4])
    positions = torch.arange(start, start + len(ids))
    return ForwardBatch(
        token_ids=torch.tensor(ids),
        positions=positions,
        slot_mapping=blocks[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE,
        query_start_loc=torch.tensor([0, len(ids)], dtype=torch.int32),
        seq_lens=torch.tensor([start + len(ids)], dtype=torch.int32),
        block_table=blocks[None].int(),
        logits_rows=torch.tensor(rows, dtype=torch.int64),
    )


@torch.inference_mode()
def forward(model: MiniMaxM2, batch: ForwardBatch, cache: KVCache) -> torch.Tensor:
    return model.compute_logits(model.forward(batch, cache))


def test_only_the_rows_asked_for_get_logits_and_in_that_order(model: MiniMaxM2) -> None:
    """A CPU that multiplies bfloat16 rounds activations of many rows of the head, not of few."""
    cache = empty_cache(model)
    every = forward(model, one_sequence(IDS, 0, list(range(9))), cache)
    some = forward(model, one_sequence(IDS, 0, [8, 0, 3]), empty_cache(model))
    assert every.dtype == some.dtype == torch.float32
    assert every.shape == (9, model.shape.vocab_size)
    library = load_cpu_library()
    rounds = library is not None and library.isa in ("avx512", "amx")
    tolerance = 2e-2 if rounds and cache.keys.dtype == torch.bfloat16 else 1e-3
    assert torch.allclose(some, every[[8, 0, 3]], rtol=tolerance, atol=tolerance)
    assert some.argmax(-1).tolist() == every[[8, 0, 3]].argmax(-1).tolist()


def test_a_step_without_logits_still_fills_the_cache(model: MiniMaxM2) -> None:
    """As in the middle of a chunked prefill."""
    cache, whole = empty_cache(model), empty_cache(model)
    assert forward(model, one_sequence(IDS[:6], 0, []), cache).shape == (0, 1200)
    [logits] = forward(model, one_sequence(IDS[6:], 6, [2]), cache)
    [expected] = forward(model, one_sequence(IDS, 0, [8]), whole)
    tolerance = 1e-5 if cache.keys.dtype == torch.float32 else 0.05
    assert float((logits - expected).norm() / expected.norm()) < tolerance


def test_slots_of_others_are_left_alone(model: MiniMaxM2) -> None:
    cache = empty_cache(model)
    forward(model, one_sequence(IDS, 0, [8]), cache)
    for part in (cache.keys, cache.values):
        written = ~part.isnan().flatten(3).any(-1)
        assert written.all(0).equal(written.any(0))
        assert written[0].flatten().nonzero().flatten().tolist() == [*range(4), *range(12, 17)]


def test_layers_are_counted_as_they_are_computed(model: MiniMaxM2) -> None:
    """Of the fastest decoder and of PyTorch's."""
    torchs = MiniMaxM2(model.shape, model.weights, select_kernels(CPU))
    for one in (model, torchs):
        before = one.layers_computed()
        forward(one, one_sequence(IDS, 0, [8]), empty_cache(model))
        assert one.layers_computed() == before + model.shape.num_hidden_layers


def test_weights_and_shape_are_all_the_state_there_is(model: MiniMaxM2) -> None:
    batch = one_sequence(IDS, 0, [8])
    first = forward(model, batch, empty_cache(model))
    forward(model, one_sequence(IDS[::-1], 0, [0]), empty_cache(model))
    assert torch.equal(forward(model, batch, empty_cache(model)), first)
    again = make_model(model.shape, model.weights)
    assert torch.equal(forward(again, batch, empty_cache(model)), first)


def test_the_cache_has_the_sizes_of_the_checkpoint(model: MiniMaxM2) -> None:
    cache = empty_cache(model, num_blocks=7)
    assert cache.keys.shape == cache.values.shape == (2, 7, BLOCK_SIZE, 2, 64)
    assert (cache.num_blocks, cache.block_size) == (7, BLOCK_SIZE)
    assert cache.keys.dtype == cache.values.dtype == model.weights.dtype
