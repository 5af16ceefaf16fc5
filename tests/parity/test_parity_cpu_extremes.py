"""The native kernels at the edges: values, sizes and steps that real ones seldom have.

scripts/sanitize.sh runs this against a library that watches its memory, where a read one byte past
the end of a tensor fails.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from stored import FORMATS, make_weight, num_columns
from test_parity_cpu_attention import Case, error, make_case
from test_parity_cpu_experts import tamed
from test_parity_cpu_linear import INTEGER_FORMATS, assert_near

from m2serve.bench.dummy import dummy_weights
from m2serve.bench.shapes import MID
from m2serve.checkpoint.weights import (
    DenseWeight,
    Fp8BlockWeight,
    Int4Weight,
    Int8Weight,
    Mxfp4Weight,
    Nvfp4Weight,
    Weight,
)
from m2serve.kernels import reference
from m2serve.kernels.cpu_library import load_cpu_library
from m2serve.kernels.cpu_linear import CpuActivation, CpuMatmul
from m2serve.model.batch import ForwardBatch
from m2serve.model.minimax_m2 import allocate_kv_cache
from m2serve.model.native import NativeMiniMaxM2, make_model

LIBRARY = load_cpu_library()
if LIBRARY is None:
    pytest.skip("no native kernels here", allow_module_level=True)

# One to two tiles of tokens, either side of where the products change their way.
NUM_TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 47, 48, 49)


def matmul(activation: CpuActivation = "auto") -> CpuMatmul:
    assert LIBRARY is not None
    return CpuMatmul(LIBRARY, activation)


def activations_of(weight: Weight, format: str) -> tuple[CpuActivation, ...]:
    if format not in INTEGER_FORMATS:
        return ("auto",)
    described, _ = matmul("int8").describe(weight)
    assert described is not None
    assert described.interleaved, "this would test float activations twice"
    return ("auto", "int8")


@pytest.mark.parametrize("format", FORMATS)
def test_the_smallest_matrices(format: str) -> None:
    """As few columns as the format has, and one row to one more than a tile has."""
    smallest = FORMATS[format][1]
    for columns in {smallest, smallest * 3, 31, 33, 511, 512, 513, 545} - set(range(smallest)):
        for rows in (2, 3, 4, 5, 8, 9):
            weight = make_weight(format, rows, columns)
            for num_tokens in (1, 4, 5, 7):
                x = torch.randn(num_tokens, num_columns(weight))
                assert_near(matmul().linear(x, weight), x, weight)
        for rows in (16, 32):
            weight = make_weight(format, rows, columns)
            for num_tokens in (1, 4, 5, 7, 13):
                x = torch.randn(num_tokens, num_columns(weight))
                y = matmul("int8").linear(x, weight)
                assert y.shape == (num_tokens, rows)
                assert y.isfinite().all()


def first_row(weight: Weight) -> Weight:
    changes = {
        field.name: getattr(weight, field.name)[:1].clone()
        for field in dataclasses.fields(weight)
        if isinstance(getattr(weight, field.name), torch.Tensor) and field.name != "global_scale"
    }
    return dataclasses.replace(weight, **changes)


@pytest.mark.parametrize("format", FORMATS)
def test_one_row(format: str) -> None:
    weight = first_row(tamed(make_weight(format, 2, 640)))
    for num_tokens in NUM_TOKENS:
        x = torch.randn(num_tokens, num_columns(weight))
        assert_near(matmul().linear(x, weight), x, weight)


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_stay_zeros(format: str) -> None:
    """Whole matrices of the scale or the code zero, and activations of zero."""
    weight = tamed(make_weight(format, 32, 640))
    zero = dataclasses.replace(weight, **{
        name: torch.zeros_like(getattr(weight, name))
        for name in ("scale", "weight")
        if isinstance(getattr(weight, name, None), torch.Tensor)
    })  # fmt: skip
    for activation in activations_of(weight, format):
        for num_tokens in (1, 4, 5, 50):
            x = torch.randn(num_tokens, num_columns(weight)) * 1e18
            y = matmul(activation).linear(x, zero)
            # An exponent of zero is 2^-127, the only scale that cannot be zero.
            assert (y.abs() <= (1e-3 if format == "mxfp4" else 0)).all()
            assert (matmul(activation).linear(0 * x, weight) == 0).all()


def saturated(format: str, rows: int, columns: int) -> Weight:
    """Every code and scale as large as the format has, short of infinity."""
    weight = make_weight(format, rows, columns)
    match weight:
        case DenseWeight():
            large = min(torch.finfo(weight.weight.dtype).max, 1e34)
            return DenseWeight(torch.full_like(weight.weight, large))
        case Fp8BlockWeight():
            codes = torch.full_like(weight.weight.view(torch.uint8), 0x7E)
            scale = torch.full_like(weight.scale, 1e18)
            return dataclasses.replace(weight, weight=codes.view(torch.float8_e4m3fn), scale=scale)
        case Nvfp4Weight():
            scale = torch.full_like(weight.scale.float(), 448).to(torch.float8_e4m3fn)
            packed = torch.full_like(weight.packed, 0xF7)  # 6 and -6
            return dataclasses.replace(
                weight, packed=packed, scale=scale, global_scale=torch.tensor(1e29)
            )
        case Mxfp4Weight():
            return Mxfp4Weight(
                torch.full_like(weight.packed, 0x77), torch.full_like(weight.scale, 235)
            )
        case Int4Weight():
            large = min(torch.finfo(weight.scale.dtype).max, 1e33)
            packed = torch.full_like(weight.packed, 0xF0)
            zeros = None if weight.zero_point is None else torch.full_like(weight.zero_point, 15)
            return dataclasses.replace(
                weight, packed=packed, scale=torch.full_like(weight.scale, large), zero_point=zeros
            )
        case Int8Weight():
            codes = torch.full_like(weight.weight, -128)
            return dataclasses.replace(
                weight, weight=codes, scale=torch.full_like(weight.scale, 1e31)
            )


@pytest.mark.parametrize("format", FORMATS)
def test_the_largest_scales_do_not_overflow_on_the_way(format: str) -> None:
    """The sums lie within float32, so no product on the way to them may leave it."""
    weight = saturated(format, 16, 640)
    for num_tokens in (1, 3, 5, 48):
        x = torch.rand(num_tokens, num_columns(weight)) + 0.5
        y = matmul().linear(x, weight)
        assert y.isfinite().all()
        assert_near(y, x, weight)
        for activation in activations_of(weight, format):
            assert matmul(activation).linear(x, weight).isfinite().all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tiny", [1e-38, 1e-40, 1.5e-45])
def test_subnormal_activations(format: str, tiny: float) -> None:
    weight = tamed(make_weight(format, 16, 640))
    for num_tokens in (1, 5):
        x = torch.full((num_tokens, num_columns(weight)), tiny)
        assert_near(matmul().linear(x, weight), x, weight)
        for activation in activations_of(weight, format):
            assert matmul(activation).linear(x, weight).abs().max() < 1e-30


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_row(format: str, wrong: float) -> None:
    weight = tamed(make_weight(format, 16, 640))
    for activation in activations_of(weight, format):
        for num_tokens in (3, 8, 20):
            x = torch.randn(num_tokens, num_columns(weight))
            expected = matmul(activation).linear(x, weight)
            x[1, 37] = wrong
            y = matmul(activation).linear(x, weight)
            others = [row for row in range(num_tokens) if row != 1]
            assert torch.equal(y[others], expected[others])
            # Rows of weights that are zero there may hide an infinity, as they do in PyTorch.
            assert not y[1, 4:].isfinite().all()


@pytest.mark.parametrize("num_tokens", [1, 8, 20])
def test_int8_products_of_the_largest_codes(num_tokens: int) -> None:
    """Nothing on their way to 32 bits saturates, whichever sign they have."""
    columns = 640
    weight = Int8Weight(
        torch.full((16, columns), -128, dtype=torch.int8), torch.ones(16, dtype=torch.bfloat16)
    )
    for sign in (-1, 1):
        x = torch.full((num_tokens, columns), 127.0 * sign)
        y = matmul("int8").linear(x, weight)
        assert torch.equal(y, torch.full_like(y, -128.0 * 127 * sign * columns))


@pytest.mark.parametrize("format", ["nvfp4", "fp8", "int8", "bf16"])
@pytest.mark.parametrize("num_tokens", [1, 2, 50])
def test_all_tokens_on_the_last_expert(format: str, num_tokens: int) -> None:
    """One expert has all the work, the others none, and its rows end where the tensor does."""
    w13 = tamed(make_weight(format, 96, 160, batch=(5, 2)))
    w2 = tamed(make_weight(format, 160, 96, batch=(5,), seed=1))
    x, ids = torch.randn(num_tokens, 160), torch.full((num_tokens, 1), 4)
    weights = torch.rand(ids.shape)
    y = matmul().experts(x, w13, w2, weights, ids)
    expected = reference.experts(x, w13, w2, weights, ids)
    assert float((y - expected).abs().max()) <= 3e-6 * float(expected.abs().max())


def exact_table(case: Case) -> Case:
    """Without the spare column that other tests have behind the last block."""
    return dataclasses.replace(case, block_table=case.block_table[:, :-1].contiguous())


@pytest.mark.parametrize("block_size", [1, 4, 16, 32])
def test_contexts_that_end_with_a_block(block_size: int) -> None:
    """And one token before and after; with blocks at the end of the cache."""
    for blocks in (1, 2, 8, 16, 17):
        for length in {blocks * block_size + off for off in (-1, 0, 1)} - {0}:
            for new in {1, min(length, 3), length}:
                case = exact_table(make_case([(new, length - new)], (6, 2, 40), block_size))
                out = case.native()
                assert error(out, case.expected()) < 1e-5


def test_a_step_of_nothing() -> None:
    shape = dataclasses.replace(
        MID, num_hidden_layers=2, hidden_size=128, num_local_experts=8, vocab_size=90
    )
    cpu = torch.device("cpu")
    model = make_model(shape, dummy_weights(shape, "nvfp4", device=cpu, dtype=torch.float32))
    assert isinstance(model, NativeMiniMaxM2)
    cache = allocate_kv_cache(shape, 3, 4, cpu, torch.float32)

    def batch(tokens: int, sequences: int, rows: int) -> ForwardBatch:
        return ForwardBatch(
            token_ids=torch.zeros(tokens, dtype=torch.int64),
            positions=torch.arange(tokens),
            slot_mapping=torch.arange(tokens),
            query_start_loc=torch.tensor([0] + [tokens] * sequences, dtype=torch.int32),
            seq_lens=torch.full((sequences,), tokens, dtype=torch.int32),
            block_table=torch.zeros(sequences, 1, dtype=torch.int32),
            logits_rows=torch.zeros(rows, dtype=torch.int64),
        )

    assert model.forward(batch(0, 0, 0), cache).shape == (0, 128)
    assert model.forward(batch(0, 1, 0), cache).shape == (0, 128)
    hidden = model.forward(batch(3, 1, 0), cache)
    assert model.compute_logits(hidden).shape == (0, 90)
    assert model.forward(batch(3, 1, 2), cache).isfinite().all()


def test_attention_of_no_sequences() -> None:
    case = make_case([(2, 0)])
    none = dataclasses.replace(
        case,
        q=case.q[:0],
        query_start_loc=torch.zeros(1, dtype=torch.int32),
        seq_lens=case.seq_lens[:0],
        block_table=case.block_table[:0],
    )
    assert none.native().shape == (0, 16, 64)
