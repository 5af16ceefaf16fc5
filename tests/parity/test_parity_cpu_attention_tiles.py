"""A prompt's attention in the tile registers of AMX: queries and weights in bfloat16."""

from __future__ import annotations

import random

import pytest
import torch
from test_parity_cpu_attention import HEADS, LIBRARY, MIXED, NATIVE, Case, each_alone, make_case
from test_parity_cpu_kv_dtypes import HEAD_DIM, Cache, tokens
from test_parity_cpu_kv_dtypes import HEADS as CACHE_HEADS

from m2serve.kernels import reference

assert LIBRARY is not None
if LIBRARY.isa != "amx":
    pytest.skip("no AMX here", allow_module_level=True)

DTYPES = [torch.bfloat16, torch.float8_e4m3fn]
# Of the largest value: a weight is off by 2^-9 of itself at most, and so is the result, again.
MOST, MEAN = 8e-3, 1e-3


def rounded(case: Case, dtype: torch.dtype) -> Case:
    case.q = case.q.bfloat16()
    case.keys, case.values = case.keys.to(dtype), case.values.to(dtype)
    return case


def assert_near(ours: torch.Tensor, expected: torch.Tensor) -> None:
    assert ours.dtype == torch.bfloat16
    error = (ours.double() - expected).abs() / expected.abs().max()
    assert float(error.max()) < MOST
    assert float(error.mean()) < MEAN


def expected_of(case: Case) -> torch.Tensor:
    case.keys, case.values = case.keys.float(), case.values.float()
    return case.expected()


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_mixed_step(heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    case = rounded(make_case(MIXED, heads), dtype)
    ours = case.native()
    assert_near(ours, expected_of(case))


@pytest.mark.parametrize("seed", range(12))
def test_random_steps(seed: int) -> None:
    chooser = random.Random(seed)
    sequences = [
        (chooser.choice([1, 2, 9, 50, 130, 200]), chooser.choice([0, 0, 3, 64, 250, 600]))
        for _ in range(chooser.randint(1, 5))
    ]
    kv_heads = chooser.randint(1, 4)
    heads = (kv_heads * chooser.randint(1, 9), kv_heads, chooser.choice([8, 20, 32, 64, 96, 128]))
    case = rounded(
        make_case(sequences, heads, chooser.choice([2, 8, 16, 31]), seed), DTYPES[seed % 2]
    )
    ours = case.native()
    assert_near(ours, expected_of(case))


@pytest.mark.parametrize("spread", [12.0, 3000.0])
def test_large_scores_choose_one_key(spread: float) -> None:
    """A score that is the largest weighs exactly one, however far it is from zero."""
    case = rounded(make_case([(90, 70)], spread=spread), torch.bfloat16)
    ours = case.native()
    assert_near(ours, expected_of(case))


@pytest.mark.parametrize("group", [1, 2, 6, 9])
def test_int8_keys_and_values_have_their_scales(group: int) -> None:
    cache = Cache(torch.int8, tokens())
    for scales in cache.parts[2:]:
        scales.nan_to_num_(0)
    starts = torch.tensor([0, 2, 32], dtype=torch.int32)
    lens = torch.tensor([45, 37], dtype=torch.int32)
    table = torch.tensor([[2, 0, 1], [1, 2, 0]], dtype=torch.int32)
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(32, CACHE_HEADS * group, HEAD_DIM, generator=generator).bfloat16()
    ours = NATIVE.paged_attention(q, *cache.parts[:2], starts, lens, table, *cache.parts[2:])
    floats = (cache.floats(0).double(), cache.floats(1).double())
    assert_near(ours, reference.paged_attention(q.double(), *floats, starts, lens, table))


def test_the_scale_of_a_key_that_is_not_seen_may_be_nan() -> None:
    cache = Cache(torch.int8, tokens())
    for scales in cache.parts[2:]:
        scales.nan_to_num_(0)
        scales[1, 15] = torch.nan  # the last slot of the sequence, which its last token alone sees
    starts, lens = (torch.tensor(x, dtype=torch.int32) for x in ([0, 20], [32]))
    table = torch.tensor([[0, 1]], dtype=torch.int32)
    q = torch.randn(20, CACHE_HEADS * 2, HEAD_DIM).bfloat16()
    ours = NATIVE.paged_attention(q, *cache.parts[:2], starts, lens, table, *cache.parts[2:])
    assert bool(ours[:19].isfinite().all())
    assert bool(ours[19].isnan().all())


def test_a_prompt_in_chunks_is_the_whole_prompt() -> None:
    whole = rounded(make_case([(200, 30)]), torch.bfloat16)
    expected = whole.native()
    start = 0
    for count in (7, 64, 2, 100, 3, 24):
        chunk = whole.part(0, start, start + count, 30 + start + count)
        assert torch.equal(chunk.native(), expected[start : start + count])
        start += count
    assert start == 200


def test_a_token_does_not_depend_on_its_company_or_the_threads() -> None:
    together = rounded(make_case(MIXED), torch.bfloat16)
    before = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(together.native())
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    for start, end, alone in each_alone(together):
        assert torch.equal(alone.native(), results[0][start:end])


def test_a_failed_token_spoils_its_own_sequence_alone() -> None:
    """All of a tile of its keys, where the vectors spoil those that see it: the request fails."""
    case = rounded(make_case([(40, 0), (30, 20)]), torch.bfloat16)
    before = case.native()
    slot = int(case.block_table[0, 25 // 16]) * 16 + 25 % 16
    case.values.view(-1, *case.values.shape[2:])[slot] = torch.nan
    after = case.native()
    assert bool(after[25:40].isnan().all())
    assert torch.equal(after[40:], before[40:])


def test_a_float32_cache_and_float32_queries_stay_exact() -> None:
    case = make_case([(60, 50)])
    case.q = case.q.bfloat16().float()
    exact = case.native()
    case.keys, case.values = case.keys.bfloat16(), case.values.bfloat16()
    from_bfloat16 = case.native()
    case.keys, case.values = case.keys.float(), case.values.float()
    assert torch.equal(from_bfloat16, case.native())
    assert not torch.equal(exact, from_bfloat16)
    case.q = case.q.bfloat16()
    assert torch.equal(case.native(), from_bfloat16.bfloat16())
