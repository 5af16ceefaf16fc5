"""From a folder to plans: every format, and every way a checkpoint can be wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FORMATS, build_tiny
from tiny_edit import edit_json, edit_tensors

from m2serve.checkpoint.layout import CheckpointLayout, plan_layout
from m2serve.checkpoint.names import attention_name, expert_name, inventory
from m2serve.checkpoint.reader import Checkpoint
from m2serve.errors import CheckpointError

SMALL: dict[str, Any] = {"num_hidden_layers": 2, "num_local_experts": 4}
EXPERT = expert_name(1, 2, "w1")
Q = attention_name(0, "q_proj")
Tensors = dict[str, torch.Tensor]


def plan(folder: Path) -> CheckpointLayout:
    return plan_layout(Checkpoint.open(folder))


def edited(folder: Path, format: str, change: Callable[[Tensors], object]) -> CheckpointLayout:
    build_tiny(folder, format=format, **SMALL)
    edit_tensors(folder, lambda tensors: (change(tensors), None)[1])
    return plan(folder)


def storage(layout: CheckpointLayout, name: str) -> str:
    return layout.linears[name].format.name


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_planned_whole(tmp_path: Path, format: str) -> None:
    build_tiny(tmp_path, format=format, **SMALL)
    checkpoint = Checkpoint.open(tmp_path)
    layout = plan_layout(checkpoint)
    wanted = inventory(checkpoint.shape)
    assert list(layout.linears) == [linear.name for linear in wanted.linears]
    assert list(layout.plain) == [spec.name for spec in wanted.plain]
    planned = {name for linear in layout.linears.values() for name in linear.tensors.values()}
    planned |= {plain.tensor for plain in layout.plain.values()} | set(layout.kv_scales.values())
    assert planned == set(checkpoint.tensors)
    assert sum(p.nbytes for p in (*layout.linears.values(), *layout.plain.values())) == sum(
        info.nbytes for name, info in checkpoint.tensors.items() if name not in layout.kv_scales
    )


def test_mixed_formats_are_told_apart(tmp_path: Path) -> None:
    build_tiny(tmp_path, format="fp8-attn-int4-experts", **SMALL)
    layout = plan(tmp_path)
    assert [storage(layout, name) for name in (Q, EXPERT, "lm_head")] == [
        "fp8-block",
        "int4-ct",
        "dense",
    ]


def test_layers_may_differ(tmp_path: Path) -> None:
    """Layer 0 keeps dense experts and the config says so."""
    build_tiny(tmp_path, format="fp8", **SMALL)
    dense = build_tiny(tmp_path / "dense", format="bf16", **SMALL).state

    def thaw(tensors: Tensors) -> None:
        for name in [
            name for name in tensors if name.startswith("model.layers.0.block_sparse_moe")
        ]:
            if name.endswith("_scale_inv"):
                del tensors[name]
            elif ".experts." in name:
                tensors[name] = dense[name].bfloat16()

    edit_tensors(tmp_path, thaw)
    with pytest.raises(CheckpointError, match=r"layers\.0\.block_sparse_moe\.experts\.0\.w1"):
        plan(tmp_path)
    edit_json(
        tmp_path / "config.json",
        lambda c: c["quantization_config"]["modules_to_not_convert"].append(
            "model.layers.0.mlp.experts"
        ),
    )
    layout = plan(tmp_path)
    assert storage(layout, expert_name(0, 2, "w1")) == "dense"
    assert storage(layout, EXPERT) == "fp8-block"


def test_names_of_transformers_are_accepted(tmp_path: Path) -> None:
    def rename(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.replace(".block_sparse_moe.", ".mlp.")] = tensors.pop(name)

    layout = edited(tmp_path, "fp8", rename)
    assert layout.linears[EXPERT].tensors["weight"] == f"{EXPERT}.weight".replace(
        "block_sparse_moe", "mlp"
    )


def test_one_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    def double(tensors: Tensors) -> None:
        other = f"{EXPERT}.weight".replace("block_sparse_moe", "mlp")
        tensors[other] = tensors[f"{EXPERT}.weight"].clone()

    with pytest.raises(CheckpointError, match="are the same tensor"):
        edited(tmp_path, "bf16", double)


def test_kv_scales_are_kept(tmp_path: Path) -> None:
    build_tiny(tmp_path, format="nvfp4-modelopt", **SMALL)
    layout = plan(tmp_path)
    assert len(layout.kv_scales) == 4
    assert layout.kv_scales["model.layers.1.self_attn.v_proj.v_scale"].endswith("v_scale")


def test_layers_of_multi_token_prediction_are_dropped_with_a_note(tmp_path: Path) -> None:
    layout = edited(
        tmp_path, "bf16", lambda t: t.update({"model.layers.4.enorm.weight": torch.ones(4)})
    )
    assert any("1 tensors of layers above the last" in note for note in layout.notes)


def test_a_layer_that_no_module_of_prediction_accounts_for_is_extra(tmp_path: Path) -> None:
    """Or a config with too few layers would serve the first part of a model."""
    with pytest.raises(CheckpointError, match=r"layers\.5\.enorm\.weight"):
        edited(tmp_path, "bf16", lambda t: t.update({"model.layers.5.enorm.weight": torch.ones(4)}))


def test_a_config_with_too_few_layers_is_refused(tmp_path: Path) -> None:
    """Also when it announces layers of prediction that the last ones could be taken for."""
    build_tiny(tmp_path, **SMALL)
    edit_json(tmp_path / "config.json", lambda c: c.update(num_hidden_layers=1, attn_type_list=[1]))
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        plan(tmp_path)


def test_scalars_may_be_vectors_of_one(tmp_path: Path) -> None:
    def widen(tensors: Tensors) -> None:
        for name in tensors:
            if name.endswith(("weight_scale_2", "input_scale")):
                tensors[name] = tensors[name].reshape(1)

    plain = edited(tmp_path / "plain", "nvfp4-modelopt", lambda tensors: None)
    widened = edited(tmp_path / "widened", "nvfp4-modelopt", widen)
    assert plain.linears
    assert {name: storage(widened, name) for name in widened.linears} == {
        name: storage(plain, name) for name in plain.linears
    }


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, tensor: torch.Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensor})


def trim(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensors[name][:-1].clone()})


GATE = "model.layers.0.block_sparse_moe.gate.weight"


@pytest.mark.parametrize(
    ("format", "change", "named"),
    [
        ("bf16", drop("model.norm.weight"), r"model\.norm\.weight is missing"),
        ("bf16", drop("lm_head.weight"), r"lm_head\.weight is missing"),
        ("bf16", drop(f"{Q}.weight"), r"q_proj\.weight is missing"),
        ("fp8", drop(f"{Q}.weight_scale_inv"), r"q_proj\.weight_scale_inv is missing"),
        ("nvfp4-modelopt", drop(f"{EXPERT}.weight_scale_2"), r"w1\.weight_scale_2 is missing"),
        ("nvfp4-modelopt", drop(f"{EXPERT}.weight_scale"), r"w1\.weight_scale is missing"),
        ("nvfp4-ct", drop(f"{EXPERT}.weight_global_scale"), r"weight_global_scale is missing"),
        ("int4-awq", drop(f"{EXPERT}.qzeros"), r"w1\.qzeros is missing"),
        ("int4-awq", drop(f"{EXPERT}.scales"), r"w1\.scales is missing"),
        ("int4-ct-sym-g32", drop(f"{EXPERT}.weight_shape"), r"w1\.weight_shape is missing"),
        ("int4-ct-asym-g128", drop(f"{EXPERT}.weight_zero_point"), "weight_zero_point is missing"),
        ("int8-ct", drop(f"{EXPERT}.weight_scale"), r"w1\.weight_scale is missing"),
        ("int8-ascend-static", drop(f"{Q}.quant_bias"), r"q_proj\.quant_bias is missing"),
        ("int8-ascend-static", drop(f"{Q}.weight_offset"), r"q_proj\.weight_offset is missing"),
        ("bf16", put(f"{EXPERT}.bias", torch.ones(1)), r"experts\.2\.w1\.bias is an extra tensor"),
        ("bf16", put("model.extra.weight", torch.ones(1)), r"model\.extra\.weight belongs to no"),
        ("int4-ct-sym-g32", put(f"{EXPERT}.weight_zero_point", torch.ones(1)), "weight_zero_point"),
        ("bf16", trim("model.norm.weight"), r"model\.norm\.weight has shape \[255\]"),
        ("bf16", trim(f"{Q}.weight"), r"q_proj\.weight has shape \[383, 256\]"),
        ("fp8", trim(f"{Q}.weight_scale_inv"), r"weight_scale_inv has shape \[2, 2\]"),
        ("nvfp4-ct", trim(f"{EXPERT}.weight_scale"), r"weight_scale has shape \[127, 16\]"),
        ("int4-awq", trim(f"{EXPERT}.qzeros"), r"qzeros has shape"),
        ("mxfp4", trim(f"{EXPERT}.weight_scale"), r"weight_scale has shape \[127, 8\]"),
        ("bf16", put("model.norm.weight", torch.ones(256).long()), r"model\.norm\.weight is I64"),
        ("bf16", put(f"{Q}.weight", torch.ones(384, 256).long()), r"q_proj\.weight is in no"),
        ("fp8", put(f"{Q}.weight_scale_inv", torch.ones(3, 2).half()), "weight_scale_inv is F16"),
        ("bf16", trim(GATE), r"gate\.weight has shape \[3, 256\]"),
    ],
)
def test_a_wrong_tensor_is_named(
    tmp_path: Path, format: str, change: Callable[[Tensors], object], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        edited(tmp_path, format, change)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    def lose(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".experts.3." in name]:
            del tensors[name]

    with pytest.raises(CheckpointError, match=r"holds 3 experts.*num_local_experts 4: expert 3 is"):
        edited(tmp_path, "fp8", lose)


def test_an_expert_too_many_is_named(tmp_path: Path) -> None:
    def gain(tensors: Tensors) -> None:
        tensors[f"{expert_name(0, 4, 'w1')}.weight"] = tensors[f"{EXPERT}.weight"].clone()

    with pytest.raises(CheckpointError, match="expert 4 is one too many"):
        edited(tmp_path, "bf16", gain)


def test_pruned_experts_with_the_old_router_are_refused(tmp_path: Path) -> None:
    """Experts 6 and 7 pruned and the config updated, but the gate still has eight rows."""
    build_tiny(tmp_path, num_hidden_layers=1)

    def prune(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".experts.6." in name or ".experts.7." in name]:
            del tensors[name]

    edit_tensors(tmp_path, prune)
    with pytest.raises(CheckpointError, match="holds 6 experts"):
        plan(tmp_path)
    edit_json(tmp_path / "config.json", lambda c: c.update(num_local_experts=6))
    with pytest.raises(CheckpointError, match=r"gate\.weight has shape \[8, 256\].*\[6, 256\]"):
        plan(tmp_path)

    def prune_router(tensors: Tensors) -> None:
        for name in [name for name in tensors if "gate.weight" in name or "correction" in name]:
            tensors[name] = tensors[name][:6].clone()

    edit_tensors(tmp_path, prune_router)
    assert plan(tmp_path).shape.num_local_experts == 6


def configured(folder: Path, format: str, change: Callable[[dict[str, Any]], object]) -> None:
    build_tiny(folder, format=format, **SMALL)
    edit_json(folder / "config.json", lambda config: change(config["quantization_config"]))
    plan(folder)


@pytest.mark.parametrize(
    ("format", "change", "named"),
    [
        (
            "fp8",
            lambda q: q.update(weight_block_size=[64, 64]),
            r"q_proj\.weight_scale_inv has shape",
        ),
        ("fp8", lambda q: q["modules_to_not_convert"].append("self_attn"), "announces dense"),
        ("int4-awq", lambda q: q.update(group_size=64), r"w1\.qzeros has shape"),
        ("int4-awq", lambda q: q["modules_to_not_convert"].clear(), "announces int4-awq"),
        (
            "int4-ct-sym-g32",
            lambda q: q["config_groups"]["group_0"]["weights"].update(group_size=128),
            r"w1\.weight_scale has shape",
        ),
        (
            "int4-ct-sym-g32",
            lambda q: q["config_groups"]["group_0"]["weights"].update(symmetric=False),
            "weight_zero_point is missing",
        ),
        (
            "int4-ct-asym-g128",
            lambda q: q["config_groups"]["group_0"]["weights"].update(symmetric=True),
            "weight_zero_point is an extra tensor",
        ),
        ("nvfp4-ct", lambda q: q.update(ignore=["lm_head"]), "announces nvfp4-ct for"),
        ("nvfp4-modelopt", lambda q: q.update(quant_method="fp8"), "announces fp8-block"),
        ("mxfp4", lambda q: q.update(exclude=["*experts*"]), "announces"),
    ],
)
def test_a_contradiction_names_the_tensor(
    tmp_path: Path, format: str, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named) as caught:
        configured(tmp_path, format, change)
    assert "model.layers." in str(caught.value)


def test_quantised_tensors_need_an_announcement(tmp_path: Path) -> None:
    build_tiny(tmp_path, format="fp8", **SMALL)
    edit_json(tmp_path / "config.json", lambda config: config.pop("quantization_config"))
    with pytest.raises(CheckpointError, match=r"q_proj\.weight is F8_E4M3.*no quantization_config"):
        plan(tmp_path)


def test_ascend_description_is_checked(tmp_path: Path) -> None:
    build_tiny(tmp_path, format="int8-ascend-static", **SMALL)
    file = tmp_path / "quant_model_description.json"
    edit_json(file, lambda d: d.update({f"{EXPERT}.weight": "FLOAT"}))
    with pytest.raises(CheckpointError, match=r"experts\.2\.w1\.weight is I8.*announces dense"):
        plan(tmp_path)


def test_many_problems_make_one_bounded_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"and \d+ problems more") as caught:
        edited(tmp_path, "bf16", lambda tensors: [tensors.pop(n) for n in list(tensors)[1:]])
    assert len(str(caught.value)) < 1500
