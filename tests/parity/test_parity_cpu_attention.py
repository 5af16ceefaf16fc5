"""The native attention against the reference, over caches of NaN where nothing was written."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from m2serve.kernels import reference
from m2serve.kernels.cpu_attention import CpuTokenKernels
from m2serve.kernels.cpu_library import load_cpu_library

LIBRARY = load_cpu_library()
if LIBRARY is None:
    pytest.skip("no native kernels here", allow_module_level=True)
NATIVE = CpuTokenKernels(LIBRARY)

HEADS = [(48, 8, 128), (16, 4, 64), (5, 1, 32), (4, 4, 24), (6, 2, 40), (7, 7, 16), (3, 1, 1)]
TOLERANCE = 1e-5


def heads_first(cache: torch.Tensor) -> torch.Tensor:
    """The same, in the order in memory the native library wants."""
    return cache.transpose(1, 2).contiguous().transpose(1, 2)


@dataclass
class Case:
    q: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor

    def native(self) -> torch.Tensor:
        keys, values = heads_first(self.keys), heads_first(self.values)
        where = (self.query_start_loc, self.seq_lens, self.block_table)
        return NATIVE.paged_attention(self.q, keys, values, *where)

    def part(self, sequence: int, start: int, end: int, seq_len: int) -> Case:
        """Rows start..end alone, which are of one sequence, when it has seq_len tokens."""
        return Case(
            self.q[start:end],
            self.keys,
            self.values,
            torch.tensor([0, end - start], dtype=torch.int32),
            torch.tensor([seq_len], dtype=torch.int32),
            self.block_table[sequence : sequence + 1],
        )

    def expected(self) -> torch.Tensor:
        """In float64, so that the error is ours alone."""
        q, keys, values = (tensor.double() for tensor in (self.q, self.keys, self.values))
        where = (self.query_start_loc, self.seq_lens, self.block_table)
        return reference.paged_attention(q, keys, values, *where)


def make_case(
    sequences: list[tuple[int, int]],
    heads: tuple[int, int, int] = (16, 4, 64),
    block_size: int = 16,
    seed: int = 0,
    spread: float = 1.0,
) -> Case:
    """`sequences`: (new tokens, tokens before them) each; blocks in shuffled order."""
    generator = torch.Generator().manual_seed(seed)
    num_heads, kv_heads, head_dim = heads
    lens = [new + old for new, old in sequences]
    widths = [-(-length // block_size) for length in lens]
    free = list(range(sum(widths) + 3))
    random.Random(seed).shuffle(free)
    size = (len(free), block_size, kv_heads, head_dim)
    keys, values = torch.full(size, torch.nan), torch.full(size, torch.nan)
    table = torch.full((len(sequences), max(widths) + 1), free.pop(), dtype=torch.int32)
    for row, length, width in zip(table, lens, widths, strict=True):
        blocks = [free.pop() for _ in range(width)]
        row[:width] = torch.tensor(blocks)
        slots = torch.tensor([blocks[p // block_size] * block_size + p % block_size
                              for p in range(length)])  # fmt: skip
        for cache in (keys, values):
            fresh = torch.randn(length, kv_heads, head_dim, generator=generator) * spread
            cache.view(-1, kv_heads, head_dim)[slots] = fresh
    counts = torch.tensor([0, *(new for new, _ in sequences)])
    q = torch.randn(int(counts.sum()), num_heads, head_dim, generator=generator) * spread
    starts = counts.cumsum(0).to(torch.int32)
    return Case(q, keys, values, starts, torch.tensor(lens, dtype=torch.int32), table)


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert not ours.isnan().any()
    return float((ours - theirs).abs().max() / theirs.abs().max())


MIXED = [(1, 0), (1, 36), (17, 0), (5, 60), (1, 300), (33, 31), (1, 15), (2, 777), (1, 1400)]


@pytest.mark.parametrize("group", range(1, 10))
@pytest.mark.parametrize("head_dim", [8, 20, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_decoding_tokens_of_any_group(group: int, head_dim: int, dtype: torch.dtype) -> None:
    sequences = [(1, length) for length in (0, 1, 5, 62, 63, 64, 200, 300, 800)]
    case = make_case(sequences, (2 * group, 2, head_dim), seed=group)
    case.keys, case.values = case.keys.to(dtype), case.values.to(dtype)
    ours = case.native()
    case.keys, case.values = case.keys.float(), case.values.float()
    assert error(ours, case.expected()) < TOLERANCE


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 3, 70, 300, 699])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 6, 8])
def test_a_wrong_key_spoils_a_decoding_token(group: int, place: int, wrong: float) -> None:
    case = make_case([(1, 699), (1, 200)], (2 * group, 2, 32), seed=group)
    before = case.native()
    slot = int(case.block_table[0, place // 16]) * 16 + place % 16
    case.keys.view(-1, 2, 32)[slot, 1] = wrong
    after = case.native()
    assert after[0, group:].isnan().all() == bool(case.expected()[0, group:].isnan().all())
    assert torch.equal(after[0, :group], before[0, :group])
    assert torch.equal(after[1], before[1])
    case.keys.view(-1, 2, 32)[slot, 1] = torch.nan
    assert case.native()[0, group:].isnan().all()


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_a_step_of_prefills_and_decodes(heads: tuple[int, int, int]) -> None:
    case = make_case(MIXED, heads)
    assert error(case.native(), case.expected()) < TOLERANCE


@pytest.mark.parametrize("block_size", [1, 3, 16, 100])
def test_block_sizes(block_size: int) -> None:
    case = make_case(MIXED, block_size=block_size, seed=block_size)
    assert error(case.native(), case.expected()) < TOLERANCE


@pytest.mark.parametrize("length", [1, 63, 64, 65, 255, 256, 257, 512, 1000, 9000])
def test_lengths_around_the_pieces(length: int) -> None:
    case = make_case([(1, length - 1), (min(length, 70), max(length - 70, 0))], (6, 2, 32))
    assert error(case.native(), case.expected()) < TOLERANCE


def test_large_scores_neither_overflow_nor_vanish() -> None:
    case = make_case(MIXED, spread=12.0)
    assert error(case.native(), case.expected()) < 1e-4
    case.keys[...] = 0.0
    assert error(case.native(), case.expected()) < TOLERANCE


def test_a_bfloat16_cache_is_read_exactly() -> None:
    """Bit for bit in a prompt; a decoding token sums along the dimensions in another order."""
    case = make_case(MIXED, (48, 8, 128))
    case.keys, case.values = case.keys.bfloat16(), case.values.bfloat16()
    ours = case.native()
    case.keys, case.values = case.keys.float(), case.values.float()
    theirs = case.native()
    for start, end in zip(*shifted(case.query_start_loc), strict=True):
        if end - start > 1:
            assert torch.equal(ours[start:end], theirs[start:end])
        assert error(ours[start:end], theirs[start:end]) < 1e-6


def test_a_token_does_not_depend_on_its_company_or_the_threads() -> None:
    together = make_case(MIXED)
    expected = {}
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        expected[count] = together.native()
        assert torch.equal(expected[1], expected[count])
    for start, end, alone in each_alone(together):
        assert torch.equal(alone.native(), expected[1][start:end])


def each_alone(case: Case) -> Iterator[tuple[int, int, Case]]:
    """Every sequence as a step of its own, and where its rows are in the case's."""
    for index, (start, end) in enumerate(zip(*shifted(case.query_start_loc), strict=True)):
        yield start, end, case.part(index, start, end, int(case.seq_lens[index]))


def shifted(starts: torch.Tensor) -> tuple[list[int], list[int]]:
    return starts[:-1].tolist(), starts[1:].tolist()


def test_a_prompt_in_chunks_is_the_whole_prompt() -> None:
    """Bit for bit; a chunk of one token is computed as a decoding one, in another order."""
    whole = make_case([(200, 30)])
    expected = whole.native()
    start = 0
    for count in (7, 1, 64, 2, 100, 1, 25):
        chunk = whole.part(0, start, start + count, 30 + start + count)
        found, wanted = chunk.native(), expected[start : start + count]
        assert torch.equal(found, wanted) or (count == 1 and error(found, wanted) < 1e-6)
        start += count
    assert start == 200


def test_a_failed_token_spoils_those_that_see_it_and_no_other() -> None:
    case = make_case([(40, 0), (1, 20)])
    before = case.native()
    slot = int(case.block_table[0, 25 // 16]) * 16 + 25 % 16
    case.values.view(-1, *case.values.shape[2:])[slot] = torch.nan
    after = case.native()
    assert after[25:40].isnan().all()
    assert torch.equal(after[:25], before[:25])
    assert torch.equal(after[40:], before[40:])


@pytest.mark.parametrize("seed", range(12))
def test_random_steps(seed: int) -> None:
    chooser = random.Random(seed)
    sequences = [
        (chooser.choice([1, 1, 1, 2, 9, 50, 130]), chooser.choice([0, 0, 3, 64, 250, 600]))
        for _ in range(chooser.randint(1, 6))
    ]
    kv_heads = chooser.randint(1, 4)
    heads = (kv_heads * chooser.randint(1, 9), kv_heads, chooser.choice([8, 20, 32, 64, 96, 128]))
    case = make_case(sequences, heads, chooser.choice([2, 8, 16, 31]), seed)
    assert error(case.native(), case.expected()) < TOLERANCE
