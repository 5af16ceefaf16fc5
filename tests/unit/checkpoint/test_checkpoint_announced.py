"""What quantisation configs announce, module by module."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_formats import RECIPES

from m2serve.checkpoint.announced import QUAROT_NOTE, read_announced
from m2serve.checkpoint.formats import (
    Dense,
    Fp8Block,
    Int4Awq,
    Int4Packed,
    Int8Ascend,
    Int8Channel,
    Mxfp4,
    Nvfp4CompressedTensors,
    Nvfp4ModelOpt,
)
from m2serve.checkpoint.module_patterns import ModulePatterns
from m2serve.errors import CheckpointError

Q = "model.layers.1.self_attn.q_proj"
EXPERT = "model.layers.1.block_sparse_moe.experts.12.w1"
HEAD = "lm_head"


@pytest.mark.parametrize(
    ("entry", "module", "matches"),
    [
        ("gate", "model.layers.0.block_sparse_moe.gate", True),
        ("gate", "model.layers.0.mlp.gate_proj", False),
        ("lm_head", HEAD, True),
        ("self_attn", Q, True),
        ("model.layers.1", Q, True),
        ("model.layers.1.", Q, True),
        ("model.layers.1", "model.layers.12.self_attn.q_proj", False),
        ("layers.1.self_attn", Q, True),
        ("model.layers.1.self_attn*", Q, True),
        ("model.layers.0.self_attn*", Q, False),
        ("*self_attn*", Q, True),
        ("*block_sparse_moe.gate*", "model.layers.0.block_sparse_moe.gate", True),
        ("*block_sparse_moe.gate*", EXPERT, False),
        ("re:.*self_attn.*", Q, True),
        ("re:self_attn.*", Q, False),
        ("re:.*mlp.experts.*", EXPERT, True),
        ("model.layers.1.mlp.experts.12", EXPERT, True),
        ("*mlp.experts*", EXPERT, True),
        ("mlp", Q, False),
    ],
)
def test_patterns(entry: str, module: str, matches: bool) -> None:
    assert ModulePatterns([entry], "ignore").match(module) is matches
    assert ModulePatterns(["other", "*nothing*", entry], "ignore").match(module) is matches


def test_no_patterns_match_nothing() -> None:
    assert not ModulePatterns([], "ignore").match(Q)


def test_several_wildcards_and_expressions_live_together() -> None:
    entries = ["*.a*b*", "*self_attn*o_*", "re:.*w2$", "model.*.gate*"]
    patterns = ModulePatterns(entries, "ignore")
    assert patterns.match("model.layers.0.self_attn.o_proj")
    assert patterns.match("model.layers.0.block_sparse_moe.experts.0.w2")
    assert not patterns.match(Q)
    assert not patterns.match(EXPERT)


@pytest.mark.parametrize(
    "entry",
    ["re:(a+)+$", "re:(.*x)*", "re:" + ".*a" * 20, "re:(", 3, None, "", "x" * 2000],
)
def test_unusable_patterns_are_refused_by_name(entry: object) -> None:
    with pytest.raises(CheckpointError, match="ignore"):
        ModulePatterns([entry], "ignore")


@pytest.mark.parametrize(
    ("format", "attention", "expert"),
    [
        ("fp8", Fp8Block, Fp8Block),
        ("nvfp4-modelopt", Dense, Nvfp4ModelOpt),
        ("nvfp4-ct", Dense, Nvfp4CompressedTensors),
        ("int4-awq", Dense, Int4Awq),
        ("int4-ct-sym-g32", Dense, Int4Packed),
        ("int4-ct-asym-g128", Dense, Int4Packed),
        ("int8-ct", Int8Channel, Int8Channel),
        ("mxfp4", Dense, Mxfp4),
        ("fp8-attn-int4-experts", Fp8Block, Int4Packed),
    ],
)
def test_published_kinds(tmp_path: Path, format: str, attention: type, expert: type) -> None:
    config = RECIPES[format].config
    assert config is not None
    announced = read_announced(tmp_path, {"quantization_config": config(4)})
    kinds = [announced.of(module) for module in (Q, EXPERT, HEAD)]
    assert [claim.kind for claim in kinds if claim is not None] == [attention, expert, Dense]


def test_parameters_are_read(tmp_path: Path) -> None:
    def claim(format: str, module: str) -> dict[str, Any]:
        config = RECIPES[format].config
        assert config is not None
        found = read_announced(tmp_path, {"quantization_config": config(4)}).of(module)
        assert found is not None
        return dict(found.parameters)

    assert claim("fp8", Q) == {"block_size": (128, 128)}
    assert claim("int4-awq", EXPERT) == {"group_size": 128}
    assert claim("int4-ct-sym-g32", EXPERT) == {"group_size": 32, "symmetric": True}
    assert claim("int4-ct-asym-g128", EXPERT) == {"group_size": 128, "symmetric": False}
    assert claim("fp8-attn-int4-experts", Q) == {"block_size": (128, 128)}


def test_nothing_announced_means_dense(tmp_path: Path) -> None:
    claim = read_announced(tmp_path, {}).of(EXPERT)
    assert claim is not None
    assert claim.kind is Dense


def test_modelopt_file_alone_is_enough(tmp_path: Path) -> None:
    quantization = {
        "quant_algo": "NVFP4",
        "group_size": 16,
        "exclude_modules": ["lm_head", "*attn*"],
    }
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": quantization}))
    announced = read_announced(tmp_path, {})
    kinds = [claim.kind for module in (Q, EXPERT) if (claim := announced.of(module))]
    assert kinds == [Dense, Nvfp4ModelOpt]


def test_modelopt_without_an_ignore_list_claims_nothing(tmp_path: Path) -> None:
    config = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    assert read_announced(tmp_path, {"quantization_config": config}).of(Q) is None


def test_ascend_description(tmp_path: Path) -> None:
    description = {
        f"{Q}.weight": "W8A8",
        f"{EXPERT}.weight": "W8A8_DYNAMIC",
        "lm_head.weight": "FLOAT",
        "model.layers.2.self_attn.q_proj.weight": "W4A8",
        "optional": {"quarot": {"rotation_map": {"global_rotation": "q.safetensors"}}},
    }
    (tmp_path / "quant_model_description.json").write_text(json.dumps(description))
    announced = read_announced(tmp_path, {})
    claims = [announced.of(module) for module in (Q, EXPERT, HEAD)]
    assert [(claim.kind, dict(claim.parameters)) for claim in claims if claim] == [
        (Int8Ascend, {"static": True}),
        (Int8Ascend, {"static": False}),
        (Dense, {}),
    ]
    assert announced.of("model.layers.3.self_attn.q_proj") is None
    assert announced.notes == (QUAROT_NOTE,)
    with pytest.raises(CheckpointError, match="'W4A8'"):
        announced.of("model.layers.2.self_attn.q_proj")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"quant_method": "gptq"}, "'gptq'"),
        ({"quant_method": "mxfp8"}, "'mxfp8'"),
        ({"quant_method": "ascend"}, "quant_model_description.json"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "'FP8'"),
        ({"quant_method": "modelopt", "quant_algo": ["NVFP4"]}, "NVFP4"),
        ({"quant_method": "awq", "bits": 8}, "bits 8"),
        ({"quant_method": "awq", "version": "gemv"}, "'gemv'"),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "int8"}}}, "int8"),
        ({"quant_method": "quark"}, "quark"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, "weight_block_size"),
        ({"quant_method": "fp8", "modules_to_not_convert": "gate"}, "modules_to_not_convert"),
        ({"quant_method": "compressed-tensors", "config_groups": []}, None),
        ({"quant_method": "compressed-tensors", "config_groups": [1]}, "config_groups"),
        (
            {"config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 2}}}},
            "config_groups.g",
        ),
        ([], None),
        (["fp8"], "quantization_config"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, config: Any, named: str | None) -> None:
    if named is None:
        read_announced(tmp_path, {"quantization_config": config})
        return
    with pytest.raises(CheckpointError, match=named):
        read_announced(tmp_path, {"quantization_config": config})
