"""Plans become weights: the values the quantiser meant, in the place they belong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import FORMATS, TinyCheckpoint, build_tiny
from tiny_dequantize import from_weight
from tiny_edit import edit_tensors

from m2serve.checkpoint.layout import CheckpointLayout, LinearPlan, plan_layout
from m2serve.checkpoint.loading import load_linear, load_plain, load_stacked
from m2serve.checkpoint.names import EMBEDDING, expert_name
from m2serve.checkpoint.reader import Checkpoint
from m2serve.checkpoint.weights import DenseWeight, Int8Weight, Nvfp4Weight
from m2serve.errors import CheckpointError

SMALL: dict[str, Any] = {"num_hidden_layers": 1, "num_local_experts": 4}


def opened(folder: Path) -> tuple[Checkpoint, CheckpointLayout]:
    checkpoint = Checkpoint.open(folder)
    return checkpoint, plan_layout(checkpoint)


def gate_up_plans(layout: CheckpointLayout, experts: int = 4) -> list[LinearPlan]:
    names = [expert_name(0, expert, w) for expert in range(experts) for w in ("w1", "w3")]
    return [layout.linears[name] for name in names]


def meant(tiny: TinyCheckpoint, plan: LinearPlan) -> np.ndarray:
    return tiny.state[f"{plan.name}.weight"].numpy()


@pytest.mark.parametrize("format", FORMATS)
def test_every_linear_means_what_was_written(tmp_path: Path, format: str) -> None:
    tiny = build_tiny(tmp_path, format=format, **SMALL)
    checkpoint, layout = opened(tmp_path)
    for plan in layout.linears.values():
        np.testing.assert_array_equal(from_weight(load_linear(checkpoint, plan)), meant(tiny, plan))


@pytest.mark.parametrize("format", FORMATS)
def test_stacks_put_every_expert_in_its_place(tmp_path: Path, format: str) -> None:
    tiny = build_tiny(tmp_path, format=format, **SMALL)
    checkpoint, layout = opened(tmp_path)
    plans = gate_up_plans(layout)
    values = from_weight(load_stacked(checkpoint, plans, (4, 2)))
    assert values.shape == (4, 2, 128, 256)
    for position, plan in enumerate(plans):
        np.testing.assert_array_equal(values[position // 2, position % 2], meant(tiny, plan))
    down = [layout.linears[expert_name(0, expert, "w2")] for expert in range(4)]
    assert from_weight(load_stacked(checkpoint, down, (4,))).shape == (4, 256, 128)


def test_plain_tensors(tmp_path: Path) -> None:
    tiny = build_tiny(tmp_path, **SMALL)
    bias = "model.layers.0.block_sparse_moe.e_score_correction_bias"

    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        tensors[bias] = tensors[bias].bfloat16()

    edit_tensors(tmp_path, narrow)
    checkpoint, layout = opened(tmp_path)
    embedding = load_plain(checkpoint, layout.plain[EMBEDDING])
    assert embedding.dtype == torch.bfloat16
    assert torch.equal(embedding.float(), tiny.state[EMBEDDING])
    loaded = load_plain(checkpoint, layout.plain[bias])
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, tiny.state[bias].bfloat16().float())


@pytest.mark.parametrize("format", ["bf16", "int4-ct-asym-g128", "int8-ascend-static"])
def test_loaded_weights_outlive_the_files(tmp_path: Path, format: str) -> None:
    tiny = build_tiny(tmp_path, format=format, **SMALL)
    checkpoint, layout = opened(tmp_path)
    plan = layout.linears["model.layers.0.self_attn.q_proj"]
    weight = load_linear(checkpoint, plan)
    norm = load_plain(checkpoint, layout.plain["model.norm.weight"])
    checkpoint.close()
    for shard in tmp_path.glob("*.safetensors"):
        shard.write_bytes(b"\xff" * shard.stat().st_size)
    np.testing.assert_array_equal(from_weight(weight), meant(tiny, plan))
    assert torch.equal(norm.float(), tiny.state["model.norm.weight"])


def test_static_input_is_stacked_too(tmp_path: Path) -> None:
    build_tiny(tmp_path, format="int8-ascend-static", **SMALL)
    checkpoint, layout = opened(tmp_path)
    plans = [layout.linears[f"model.layers.0.self_attn.{p}_proj"] for p in ("k", "v")]
    weight = load_stacked(checkpoint, plans, (2,))
    assert isinstance(weight, Int8Weight)
    assert weight.static_input is not None
    assert weight.static_input.scale.shape == (2,)
    assert weight.static_input.quant_bias.shape == (2, 128)
    expected = checkpoint.read("model.layers.0.self_attn.v_proj.deq_scale")
    assert torch.equal(weight.static_input.deq_scale[1], expected)


def test_progress_counts_the_bytes_of_the_files(tmp_path: Path) -> None:
    build_tiny(tmp_path, format="fp8", **SMALL)
    checkpoint, layout = opened(tmp_path)
    seen: list[tuple[int, int]] = []
    plans = gate_up_plans(layout)
    load_stacked(checkpoint, plans, (4, 2), lambda done, total: seen.append((done, total)))
    total = sum(plan.nbytes for plan in plans)
    assert total == 8 * (128 * 256 + 8)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_missing_input_scales_take_the_largest_of_the_layer(tmp_path: Path) -> None:
    build_tiny(tmp_path, format="nvfp4-modelopt", **SMALL)

    def lose(tensors: dict[str, torch.Tensor]) -> None:
        for expert in (0, 2):
            del tensors[f"{expert_name(0, expert, 'w1')}.input_scale"]
        tensors[f"{expert_name(0, 3, 'w3')}.input_scale"] = torch.tensor(0.5)

    edit_tensors(tmp_path, lose)
    checkpoint, layout = opened(tmp_path)
    weight = load_stacked(checkpoint, gate_up_plans(layout), (4, 2))
    assert isinstance(weight, Nvfp4Weight)
    assert weight.input_scale is not None
    own = torch.tensor(5.0) / 2688
    expected = torch.full((4, 2), own.item())
    expected[0, 0] = expected[2, 0] = expected[3, 1] = 0.5
    assert torch.equal(weight.input_scale, expected)


def test_no_input_scales_at_all_means_weight_only(tmp_path: Path) -> None:
    build_tiny(tmp_path, format="nvfp4-ct", **SMALL)
    edit_tensors(
        tmp_path,
        lambda tensors: [
            tensors.pop(name) for name in list(tensors) if name.endswith("input_global_scale")
        ],
    )
    checkpoint, layout = opened(tmp_path)
    weight = load_stacked(checkpoint, gate_up_plans(layout), (4, 2))
    assert isinstance(weight, Nvfp4Weight)
    assert weight.input_scale is None


def test_a_poisoned_scale_is_found_while_loading(tmp_path: Path) -> None:
    build_tiny(tmp_path, format="fp8", **SMALL)
    name = f"{expert_name(0, 2, 'w3')}.weight_scale_inv"
    edit_tensors(tmp_path, lambda tensors: tensors[name].fill_(float("inf")))
    checkpoint, layout = opened(tmp_path)
    with pytest.raises(CheckpointError, match=r"experts\.2\.w3\.weight_scale_inv holds NaN or Inf"):
        load_stacked(checkpoint, gate_up_plans(layout), (4, 2))


def test_experts_of_one_layer_need_one_format(tmp_path: Path) -> None:
    checkpoint, layout = opened(build_tiny(tmp_path / "a", format="int4-awq", **SMALL).folder)
    _, other = opened(build_tiny(tmp_path / "b", format="int4-ct-sym-g32", **SMALL).folder)
    plans = gate_up_plans(layout)
    plans[5] = gate_up_plans(other)[5]
    with pytest.raises(
        CheckpointError, match=r"experts\.2\.w3 is stored as int4-ct .*group_size 32"
    ):
        load_stacked(checkpoint, plans, (4, 2))


def test_experts_of_one_layer_need_one_dtype(tmp_path: Path) -> None:
    build_tiny(tmp_path, **SMALL)
    name = f"{expert_name(0, 3, 'w1')}.weight"
    edit_tensors(tmp_path, lambda tensors: tensors.update({name: tensors[name].float()}))
    checkpoint, layout = opened(tmp_path)
    with pytest.raises(CheckpointError, match=r"experts\.3\.w1 has weight in torch\.float32"):
        load_stacked(checkpoint, gate_up_plans(layout), (4, 2))


def test_a_linear_has_no_batch_dims(tmp_path: Path) -> None:
    build_tiny(tmp_path, **SMALL)
    checkpoint, layout = opened(tmp_path)
    weight = load_linear(checkpoint, layout.linears["lm_head"])
    assert isinstance(weight, DenseWeight)
    assert weight.weight.shape == (1200, 256)


@pytest.mark.parametrize("part", ["gate.weight", "e_score_correction_bias"])
def test_a_poisoned_router_is_refused_by_name(part: str, tmp_path: Path) -> None:
    build_tiny(tmp_path)
    name = f"model.layers.1.block_sparse_moe.{part}"
    edit_tensors(tmp_path, lambda tensors: tensors[name].view(-1)[3:4].fill_(float("nan")))
    with Checkpoint.open(tmp_path) as checkpoint:
        plan = plan_layout(checkpoint).plain[name]
        with pytest.raises(CheckpointError, match=part):
            load_plain(checkpoint, plan)
