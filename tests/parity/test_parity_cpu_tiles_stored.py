"""BF16 weights in AMX tiles as they are stored: it is the activations that are turned."""

from __future__ import annotations

import ctypes
import functools
import mmap

import pytest
import torch
from stored import make_weight
from test_parity_cpu_experts import assert_near, hot_ids, spread_ids, tamed
from test_parity_cpu_tiles import (
    LIBRARY,
    assert_tiles,
    expected_experts,
    matmul,
)
from threads import of_threads

from m2serve.checkpoint.weights import DenseWeight
from m2serve.kernels import reference

pytestmark = pytest.mark.skipif(LIBRARY is None or LIBRARY.isa != "amx", reason="no AMX here")

NUM_TOKENS = (3, 15, 16, 17, 31, 32, 33, 64, 65, 130, 530)


@pytest.mark.parametrize("columns", [32, 96, 768, 1056, 4096])
@pytest.mark.parametrize("rows", [16, 17, 33, 90, 300])
def test_products(rows: int, columns: int) -> None:
    """Rows that end in the middle of a tile, and more tokens than meet all of them at once."""
    weight = make_weight("bf16", rows, columns)
    for tokens in NUM_TOKENS if columns == 96 else (3, 40, 150):
        x = torch.randn(tokens, columns) * 10 ** torch.randn(tokens, 1)
        x[0] = 0
        assert_tiles(matmul("bf16").linear(x, weight), x, weight)


def test_a_token_that_is_not_a_number_spoils_no_other() -> None:
    weight = make_weight("bf16", 64, 96)
    x = torch.randn(19, 96)
    good = matmul("bf16").linear(x, weight)
    x[4] = torch.nan
    x[17] = torch.inf
    y = matmul("bf16").linear(x, weight)
    kept = [i for i in range(19) if i not in (4, 17)]
    assert bool(y[4].isnan().all())
    assert torch.equal(y[kept], good[kept])


def test_no_expert_spoils_another_token() -> None:
    w13 = tamed(make_weight("bf16", 64, 96, batch=(4, 2)))
    w2 = tamed(make_weight("bf16", 96, 64, batch=(4,), seed=1))
    x, ids = torch.randn(30, 96), spread_ids(30, 2).clamp(max=3)
    weights = torch.rand(ids.shape)
    good = matmul("bf16").experts(x, w13, w2, weights, ids)
    x[11] = torch.nan
    y = matmul("bf16").experts(x, w13, w2, weights, ids)
    others = [i for i in range(30) if i != 11]
    assert bool(y[11].isnan().all())
    assert torch.equal(y[others], good[others])


def before_nothing(weight: DenseWeight) -> DenseWeight:
    """The same, up to the end of memory behind which a read ends the process."""
    page = mmap.PAGESIZE
    num_bytes = weight.weight.nbytes
    size = -(-num_bytes // page) * page
    memory = mmap.mmap(-1, size + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address + size), ctypes.c_size_t(page), 0) == 0
    values = torch.frombuffer(
        memory, dtype=torch.bfloat16, count=num_bytes // 2, offset=size - num_bytes
    ).view(weight.weight.shape)
    return DenseWeight(values.copy_(weight.weight))


@pytest.mark.parametrize("tokens", [3, 40, 600])
@pytest.mark.parametrize(("hidden", "width"), [(64, 32), (96, 64), (800, 96), (96, 352)])
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_nothing_behind_the_weights_is_read(
    hidden: int, width: int, tokens: int, num_threads: int
) -> None:
    """What comes next is loaded while what came before is multiplied."""
    for rows in (16, 17, 31, 33, 300):
        weight = before_nothing(make_weight("bf16", rows, hidden))
        x = torch.randn(tokens, hidden)
        y = of_threads(num_threads, functools.partial(matmul("bf16").linear, x, weight))
        assert_tiles(y, x, weight)
    w13 = before_nothing(tamed(make_weight("bf16", width, hidden, batch=(3, 2))))
    w2 = before_nothing(tamed(make_weight("bf16", hidden, width, batch=(3,), seed=1)))
    ids = spread_ids(tokens, 3).clamp(max=2)
    weights = torch.rand(ids.shape)
    x = torch.randn(tokens, hidden).bfloat16().float() * hidden**-0.5
    run = functools.partial(matmul("bf16").experts, x, w13, w2, weights, ids)
    y = of_threads(num_threads, run).double()
    assert_near(y, expected_experts(x, w13, w2, weights, ids), 1e-2)


@pytest.mark.parametrize("tokens", [4, 9, 40, 700])
@pytest.mark.parametrize(("hidden", "width"), [(64, 32), (96, 64), (768, 96), (3072, 32)])
def test_experts(hidden: int, width: int, tokens: int) -> None:
    w13 = tamed(make_weight("bf16", width, hidden, batch=(6, 2)))
    w2 = tamed(make_weight("bf16", hidden, width, batch=(6,), seed=1))
    x = torch.randn(tokens, hidden).bfloat16().float() * hidden**-0.5
    spread = spread_ids(tokens, 3).clamp(max=5)
    for ids in (spread, hot_ids(tokens, 3).clamp(max=5)):
        weights = torch.rand(ids.shape)
        y = matmul("bf16").experts(x, w13, w2, weights, ids).double()
        assert_near(y, expected_experts(x, w13, w2, weights, ids), 1e-2)


@pytest.mark.parametrize(
    ("hidden", "width"),
    [(64, 40), (40, 64), (64, 8), (8, 64), (40, 24)],
    ids=["w13 alone", "w2 alone", "narrow", "few columns", "neither"],
)
@pytest.mark.parametrize("tokens", [6, 20, 60])
def test_experts_of_which_one_matrix_is_no_whole_tiles(
    hidden: int, width: int, tokens: int
) -> None:
    w13 = tamed(make_weight("bf16", width, hidden, batch=(4, 2)))
    w2 = tamed(make_weight("bf16", hidden, width, batch=(4,), seed=1))
    x = torch.randn(tokens, hidden).bfloat16().float()
    ids = spread_ids(tokens, 2).clamp(max=3)
    weights = torch.rand(ids.shape)
    expected = reference.experts(x, w13, w2, weights, ids)
    assert_near(matmul("bf16").experts(x, w13, w2, weights, ids), expected, 2e-2)


def test_any_number_of_threads_gives_the_same() -> None:
    weight = make_weight("bf16", 300, 160)
    w13 = tamed(make_weight("bf16", 96, 160, batch=(4, 2)))
    w2 = tamed(make_weight("bf16", 160, 96, batch=(4,), seed=1))
    x, ids = torch.randn(70, 160), spread_ids(70, 2).clamp(max=3)
    weights = torch.rand(ids.shape)
    product = functools.partial(matmul("bf16").linear, x, weight)
    experts = functools.partial(matmul("bf16").experts, x, w13, w2, weights, ids)
    for run in (product, experts):
        one = of_threads(1, run)
        assert all(torch.equal(of_threads(count, run), one) for count in (2, 5, 13))


@pytest.mark.parametrize(("rows", "columns"), [(1040, 544), (1033, 96), (80, 1056)])
def test_a_prompt_that_few_threads_cut_into_slices(rows: int, columns: int) -> None:
    """One thread and two turn slices for themselves, five share what was turned; the results of
    1,040 rows are whole lines and more than the caches hold.
    """
    weight = make_weight("bf16", rows, columns)
    x = torch.randn(1099, columns)
    one = of_threads(1, lambda: matmul("bf16").linear(x, weight))
    assert_tiles(one, x, weight)
    for count in (2, 5):
        assert torch.equal(of_threads(count, lambda: matmul("bf16").linear(x, weight)), one)


def test_experts_of_a_prompt_that_passes_the_caches() -> None:
    """Both activations are more than four megabytes; the second slice of tokens is small."""
    w13 = tamed(make_weight("bf16", 288, 320, batch=(6, 2)))
    w2 = tamed(make_weight("bf16", 320, 288, batch=(6,), seed=1))
    x = torch.randn(2060, 320).bfloat16().float() * 320**-0.5
    ids = spread_ids(2060, 4).clamp(max=5)
    weights = torch.rand(ids.shape)
    one = of_threads(1, lambda: matmul("bf16").experts(x, w13, w2, weights, ids))
    assert_near(one.double(), expected_experts(x, w13, w2, weights, ids), 1e-2)
    for count in (2, 5):
        again = of_threads(count, lambda: matmul("bf16").experts(x, w13, w2, weights, ids))
        assert torch.equal(again, one)
