"""The native forward pass against the decoder in PyTorch, in every storage format."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import replace
from statistics import median
from typing import Any

import pytest
import torch
from paged import PagedSequences
from threads import of_threads

from m2serve.bench.dummy import FORMATS, dummy_weights
from m2serve.bench.shapes import MID
from m2serve.kernels import reference
from m2serve.kernels.cpu_library import load_cpu_library
from m2serve.kernels.cpu_linear import CpuMatmul
from m2serve.kernels.cpu_step import StepCosts
from m2serve.kernels.dispatch import Kernels
from m2serve.model.minimax_m2 import MiniMaxM2
from m2serve.model.native import NativeMiniMaxM2, make_model
from m2serve.spec.shape import ModelShape

if load_cpu_library() is None:
    pytest.skip("no native kernels here", allow_module_level=True)

CPU = torch.device("cpu")
REFERENCE = Kernels(
    **{field.name: getattr(reference, field.name) for field in dataclasses.fields(Kernels)}
)
SHAPE = replace(
    MID,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    num_local_experts=8,
    num_experts_per_tok=3,
    hidden_size=256,
    intermediate_size=128,
    vocab_size=400,
)


def models(
    format: str, shape: ModelShape = SHAPE, dtype: torch.dtype = torch.float32
) -> tuple[NativeMiniMaxM2, MiniMaxM2]:
    weights = dummy_weights(shape, format, attention_format=format, device=CPU, dtype=dtype)
    native = make_model(shape, weights)
    assert isinstance(native, NativeMiniMaxM2)
    return native, MiniMaxM2(shape, weights, REFERENCE)


def prompt(length: int, seed: int = 0) -> list[int]:
    chooser = random.Random(seed)
    return [chooser.randrange(SHAPE.vocab_size) for _ in range(length)]


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.dtype == torch.float32
    return float((ours - theirs).abs().max() / theirs.abs().max())


def typical(differences: torch.Tensor) -> float:
    """Of the median row."""
    return float(differences.norm(dim=-1).median())


STEPS = [
    [("a", prompt(37, 1)), ("b", prompt(1, 2))],
    [("b", prompt(1, 3)), ("c", prompt(90, 4)), ("a", prompt(1, 5))],
    [("c", prompt(7, 6)), ("a", prompt(2, 7)), ("b", prompt(1, 8)), ("d", prompt(3, 9))],
    [(name, prompt(1, seed)) for seed, name in enumerate("dcba")],
]


def logits_of(model: MiniMaxM2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    sequences = PagedSequences(model, dtype)
    return torch.cat([logits for step in STEPS for logits in sequences.run(step)])


@pytest.mark.parametrize("format", FORMATS)
def test_logits_of_mixed_steps(format: str) -> None:
    native, plain = models(format)
    assert error(logits_of(native), logits_of(plain)) < 1e-5


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 20, "rotary_dim": 6},
        {"num_attention_heads": 3, "num_key_value_heads": 3, "num_hidden_layers": 1},
        {"num_local_experts": 3, "num_experts_per_tok": 3, "hidden_size": 96},
        {"vocab_size": 401, "intermediate_size": 96, "rope_theta": 1e4},
    ],
    ids=str,
)
def test_awkward_shapes(sizes: dict[str, int]) -> None:
    native, plain = models("bf16", replace(SHAPE, **sizes))
    assert error(logits_of(native), logits_of(plain)) < 1e-5


def int8_activation_error(format: str, seed: int) -> float:
    """Of the logits beside the decoder in PyTorch with the same products, over what rounding the
    activations itself costs."""
    shape = replace(SHAPE, num_hidden_layers=1)
    # In bfloat16 many values would be exactly half of a row's largest, and round either way.
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(shape.vocab_size, shape.hidden_size, generator=generator)
    weights, same = (
        replace(
            dummy_weights(shape, format, attention_format=format, device=CPU, dtype=torch.float32),
            embedding=embedding,
        )
        for _ in range(2)
    )
    library = load_cpu_library()
    assert library is not None
    products = CpuMatmul(library, "int8")
    rounding = replace(REFERENCE, linear=products.linear, experts=products.experts)
    native = make_model(shape, weights, "int8")
    assert isinstance(native, NativeMiniMaxM2)
    ours, theirs = logits_of(native), logits_of(MiniMaxM2(shape, same, rounding))
    exact = logits_of(MiniMaxM2(shape, same, REFERENCE))
    with pytest.raises(RuntimeError, match="in an order only it can read"):
        make_model(shape, native.weights)
    return typical(ours - theirs) / typical(theirs - exact)


@pytest.mark.parametrize("format", ["nvfp4", "mxfp4", "int4-g32", "int4-g128", "int8"])
def test_logits_with_int8_activations(format: str) -> None:
    """The median row of one layer, and of five draws the median: a value that is rounded the other
    way moves all that follows."""
    assert median(int8_activation_error(format, seed) for seed in range(5)) < 0.1


def test_greedy_tokens() -> None:
    native, plain = models("nvfp4")
    for seed in range(3):
        ids = prompt(20, seed)
        ours, theirs = (
            PagedSequences(m, torch.float32).greedy("a", ids, 40) for m in (native, plain)
        )
        assert ours == theirs


def test_bfloat16_is_nearer_to_float32_than_the_reference() -> None:
    """The median row of one layer: a rounding that tips an expert into the top k moves a row far,
    in either implementation, and further down every later one."""
    native, plain = models("bf16", replace(SHAPE, num_hidden_layers=1), torch.bfloat16)
    expected = logits_of(in_float32(plain))

    ours, theirs = (logits_of(model, torch.bfloat16) - expected for model in (native, plain))
    library = load_cpu_library()
    assert library is not None
    most = 0.8 if library.isa == "amx" else 0.7  # whose attention rounds queries and weights
    assert typical(ours) < most * typical(theirs)


def test_keys_of_fewer_rows_than_a_tile_beside_queries_of_more() -> None:
    """They share no activations where tiles want them turned for the one and not for the other."""
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 8, "rotary_dim": 4}
    shape = replace(SHAPE, num_hidden_layers=1, **sizes)
    native, plain = models("bf16", shape, torch.bfloat16)
    expected = logits_of(in_float32(plain))
    wrong = logits_of(native, torch.bfloat16) - expected
    assert typical(wrong) < 0.02 * typical(expected)


def in_float32(model: MiniMaxM2) -> MiniMaxM2:
    def widen(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.float()
        if isinstance(value, tuple):
            return tuple(map(widen, value))
        if not dataclasses.is_dataclass(value):
            return value
        fields = dataclasses.fields(value)
        return replace(value, **{field.name: widen(getattr(value, field.name)) for field in fields})

    return MiniMaxM2(model.shape, widen(model.weights), REFERENCE)


def test_threads_and_company_change_no_bit() -> None:
    native, _ = models("bf16")
    one = logits_of(native)
    torch.set_num_threads(2)
    try:
        assert torch.equal(logits_of(native), one)
    finally:
        torch.set_num_threads(1)


def test_threads_change_no_bit_of_a_long_prompt() -> None:
    """One thread and two cut it into slices, five do not."""
    native, _ = models("bf16", dtype=torch.bfloat16)

    def logits() -> torch.Tensor:
        sequences = PagedSequences(native, torch.bfloat16, num_blocks=1024)
        return sequences.run([("a", prompt(1100, 1))])[0]

    one = of_threads(1, logits)
    assert torch.equal(of_threads(2, logits), one)
    assert torch.equal(of_threads(5, logits), one)


def test_costs_are_counted_and_start_anew() -> None:
    native, _ = models("bf16")
    native.step.take_costs()
    PagedSequences(native, torch.float32).run([("a", prompt(1))])
    costs = native.step.take_costs()
    assert costs.num_forwards == 1
    assert costs.experts_hit == SHAPE.num_hidden_layers * SHAPE.num_experts_per_tok
    assert all(value > 0 for value in costs.seconds.values())
    assert native.step.take_costs() == StepCosts(dict.fromkeys(costs.seconds, 0.0), 0, 0)
