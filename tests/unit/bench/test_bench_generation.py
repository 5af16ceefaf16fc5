"""A pass runs the tokens it says, on the cache it says."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from m2serve.bench.dummy import dummy_weights
from m2serve.bench.generation import (
    BLOCK_SIZE,
    EngineBenchConfig,
    Pass,
    make_cache,
    make_runner,
    run_pass,
)
from m2serve.bench.operations import OperationMeter
from m2serve.bench.shapes import MINIATURE
from m2serve.errors import ResourceError
from m2serve.kernels.dispatch import select_kernels
from m2serve.model.batch import ForwardBatch, KVCache
from m2serve.model.minimax_m2 import MiniMaxM2

CPU = torch.device("cpu")
SHAPE = replace(MINIATURE, num_hidden_layers=1, vocab_size=64)


class Recorder(MiniMaxM2):
    """Remembers each step's numbers of new tokens and of tokens seen, by sequence."""

    steps: list[tuple[list[int], list[int]]]

    def forward(self, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
        self.steps.append((batch.query_start_loc.diff().tolist(), batch.seq_lens.tolist()))
        hidden = super().forward(batch, kv_cache)
        assert bool(torch.isfinite(hidden).all())
        return hidden


def recorded(config: EngineBenchConfig) -> tuple[Recorder, Pass]:
    config.check(SHAPE.max_position_embeddings)
    meter = OperationMeter(CPU)
    weights = dummy_weights(SHAPE, "bf16", device=CPU, dtype=torch.float32)
    model = Recorder(SHAPE, weights, meter.wrap(select_kernels(CPU)))
    model.steps = []
    cache = make_cache(model, config)
    if not config.context:
        cache.keys.fill_(math.nan)
        cache.values.fill_(math.nan)
    return model, run_pass(make_runner(model, config, cache), config, meter)


@pytest.mark.parametrize("context", [0, 48])
def test_prefill_then_one_token_a_sequence_a_step(context: int) -> None:
    model, measured = recorded(EngineBenchConfig(batch=3, prompt=10, output=5, context=context))
    assert model.steps[0] == ([10, 10, 10], [context + 10] * 3)
    seen = context + 10
    assert model.steps[1:] == [([1, 1, 1], [seen + step] * 3) for step in range(1, 5)]
    assert measured.prefill_s > 0
    assert sum(measured.costs.seconds.values()) <= measured.decode_step_s


def test_the_context_is_not_computed() -> None:
    model, _ = recorded(EngineBenchConfig(batch=1, prompt=1, output=2, context=1024))
    assert model.steps == [([1], [1025]), ([1], [1026])]


def test_prompts_longer_than_a_step_leave_full_decode_steps() -> None:
    config = EngineBenchConfig(batch=3, prompt=1500, output=4)
    model, _ = recorded(config)
    # Five places went to tokens that the first two prompts had generated meanwhile.
    assert [sum(new) for new, _ in model.steps[:5]] == [1024] * 4 + [3 * 1500 - 4 * 1024 + 5]
    assert [new for new, _ in model.steps[5:]] == [[1, 1, 1]] * 3
    longest = max(max(seen) for _, seen in model.steps)
    assert longest <= config.longest


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("prompt", [1, 15, 16, 400])
def test_every_batch_has_room(batch: int, prompt: int) -> None:
    config = EngineBenchConfig(batch=batch, prompt=prompt, output=3, context=BLOCK_SIZE)
    model, _ = recorded(config)
    assert [new for new, _ in model.steps[-2:]] == [[1] * batch] * 2
    assert sum(sum(new) for new, _ in model.steps) >= batch * (prompt + 2)


def test_costs_are_of_a_decode_step() -> None:
    _, short = recorded(EngineBenchConfig(prompt=5, output=2))
    _, long = recorded(EngineBenchConfig(prompt=200, output=9))
    assert short.costs.weight_bytes == long.costs.weight_bytes > 0


def test_a_cache_that_does_not_fit_is_refused_before_it_is_made() -> None:
    model = MiniMaxM2(
        SHAPE,
        dummy_weights(SHAPE, "bf16", device=CPU, dtype=torch.float32),
        select_kernels(CPU),
    )
    config = EngineBenchConfig(batch=4000, context=1 << 40)
    with pytest.raises(ResourceError, match=r"4000 sequences .* smaller --batch"):
        make_cache(model, config)
