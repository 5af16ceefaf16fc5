"""Published checkpoints: their bytes against what was published, and how they are found."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from m2serve.errors import ConfigError, M2Error, UsageError
from m2serve.spec.tables import read_toml
from m2serve.spec.variants import (
    QUANTIZATIONS,
    dequantised,
    find_draft,
    find_variant,
    load_bases,
    load_drafts,
    load_variants,
    read_variants,
)

GIB, MIB = 1 << 30, 1 << 20


def document() -> dict[str, Any]:
    return copy.deepcopy(read_toml("variants.toml"))


def config() -> dict[str, Any]:
    return {
        "model_type": "minimax_m2",
        "hidden_size": 3072,
        "num_hidden_layers": 62,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rotary_dim": 64,
        "rope_theta": 5000000,
        "intermediate_size": 1536,
        "num_local_experts": 256,
        "num_experts_per_tok": 8,
        "vocab_size": 200064,
        "max_position_embeddings": 196608,
    }


def write(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**config(), **changes}))
    return folder


@pytest.mark.parametrize(
    ("name", "published", "unit"),
    [
        ("MiniMaxAI/MiniMax-M2.5", 230_121_630_720, 1),
        ("MiniMaxAI/MiniMax-M2.7", 230.2, 1e9),
        ("MiniMaxAI/MiniMax-M2.5", 4 * 53.75, GIB),
        ("cyankiwi/MiniMax-M2-BF16", 457.51, 1e9),
        ("mconcat/MiniMax-M2.5-NVFP4", 126, GIB),
        ("nvidia/MiniMax-M2.5-NVFP4", 134.40, 1e9),
        ("saricles/MiniMax-M2.7-NVFP4-GB10", 130.6, 1e9),
        ("saricles/MiniMax-M2.5-REAP-139B-A10B-NVFP4-GB10", 75, GIB),
        ("saricles/MiniMax-M2.5-REAP-172B-A10B-NVFP4-GB10", 99, 1e9),
        ("lukealonso/MiniMax-M2.5-REAP-139B-A10B-NVFP4", 84.01, 1e9),
        ("mratsim/MiniMax-M2.5-BF16-INT4-AWQ", 134.40, 1e9),
        ("mratsim/MiniMax-M2.5-FP8-INT4-AWQ", 131.67, 1e9),
        ("QuantTrio/MiniMax-M2-AWQ", 124.75, 1e9),
        ("QuantTrio/MiniMax-M2.7-AWQ", 130_266_976_748, 1),
        ("Eco-Tech/MiniMax-M2.5-w8a8-QuaRot", 230.36, 1e9),
        ("nameistoken/MiniMax-M2.5-Quark-W8A8-INT8", 216, GIB),
        ("amd/MiniMax-M2.5-MXFP4", 127.38, 1e9),
        ("mlx-community/MiniMax-M2.5-8bit", 242, 1e9),
        ("mlx-community/MiniMax-M2-4bit", 129, 1e9),
        ("MiniMax-M2.5-GGUF:IQ2_M", 78.1, 1e9),
    ],
)
def test_bytes_are_those_published(name: str, published: float, unit: float) -> None:
    assert find_variant(name).checkpoint_bytes / unit == pytest.approx(published, rel=0.01)


def test_experts_of_a_part_quantised_gguf() -> None:
    experts = find_variant("MiniMax-M2.5-GGUF:IQ5_K").weight_bytes.experts
    assert experts / MIB == pytest.approx(157_356, rel=0.001)


def test_components_add_up_to_the_checkpoint() -> None:
    for variant in load_variants():
        parts = variant.weight_bytes
        assert parts.total == variant.checkpoint_bytes, variant.name
        assert parts.experts > parts.attention > 0, variant.name
        assert min(parts.router, parts.embedding, parts.lm_head, parts.norms) > 0, variant.name


def test_a_pin_differs_from_the_formats_by_little() -> None:
    unpinned = document()
    for row in unpinned["variant"]:
        row.pop("checkpoint_bytes", None)
    for pinned, computed in zip(load_variants(), read_variants(unpinned), strict=True):
        assert pinned.checkpoint_bytes == pytest.approx(computed.checkpoint_bytes, rel=0.05)


def test_every_row_is_complete() -> None:
    assert {variant.base for variant in load_variants()} == {"M2", "M2.1", "M2.5", "M2.7"}
    for variant in load_variants():
        assert variant.source, variant.name
        assert variant.quantization in QUANTIZATIONS
        assert 154 <= variant.num_experts <= 256
        assert bool(variant.quantised_parts) == (variant.quantization != "bf16"), variant.name


def test_context_is_the_checkpoints_own() -> None:
    assert find_variant("MiniMaxAI/MiniMax-M2.5").max_model_len == 196_608
    assert find_variant("MiniMaxAI/MiniMax-M2.7").max_model_len == 204_800
    assert find_variant("nvidia/MiniMax-M2.7-NVFP4").max_model_len == 196_608
    assert find_variant("nvidia/MiniMax-M2.7-NVFP4").shape.max_position_embeddings == 196_608


def test_licences() -> None:
    assert "non-commercial" in find_variant("lukealonso/MiniMax-M2.7-NVFP4").licence_warning
    assert "attribution" in find_variant("nvidia/MiniMax-M2.5-NVFP4").licence_warning
    assert find_variant("MiniMaxAI/MiniMax-M2.1").licence_warning == ""
    assert all(base.licence for base in load_bases())


def test_names_are_found_in_any_case_and_by_alias() -> None:
    assert find_variant("minimaxai/minimax-m2.5").name == "MiniMaxAI/MiniMax-M2.5"
    assert find_variant("MiniMax/MiniMax-M2.5").name == "MiniMaxAI/MiniMax-M2.5"
    assert find_variant("mratsim/Minimax-M2.5-BF16-INT4-AWQ").group_size == 32
    found = find_draft("vllm-ascend/MiniMax-M2.5-eagle-model-0318")
    assert found.name == "vllm-ascend/MiniMax-M2.5-eagel-model-0318"
    assert all(draft.source for draft in load_drafts())


def test_an_unknown_name_is_told_its_neighbours() -> None:
    with pytest.raises(UsageError, match=r"lukealonso/MiniMax-M2\.5-NVFP4"):
        find_variant("lukalonso/MiniMax-M2.5-NVFP4")
    with pytest.raises(UsageError, match=r"MiniMaxAI/MiniMax-M2\.5"):
        find_variant("MiniMax-M2.5")
    with pytest.raises(UsageError, match="one of"):
        find_draft("nobody/draft")


def test_dequantised_is_bf16() -> None:
    plain = dequantised(find_variant("MiniMaxAI/MiniMax-M2.5"))
    assert plain.checkpoint_bytes / 1e9 == pytest.approx(457.4, rel=0.001)
    assert plain.quantised_parts == ()
    assert plain.weight_bytes.total == plain.checkpoint_bytes


MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
PACKED = {"num_bits": 4, "group_size": 32, "symmetric": True}
LINEAR = {"targets": ["Linear"], "weights": {"num_bits": 4}}


@pytest.mark.parametrize(
    ("quantization", "gigabytes", "word"),
    [
        (None, 457.48, "bf16"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["gate", "lm_head"]}, 230.12, "fp8"),
        ({**MODELOPT, "ignore": ["lm_head", "model.layers.0.self_attn*"]}, 134.5, "nvfp4"),
        ({**MODELOPT, "exclude_modules": ["lm_head"]}, 130.6, "nvfp4"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": PACKED}},
                "ignore": ["lm_head", "re:.*self_attn.*"],
            },
            134.5,
            "int4-awq",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "mixed-precision",
                "config_groups": {
                    "a": {
                        "targets": ["re:.*experts.*"],
                        "weights": PACKED,
                        "format": "pack-quantized",
                    },
                    "b": {
                        "targets": ["re:.*self_attn.*"],
                        "weights": {},
                        "format": "float-quantized",
                    },
                },
            },
            131.7,
            "int4-awq",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "nvfp4-pack-quantized",
                "config_groups": {"group_0": LINEAR},
                "ignore": ["lm_head"],
            },
            130.6,
            "nvfp4",
        ),
        (
            {
                "quant_method": "awq",
                "bits": 4,
                "group_size": 128,
                "zero_point": True,
                "modules_to_not_convert": ["self_attn"],
            },
            124.8,
            "int4-awq",
        ),
        (
            {
                "quant_method": "quark",
                "global_quant_config": {"weight": {"dtype": "fp4"}},
                "exclude": ["lm_head", "*self_attn*"],
            },
            127.5,
            "mxfp4",
        ),
    ],
)
def test_a_folder_is_read_from_its_config(
    tmp_path: Path, quantization: dict[str, Any] | None, gigabytes: float, word: str
) -> None:
    changes = {"quantization_config": quantization} if quantization else {}
    variant = find_variant(write(tmp_path, **changes))
    assert variant.checkpoint_bytes / 1e9 == pytest.approx(gigabytes, rel=0.001)
    assert variant.quantization == word
    assert variant.base == ""


def test_a_folder_of_its_own_shape(tmp_path: Path) -> None:
    variant = find_variant(write(tmp_path, num_local_experts=154, max_position_embeddings=204800))
    assert variant.shape.num_local_experts == variant.num_experts == 154
    assert variant.base == "M2.7"
    assert "non-commercial" in variant.licence_warning


def test_ascend_and_modelopt_files_beside_the_config(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "quant_model_description.json").write_text("{}")
    assert find_variant(tmp_path).quantization == "w8a8"
    (tmp_path / "quant_model_description.json").unlink()
    settings = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": settings}))
    variant = find_variant(tmp_path)
    assert variant.quantised_parts == ("experts", "attention")
    assert variant.has_kv_scales


@pytest.mark.parametrize(
    "quantization",
    [
        "fp8",
        {"quant_method": "gptq"},
        {"quant_method": "awq", "bits": 8},
        {"quant_method": "awq", "bits": 4, "group_size": 0},
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        {"quant_method": "fp8", "modules_to_not_convert": "gate"},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": 4}}},
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {}}}},
        {"quant_method": "quark"},
    ],
)
def test_a_folder_with_an_unknown_scheme_is_refused(tmp_path: Path, quantization: Any) -> None:
    with pytest.raises(ConfigError):
        find_variant(write(tmp_path, quantization_config=quantization))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("base", "M3", "base: 'M3' is not a base"),
        ("quantization", "fp7", "quantization: 'fp7' is unknown"),
        ("experts_format", "q9", "experts_format: .*q9"),
        ("experts_format", "int4-g0", "experts_format: .*group size"),
        ("head_format", "bits-99", "head_format: .*bits"),
        ("draft", "nobody/draft", "draft: 'nobody/draft' is not a draft"),
        ("num_experts", 0, "num_experts: 0 is not positive"),
    ],
)
def test_broken_rows_are_refused(key: str, value: Any, message: str) -> None:
    broken = document()
    broken["variant"][0][key] = value
    with pytest.raises(M2Error, match=rf"variant 'MiniMaxAI/MiniMax-M2', {message}"):
        read_variants(broken)
