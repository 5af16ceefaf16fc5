"""Attention in tile registers gives what PyTorch's gives, forward and backward."""

import stat
from pathlib import Path

import pytest
import torch

from training import tile_attention
from training.attention import attend
from training.precision import has_amx

BLOCKS = [(1, 200), (2, 64), (3, 65), (1, 1), (2, 63), (1, 1100)]
TOKENS = [count * length for count, length in BLOCKS]


@pytest.fixture
def tiles() -> None:
    """Not when tests are collected: it builds the library."""
    if not tile_attention.is_available(tile_attention.HEAD_DIM):
        pytest.skip("needs AMX and a compiler that knows it")


def heads(scale: float, num_heads: tuple[int, int] = (6, 2)) -> list[torch.Tensor]:
    """Queries, keys and values."""
    generator = torch.Generator().manual_seed(1)
    queries, keys = num_heads
    shapes = [(sum(TOKENS), count, tile_attention.HEAD_DIM) for count in (queries, keys, keys)]
    sides = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    return [sides[0] * scale, *sides[1:]]


def with_gradients(
    given: list[torch.Tensor], blocks: list[tuple[int, int]], in_tiles: bool = True
) -> list[torch.Tensor]:
    """What is attended, and the gradients by queries, keys and values."""
    q, k, v = (x.clone() if in_tiles else x.float() for x in given)
    for side in (q, k, v):
        side.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=in_tiles):
        out = attend(q, k, v, blocks)
    generator = torch.Generator().manual_seed(2)
    grad = torch.randn(out.shape, generator=generator).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("num_heads", [(6, 2), (3, 1), (2, 2)])
@pytest.mark.parametrize("scale", [1.0, 8.0, 40.0])
def test_the_same_as_in_pytorch(scale: float, num_heads: tuple[int, int]) -> None:
    """Documents of every length around a block; scores up to hundreds."""
    given = heads(scale, num_heads)
    expected = with_gradients(given, BLOCKS, in_tiles=False)
    parts = zip(("out", "q", "k", "v"), with_gradients(given, BLOCKS), expected, strict=True)
    for name, got, want in parts:
        assert got.dtype == torch.bfloat16
        off = float((got.float() - want).norm() / want.norm())
        assert off < 0.01, f"{name}: {off}"


@pytest.mark.usefixtures("tiles")
def test_no_document_sees_another() -> None:
    """Also not backwards: other numbers in the first change nothing behind it."""
    given = heads(1.0)
    changed = [x.clone() for x in given]
    for side in changed:
        side[: TOKENS[0]] = 3
    before, after = with_gradients(given, BLOCKS), with_gradients(changed, BLOCKS)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[TOKENS[0] :], other[TOKENS[0] :])
        assert not torch.equal(one[: TOKENS[0]], other[: TOKENS[0]])


@pytest.mark.usefixtures("tiles")
def test_several_threads_give_the_same_to_the_bit() -> None:
    given = heads(1.0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = with_gradients(given, BLOCKS)
        torch.set_num_threads(4)
        several = with_gradients(given, BLOCKS)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, several, strict=True))


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("side", [0, 1, 2])
def test_not_a_number_stays_one(side: int) -> None:
    given = heads(1.0)
    given[side][70] = torch.nan
    out = with_gradients([x[:200] for x in given], BLOCKS[:1])[0]
    assert out[70].isnan().any()


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("blocks", [BLOCKS[:-1], [*BLOCKS, (1, 1)]])
def test_documents_that_do_not_fit_are_refused(blocks: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="tokens"):
        with_gradients(heads(1.0), blocks)


@pytest.mark.usefixtures("tiles")
def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="heads of"):
        with_gradients(heads(1.0, num_heads=(5, 2)), BLOCKS)


def test_other_heads_are_left_to_pytorch() -> None:
    assert not tile_attention.is_available(16)


@pytest.mark.skipif(not has_amx(), reason="needs AMX")
@pytest.mark.parametrize("is_asked", ['test "$1" = --version', "false"])
def test_a_compiler_that_fails_is_named(
    is_asked: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both where it only tells its version and where it does not even do that."""
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f"#!/bin/sh\n{is_asked} && exit 0\necho 'from here:' >&2\necho 'error: -mamx' >&2\nexit 1\n"
    )
    compiler.chmod(stat.S_IRWXU)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tile_attention._library.__wrapped__() is None
    assert "slower: error: -mamx\n" in capsys.readouterr().err


@pytest.mark.skipif(not has_amx(), reason="needs AMX")
def test_no_compiler_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert tile_attention._library.__wrapped__() is None
    assert "no C++ compiler" in capsys.readouterr().err
