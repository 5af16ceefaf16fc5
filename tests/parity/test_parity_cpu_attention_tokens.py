"""A decoding token's attention in the tile registers of AMX: nearly float32."""

from __future__ import annotations

import pytest
import torch
from test_parity_cpu_attention import LIBRARY, NATIVE, Case, error, heads_first, make_case

assert LIBRARY is not None
if LIBRARY.isa != "amx":
    pytest.skip("no AMX here", allow_module_level=True)

DTYPES = [torch.bfloat16, torch.float8_e4m3fn]
LENGTHS = [0, 1, 126, 127, 128, 142, 143, 144, 191, 192, 200, 300, 800, 5000]
# With queries or weights in bfloat16 it would be 1e-3.
TOLERANCE = 2e-5


def rounded(case: Case) -> torch.Tensor:
    where = (case.query_start_loc, case.seq_lens, case.block_table)
    return NATIVE.paged_attention(case.q, case.keys, case.values, *where, may_round=True)


def with_cache(case: Case, dtype: torch.dtype) -> Case:
    case.keys, case.values = heads_first(case.keys.to(dtype)), heads_first(case.values.to(dtype))
    return case


@pytest.mark.parametrize("group", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("head_dim", [32, 48, 64, 96, 128, 192])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_float32(group: int, head_dim: int, dtype: torch.dtype) -> None:
    case = make_case([(1, length) for length in LENGTHS], (3 * group, 3, head_dim), seed=group)
    ours = rounded(with_cache(case, dtype))
    case.keys, case.values = case.keys.float(), case.values.float()
    assert error(ours, case.expected()) < TOLERANCE


@pytest.mark.parametrize("group", [3, 4, 6, 8])
@pytest.mark.parametrize(
    ("head_dim", "dtype"), [(32, DTYPES[0]), (128, DTYPES[0]), (64, DTYPES[1])]
)
def test_the_tiles_are_used(group: int, head_dim: int, dtype: torch.dtype) -> None:
    """Their results are not the exact kernel's to the last bit; with few keys that one computes."""
    case = make_case([(1, 20), (1, 300)], (2 * group, 2, head_dim), seed=group)
    ours, exact = rounded(with_cache(case, dtype)), case.native()
    assert torch.equal(ours[0], exact[0])
    assert not torch.equal(ours[1], exact[1])


@pytest.mark.parametrize("block_size", [3, 16, 48, 64, 100])
def test_block_sizes(block_size: int) -> None:
    case = make_case([(1, length) for length in LENGTHS], block_size=block_size)
    ours = rounded(with_cache(case, torch.bfloat16))
    case.keys, case.values = case.keys.float(), case.values.float()
    assert error(ours, case.expected()) < TOLERANCE


@pytest.mark.parametrize("group", [4, 6])
def test_int8_keys_and_values_have_their_scales(group: int) -> None:
    case = make_case([(1, length) for length in LENGTHS], (2 * group, 2, 64), seed=group)
    codes, scales, floats = [], [], []
    for cache in (case.keys, case.values):
        scale = cache.abs().amax(-1) / 127
        code = (cache / scale[..., None]).nan_to_num(0).round().to(torch.int8)
        codes.append(heads_first(code))
        scales.append(scale.transpose(1, 2).contiguous().transpose(1, 2))  # NaN where none is
        floats.append(code.float() * scale[..., None])
    where = (case.query_start_loc, case.seq_lens, case.block_table)
    ours = NATIVE.paged_attention(case.q, *codes, *where, *scales, may_round=True)
    case.keys, case.values = floats
    assert error(ours, case.expected()) < TOLERANCE


@pytest.mark.parametrize("spread", [1e-6, 12.0])
def test_scores_small_and_large(spread: float) -> None:
    """Of scores of hundreds a weight's relative error is their absolute one."""
    case = make_case([(1, length) for length in LENGTHS], spread=spread)
    ours = rounded(with_cache(case, torch.bfloat16))
    case.keys, case.values = case.keys.float(), case.values.float()
    assert error(ours, case.expected()) < (1e-3 if spread > 1 else TOLERANCE)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 70, 699])
@pytest.mark.parametrize("of", ["keys", "values"])
def test_what_is_not_finite_spoils_its_head_and_sequence(wrong: float, place: int, of: str) -> None:
    case = with_cache(make_case([(1, 699), (1, 200)], (12, 2, 64)), torch.bfloat16)
    before = rounded(case)
    slot = int(case.block_table[0, place // 16])
    getattr(case, of)[slot, place % 16, 1] = torch.nan
    after = rounded(case)
    assert after[0, 6:].isnan().all()
    assert torch.equal(after[0, :6], before[0, :6])
    assert torch.equal(after[1], before[1])


def test_a_token_does_not_depend_on_its_company_or_the_threads() -> None:
    case = with_cache(make_case([(1, length) for length in LENGTHS]), torch.bfloat16)
    before = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(rounded(case))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    for index, length in enumerate(LENGTHS):
        assert torch.equal(
            rounded(case.part(index, index, index + 1, length + 1)), results[0][[index]]
        )
