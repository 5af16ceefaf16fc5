"""What becomes of a checkpoint's tensors in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import build_tiny
from tiny_edit import edit_tensors

from m2serve.checkpoint.reader import Checkpoint
from m2serve.checkpoint.weights import DenseWeight, Fp8BlockWeight, Int8Weight, Nvfp4Weight
from m2serve.errors import CheckpointError
from m2serve.model.loader import load_model
from m2serve.model.minimax_m2 import MiniMaxM2

SMALL: dict[str, Any] = {"num_hidden_layers": 2, "num_local_experts": 3}
MOE = "model.layers.1.block_sparse_moe"


def load(folder: Path, dtype: torch.dtype, fractions: list[float] | None = None) -> MiniMaxM2:
    with Checkpoint.open(folder) as checkpoint:
        progress = [] if fractions is None else fractions
        return load_model(checkpoint, torch.device("cpu"), dtype, progress.append)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for shard in folder.glob("*.safetensors"):
        tensors.update(load_file(shard))
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dense_weights_take_the_compute_dtype_and_the_router_float32(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    tiny = build_tiny(tmp_path, format="f32", **SMALL)
    weights = load(tmp_path, dtype).weights
    layer = weights.layers[1]
    assert isinstance(weights.lm_head, DenseWeight)
    assert isinstance(layer.attention.k_proj, DenseWeight)
    for name, tensor in {
        "model.embed_tokens": weights.embedding,
        "lm_head": weights.lm_head.weight,
        "model.norm": weights.norm,
        "model.layers.1.input_layernorm": layer.input_norm,
        "model.layers.1.post_attention_layernorm": layer.post_attention_norm,
        "model.layers.1.self_attn.q_norm": layer.attention.q_norm,
        "model.layers.1.self_attn.k_norm": layer.attention.k_norm,
        "model.layers.1.self_attn.k_proj": layer.attention.k_proj.weight,
    }.items():
        assert tensor.dtype == dtype, name
        assert torch.equal(tensor, tiny.state[f"{name}.weight"].to(dtype)), name
    assert layer.moe.gate.dtype == layer.moe.correction_bias.dtype == torch.float32
    assert torch.equal(layer.moe.gate, tiny.state[f"{MOE}.gate.weight"])
    assert torch.equal(layer.moe.correction_bias, tiny.state[f"{MOE}.e_score_correction_bias"])


def test_a_bf16_embedding_is_held_as_the_dense_matrices_are(tmp_path: Path) -> None:
    """Not widened to what is computed in: at M2.5's vocabulary that would be 1.2 GB more."""
    build_tiny(tmp_path, format="bf16", **SMALL)
    weights = load(tmp_path, torch.float32).weights
    assert isinstance(weights.lm_head, DenseWeight)
    assert weights.embedding.dtype == weights.lm_head.weight.dtype
    file = stored(tmp_path)["model.embed_tokens.weight"]
    assert torch.equal(weights.embedding.float(), file.float())
    assert weights.dtype == torch.float32


def test_experts_are_stacked_gate_then_up(tmp_path: Path) -> None:
    tiny = build_tiny(tmp_path, format="f32", **SMALL)
    moe = load(tmp_path, torch.float32).weights.layers[1].moe
    assert isinstance(moe.w13, DenseWeight)
    assert isinstance(moe.w2, DenseWeight)
    for expert in range(3):
        for at, matrix in ((0, "w1"), (1, "w3")):
            expected = tiny.state[f"{MOE}.experts.{expert}.{matrix}.weight"]
            assert torch.equal(moe.w13.weight[expert, at], expected)
        assert torch.equal(moe.w2.weight[expert], tiny.state[f"{MOE}.experts.{expert}.w2.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_quantised_weights_stay_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    build_tiny(tmp_path / "fp4", format="nvfp4-modelopt", **SMALL)
    moe, file = load(tmp_path / "fp4", dtype).weights.layers[1].moe, stored(tmp_path / "fp4")
    assert isinstance(moe.w13, Nvfp4Weight)
    at = f"{MOE}.experts.2.w3"
    assert torch.equal(moe.w13.packed[2, 1], file[f"{at}.weight"])
    scale = file[f"{at}.weight_scale"].view(torch.uint8)
    assert torch.equal(moe.w13.scale[2, 1].view(torch.uint8), scale)
    assert moe.w13.global_scale[2, 1] == file[f"{at}.weight_scale_2"]

    build_tiny(tmp_path / "fp8", format="fp8", **SMALL)
    q_proj = load(tmp_path / "fp8", dtype).weights.layers[0].attention.q_proj
    assert isinstance(q_proj, Fp8BlockWeight)
    file = stored(tmp_path / "fp8")
    weight = file["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(q_proj.weight.view(torch.uint8), weight.view(torch.uint8))
    assert torch.equal(q_proj.scale, file["model.layers.0.self_attn.q_proj.weight_scale_inv"])


def test_activation_scales_of_int8_are_dropped(tmp_path: Path) -> None:
    build_tiny(tmp_path, format="int8-ascend-static", **SMALL)
    q_proj = load(tmp_path, torch.float32).weights.layers[0].attention.q_proj
    assert isinstance(q_proj, Int8Weight)
    assert q_proj.static_input is None


@pytest.mark.parametrize("format", ["bf16", "fp8-attn-int4-experts"])
def test_progress_is_the_share_of_bytes(format: str, tmp_path: Path) -> None:
    build_tiny(tmp_path, format=format, **SMALL)
    fractions: list[float] = []
    load(tmp_path, torch.float32, fractions)
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < 0.2
    assert fractions[-1] == pytest.approx(1.0)
    assert len(fractions) > 20


def without(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


def cut(name: str) -> Any:
    return lambda tensors: tensors.update({name: tensors[name][:-1].clone()})


def added(name: str) -> Any:
    return lambda tensors: tensors.update({name: torch.zeros(3)})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (f"{MOE}.experts.2.w3.weight", without),
        (f"{MOE}.e_score_correction_bias", without),
        ("model.layers.0.self_attn.q_norm.weight", without),
        ("lm_head.weight", without),
        (f"{MOE}.gate.weight", cut),
        ("model.norm.weight", cut),
        ("model.layers.0.self_attn.o_proj.weight", cut),
        (f"{MOE}.experts.3.w1.weight", added),
        ("model.layers.0.self_attn.q_proj.bias", added),
        ("model.layers.1.pre_norm.weight", added),
        ("model.extra.weight", added),
    ],
)
def test_one_wrong_tensor_ends_the_loading(name: str, change: Any, tmp_path: Path) -> None:
    build_tiny(tmp_path, **SMALL)
    edit_tensors(tmp_path, change(name))
    with pytest.raises(CheckpointError) as error:
        load(tmp_path, torch.float32)
    assert name.removesuffix(".weight") in str(error.value)
