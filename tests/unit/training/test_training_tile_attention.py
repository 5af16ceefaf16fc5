"""Attention in tile registers gives what PyTorch's gives, forward and backward."""

import subprocess
from pathlib import Path

import pytest
import torch

from training import tile_attention
from training.attention import attend

BLOCKS = [(1, 200), (2, 64), (3, 65), (1, 1), (2, 63)]

needs_tiles = pytest.mark.skipif(
    not tile_attention.is_available(tile_attention.HEAD_DIM), reason="needs AMX and a compiler"
)


def heads(scale: float, blocks: list[tuple[int, int]]) -> list[torch.Tensor]:
    """Queries of 6 heads, keys and values of 2."""
    generator = torch.Generator().manual_seed(1)
    tokens = sum(count * length for count, length in blocks)
    shapes = [(tokens, count, tile_attention.HEAD_DIM) for count in (6, 2, 2)]
    sides = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    return [sides[0] * scale, *sides[1:]]


def attended_and_slopes(
    given: list[torch.Tensor], blocks: list[tuple[int, int]], in_tiles: bool
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    sides = [x.clone() if in_tiles else x.float() for x in given]
    for side in sides:
        side.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=in_tiles):
        out = attend(sides[0], sides[1], sides[2], blocks)
    slopes = torch.randn(out.shape, generator=generator).bfloat16()
    out.backward(slopes if in_tiles else slopes.float())
    return [out.detach(), *(side.grad for side in sides if side.grad is not None)]


@needs_tiles
@pytest.mark.parametrize("scale", [1.0, 8.0, 40.0])
def test_the_same_as_in_pytorch(scale: float) -> None:
    """Documents of every length around a block; scores up to hundreds."""
    given = heads(scale, BLOCKS)
    expected = attended_and_slopes(given, BLOCKS, in_tiles=False)
    for name, got, want in zip(
        ("out", "q", "k", "v"), attended_and_slopes(given, BLOCKS, True), expected, strict=True
    ):
        assert got.dtype == torch.bfloat16
        off = float((got.float() - want).norm() / want.norm())
        assert off < 0.01, f"{name}: {off}"


@needs_tiles
def test_no_document_sees_another() -> None:
    given = heads(1.0, BLOCKS)
    alone = attended_and_slopes([x[:200] for x in given], BLOCKS[:1], in_tiles=True)[0]
    together = attended_and_slopes(given, BLOCKS, in_tiles=True)[0]
    assert torch.equal(together[:200], alone)


@needs_tiles
def test_several_threads_give_the_same_to_the_bit() -> None:
    given = heads(1.0, BLOCKS)
    one = attended_and_slopes(given, BLOCKS, in_tiles=True)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 2)
    try:
        several = attended_and_slopes(given, BLOCKS, in_tiles=True)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, several, strict=True))


def test_other_heads_are_left_to_pytorch() -> None:
    assert not tile_attention.is_available(16)


@needs_tiles
def test_a_compiler_that_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise subprocess.CalledProcessError(1, "g++", stderr="unrecognised option\nmore")

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tile_attention._library.__wrapped__() is None
    error = capsys.readouterr().err
    assert "unrecognised option" in error
    assert "more" not in error
