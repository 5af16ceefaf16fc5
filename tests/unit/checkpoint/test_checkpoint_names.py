"""The tensors a MiniMax-M2 must have."""

import dataclasses

import pytest
from tiny import published_config, random_state

from m2serve.checkpoint.names import (
    LinearSpec,
    canonical,
    expert_name,
    inventory,
    is_kv_scale,
    layer_of,
)
from m2serve.spec.cost import count_parameters
from m2serve.spec.shape import ModelShape

SHAPE = ModelShape.from_config(published_config())


def test_the_inventory_is_what_a_checkpoint_holds() -> None:
    wanted = inventory(SHAPE)
    names = {f"{linear.name}.weight": (linear.rows, linear.columns) for linear in wanted.linears}
    names.update({spec.name: spec.shape for spec in wanted.plain})
    state = random_state(SHAPE, 0)
    assert names == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert len(wanted.linears) + len(wanted.plain) == len(state)
    assert sum(t.numel() for t in state.values()) == count_parameters(SHAPE).total


def test_only_the_router_is_upcast() -> None:
    upcast = {spec.name.rsplit(".", 1)[0] for spec in inventory(SHAPE).plain if spec.upcast}
    assert upcast == {
        f"model.layers.{layer}.block_sparse_moe{tail}"
        for layer in range(4)
        for tail in ("", ".gate")
    }


def test_expert_matrices_have_their_orientation() -> None:
    linears = {linear.name: linear for linear in inventory(SHAPE).linears}
    name = expert_name(3, 7, "w2")
    assert name == "model.layers.3.block_sparse_moe.experts.7.w2"
    assert linears[name] == LinearSpec(name, 256, 128)
    assert linears[expert_name(0, 0, "w1")].rows == 128


def test_expert_counts_need_not_be_round() -> None:
    shape = dataclasses.replace(SHAPE, num_local_experts=7)
    assert sum(".experts." in linear.name for linear in inventory(shape).linears) == 4 * 7 * 3


def test_module_name_of_transformers_is_read() -> None:
    assert (
        canonical("model.layers.0.mlp.gate.weight") == "model.layers.0.block_sparse_moe.gate.weight"
    )


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.61.self_attn.q_proj.weight", 61),
        ("model.layers.62.enorm.weight", 62),
        ("model.norm.weight", None),
        ("lm_head.weight", None),
        ("model.layers.x.weight", None),
        ("model.layers.٣.weight", None),
        ("model.layers.99999999999999999999.weight", None),
    ],
)
def test_layer_of(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("model.layers.0.self_attn.k_proj.k_scale", True),
        ("model.layers.0.self_attn.v_scale", True),
        ("model.layers.3.self_attn.v_proj.kv_cache_offset", True),
        ("model.layers.0.self_attn.q_proj.k_scale", False),
        ("model.layers.0.block_sparse_moe.k_scale", False),
        ("k_scale", False),
    ],
)
def test_kv_scales_are_known(name: str, known: bool) -> None:
    assert is_kv_scale(name) is known
