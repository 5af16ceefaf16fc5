"""Requantising: what comes back exactly, how far the rest may be off, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_dequantize import from_weight

from m2serve.checkpoint import requantize as module
from m2serve.checkpoint.formats import Dense, Fp8Block, Int4Awq, Int8Ascend, StorageFormat
from m2serve.checkpoint.layout import LinearPlan
from m2serve.checkpoint.names import LinearSpec
from m2serve.checkpoint.requantize import (
    bytes_saved,
    check_requantizable,
    is_requantized,
    requantize,
)
from m2serve.checkpoint.weights import DenseWeight, Fp8BlockWeight, Int8Weight
from m2serve.errors import CheckpointError, UsageError

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
TINY = torch.finfo(torch.float32).tiny


def plan(format: StorageFormat, rows: int = 256, columns: int = 384) -> LinearPlan:
    name = "model.layers.0.self_attn.q_proj"
    return LinearPlan(LinearSpec(name, rows, columns), format, {"weight": f"{name}.weight"}, 0)


def meaning(weight: DenseWeight | Fp8BlockWeight | Int8Weight) -> torch.Tensor:
    """Read by the tests' own dequantiser, in float64."""
    return torch.from_numpy(from_weight(weight)).double()


def scale_of_each(weight: Fp8BlockWeight) -> torch.Tensor:
    rows, columns = weight.weight.shape
    spread = weight.scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return spread[:rows, :columns]


def original(rows: int, columns: int, seed: int, largest: int = 0x7E) -> Fp8BlockWeight:
    """Random codes of every magnitude, the largest in each block, and scales that are no powers."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.randint(0, largest + 1, (rows, columns), generator=generator)
    sign = torch.randint(0, 2, (rows, columns), generator=generator) * 128
    magnitude[::128, ::128] = largest
    codes = (magnitude + sign).to(torch.uint8).view(torch.float8_e4m3fn)
    blocks = (math.ceil(rows / 128), math.ceil(columns / 128))
    scale = torch.exp(torch.randn(blocks, generator=generator) * 3 - 8)
    return Fp8BlockWeight(codes, scale)


def dequantized(weight: Fp8BlockWeight, dtype: torch.dtype) -> torch.Tensor:
    return (weight.weight.float() * scale_of_each(weight)).to(dtype)


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


# What is exact


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("rows", "columns"), [(256, 384), (200, 130), (1, 1), (129, 127)])
def test_fp8_that_became_bf16_comes_back(rows: int, columns: int, seed: int) -> None:
    source = original(rows, columns, seed)
    stored = dequantized(source, torch.bfloat16)
    made = requantize("x", stored, "fp8")
    assert isinstance(made, Fp8BlockWeight)
    assert same_bytes(made.weight, source.weight)
    assert torch.equal(dequantized(made, torch.bfloat16), stored)
    assert (made.scale / source.scale - 1).abs().max() <= 2**-8


def test_the_scale_comes_back_too_where_bf16_can_hold_448_times_it() -> None:
    source = original(256, 256, seed=1)
    source = Fp8BlockWeight(source.weight, torch.tensor([[2.0**-9, 2.0**-20], [1.25e0, 13 / 64]]))
    made = requantize("x", dequantized(source, torch.bfloat16), "fp8")
    assert isinstance(made, Fp8BlockWeight)
    assert same_bytes(made.weight, source.weight)
    assert torch.equal(made.scale, source.scale)


def test_the_scale_is_not_generally_recoverable() -> None:
    """Two originals with one BF16 copy: nothing can tell them apart."""
    source = original(128, 128, seed=3)
    nearby = Fp8BlockWeight(source.weight, source.scale * (1 + 2**-20))
    stored = dequantized(source, torch.bfloat16)
    assert not torch.equal(nearby.scale, source.scale)
    assert torch.equal(dequantized(nearby, torch.bfloat16), stored)


def test_fp8_that_became_float32_comes_back_with_its_scale() -> None:
    source = original(256, 384, seed=2)
    made = requantize("x", dequantized(source, torch.float32), "fp8")
    assert isinstance(made, Fp8BlockWeight)
    assert same_bytes(made.weight, source.weight)
    assert (made.scale / source.scale - 1).abs().max() <= 2**-22


def test_blocks_whose_largest_code_is_not_448_are_only_rounded() -> None:
    source = original(128, 128, seed=4, largest=0x7D)  # 416
    stored = dequantized(source, torch.bfloat16)
    made = requantize("x", stored, "fp8")
    assert isinstance(made, Fp8BlockWeight)
    assert not same_bytes(made.weight, source.weight)
    check_fp8_bound(stored, made)


def test_one_block_that_is_not_fp8_leaves_the_others_exact() -> None:
    source = original(256, 256, seed=5)
    stored = dequantized(source, torch.bfloat16)
    generator = torch.Generator().manual_seed(5)
    stored[:128, 128:] = torch.randn(128, 128, generator=generator)
    made = requantize("x", stored, "fp8")
    assert isinstance(made, Fp8BlockWeight)
    back = dequantized(made, torch.bfloat16)
    assert torch.equal(back[:, :128], stored[:, :128])
    assert torch.equal(back[128:], stored[128:])
    amax = stored[:128, 128:].float().abs().max()
    assert made.scale[0, 1] == amax / 448
    check_fp8_bound(stored, made)


def test_int8_codes_come_back() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (64, 256), generator=generator)
    codes[:, 3] = -127
    made = requantize("x", codes.float() * 2.0**-7, "int8")
    assert isinstance(made, Int8Weight)
    assert torch.equal(made.weight, codes.to(torch.int8))
    assert torch.equal(made.scale, torch.full((64,), 2.0**-7))


def test_bf16_stays_as_it_is_and_owns_its_memory() -> None:
    stored = torch.randn(5, 7).bfloat16()
    made = requantize("x", stored, "bf16")
    assert isinstance(made, DenseWeight)
    expected = stored.clone()
    stored.zero_()
    assert torch.equal(made.weight, expected)


# How far the rest is off


def check_fp8_bound(stored: torch.Tensor, made: Fp8BlockWeight) -> None:
    """Half a step of three mantissa bits, or of the subnormals; and a rounding of the division."""
    exact, scale = stored.double(), scale_of_each(made).double()
    bound = torch.maximum(exact.abs() / 16, scale / 1024) * (1 + 2**-20)
    error = (meaning(made) - exact).abs()
    assert bool(torch.isfinite(made.scale).all())
    assert bool((made.scale > 0).all())
    assert bool((error <= bound).all()), (error / bound).max()


def check_int8_bound(stored: torch.Tensor, made: Int8Weight) -> None:
    error = (meaning(made) - stored.double()).abs()
    assert bool(torch.isfinite(made.scale).all())
    assert bool((made.scale > 0).all())
    assert bool((error <= made.scale.double()[:, None] * (0.5 + 2**-16)).all())


def check_bounds(stored: torch.Tensor) -> None:
    fp8, int8 = requantize("x", stored, "fp8"), requantize("x", stored, "int8")
    assert isinstance(fp8, Fp8BlockWeight)
    assert isinstance(int8, Int8Weight)
    check_fp8_bound(stored, fp8)
    check_int8_bound(stored, int8)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "outlier", "mixed scales"])
def test_no_element_is_off_by_more_than_the_bound(kind: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    values = torch.randn(200, 300, generator=generator) * 0.02
    if kind == "heavy tails":
        values = values**5
    elif kind == "outlier":
        values[17, 33] = 1000.0
    elif kind == "mixed scales":
        values *= 2.0 ** torch.randint(-12, 12, (200, 1), generator=generator)
    check_bounds(values.to(dtype))


@pytest.mark.parametrize(
    "value",
    [0.0, -0.0, 1e-45, -1e-45, TINY, 1e-39, 3e-38, 448.0, 3.3895313892515355e38, -1e38, 1.0],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_adversarial_values(value: float, dtype: torch.dtype) -> None:
    alone = torch.zeros(130, 140)
    alone[0, 0] = value
    check_bounds(alone.to(dtype))
    check_bounds(torch.full((130, 140), value).to(dtype))
    mixed = torch.tensor([value, 1.0, -1e-30, 0.0]).repeat(5, 40)
    check_bounds(mixed.to(dtype))


@settings(max_examples=200, deadline=None)
@given(
    bits=st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=64),
    columns=st.integers(1, 4),
)
def test_any_finite_bf16(bits: list[int], columns: int) -> None:
    values = torch.tensor(bits, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    values = values[torch.isfinite(values)]
    values = values[: len(values) // columns * columns].view(-1, columns)
    if len(values):
        check_bounds(values)


def test_zero_blocks_and_rows_mean_zero() -> None:
    for format in ("fp8", "int8"):
        made = requantize("x", torch.zeros(130, 10, dtype=torch.bfloat16), format)
        assert isinstance(made, Fp8BlockWeight | Int8Weight)
        assert bool((made.scale == 1).all())
        assert bool((meaning(made) == 0).all())


@pytest.mark.parametrize("format", ["fp8", "int8"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_poisoned_weight_is_named(value: float, format: str) -> None:
    stored = torch.zeros(300, 10, dtype=torch.bfloat16)
    stored[299, 9] = value
    with pytest.raises(CheckpointError, match=r"q_proj\.weight holds NaN or Inf"):
        requantize("q_proj.weight", stored, format)


# Memory


@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_float32_exists_in_slices_only_and_they_change_nothing(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = dequantized(original(700, 200, seed=6), torch.bfloat16)
    stored[130:140] *= 1.5
    whole = requantize("x", stored, format)
    slices: list[int] = []
    check = module.check_finite

    def watched(name: str, values: torch.Tensor) -> None:
        slices.append(len(values))
        check(name, values)

    monkeypatch.setattr(module, "check_finite", watched)
    monkeypatch.setattr(module, "_ELEMENTS_AT_ONCE", 200 * 150)
    sliced = requantize("x", stored, format)
    assert isinstance(whole, Fp8BlockWeight | Int8Weight)
    assert isinstance(sliced, Fp8BlockWeight | Int8Weight)
    assert same_bytes(sliced.weight, whole.weight)
    assert torch.equal(sliced.scale, whole.scale)
    assert sum(slices) == 700
    assert max(slices) == (128 if format == "fp8" else 150)


# What may become what


def test_a_stored_format_is_kept_converted_or_refused() -> None:
    stored = {
        "bf16": Dense(),
        "fp8": Fp8Block((64, 128)),
        "int8": Int8Ascend(static=True),
    }
    for wanted in ("bf16", "fp8", "int8"):
        check_requantizable("--head-format", wanted, [plan(Dense()), plan(stored[wanted])])
        assert is_requantized(plan(Dense()), wanted)
        assert is_requantized(plan(stored[wanted]), wanted) == (wanted == "bf16")
        for other in set(stored) - {wanted, "bf16"}:
            with pytest.raises(UsageError, match=f"--head-format is {wanted}.*q_proj is stored as"):
                check_requantizable("--head-format", wanted, [plan(Dense()), plan(stored[other])])
    check_requantizable("--attention-format", "", [plan(Int4Awq(group_size=128))])
    assert not is_requantized(plan(Dense()), "")


def test_the_refusal_says_what_to_do() -> None:
    with pytest.raises(UsageError) as caught:
        check_requantizable("--attention-format", "fp8", [plan(Int8Ascend(static=False))])
    assert str(caught.value) == (
        "--attention-format is fp8, but model.layers.0.self_attn.q_proj is stored as int8-ascend "
        "(W8A8_DYNAMIC); only BF16, F16 and F32 are converted, so leave the option out"
    )
    with pytest.raises(UsageError, match="--head-format is 'nvfp4'; one of bf16, fp8, int8"):
        check_requantizable("--head-format", "nvfp4", [])


def test_bytes_saved() -> None:
    dense = plan(Dense(), 6144, 3072)
    assert bytes_saved(dense, "fp8", 2) == 6144 * 3072 - 4 * 48 * 24
    assert bytes_saved(dense, "int8", 2) == 6144 * 3072 - 4 * 6144
    assert bytes_saved(dense, "bf16", 4) == 2 * 6144 * 3072
    assert bytes_saved(dense, "bf16", 2) == bytes_saved(dense, "", 2) == 0
    assert bytes_saved(plan(Fp8Block()), "fp8", 2) == 0
