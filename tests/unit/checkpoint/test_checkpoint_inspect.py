"""What `inspect` says about good, odd and broken checkpoints."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FORMATS, build_tiny
from tiny_edit import edit_json, edit_tensors

from m2serve.checkpoint.inspect import InspectReport, inspect
from m2serve.checkpoint.names import expert_name
from m2serve.checkpoint.reader import Checkpoint
from m2serve.errors import CheckpointError, ConfigError

SMALL: dict[str, Any] = {"num_hidden_layers": 1, "num_local_experts": 6}
# Said of every release: prediction modules that are not there, and remote code that is not run.
USUAL = 2


@pytest.mark.parametrize("format", FORMATS)
def test_a_good_checkpoint_has_only_the_usual_oddities(tmp_path: Path, format: str) -> None:
    build_tiny(tmp_path, format=format, **SMALL)
    report = inspect(tmp_path)
    assert len(report.oddities) == USUAL, report.oddities
    assert json.loads(json.dumps(asdict(report)))["folder"] == str(tmp_path)
    tensors = Checkpoint.open(tmp_path).tensors
    kv_scales = [
        info.nbytes for name, info in tensors.items() if name.endswith(("k_scale", "v_scale"))
    ]
    assert report.bytes_total == sum(info.nbytes for info in tensors.values()) - sum(kv_scales)
    assert sum(report.bytes_by_component.values()) == report.bytes_total
    assert report.tensor_count == len(tensors)


def test_the_numbers(tmp_path: Path) -> None:
    tiny = build_tiny(tmp_path, format="nvfp4-modelopt")
    report = inspect(tmp_path)
    assert report.parameters_total == sum(tensor.numel() for tensor in tiny.state.values())
    experts = 4 * 8 * 3 * 128 * 256
    assert report.bytes_by_component["experts"] == experts * 9 // 16 + 4 * 8 * 3 * 8
    assert report.bytes_by_format["nvfp4-modelopt"] == report.bytes_by_component["experts"]
    assert report.kv_bytes_per_token == {"bfloat16": 2048, "fp8": 1024}
    assert report.max_position_embeddings == 4096
    assert report.kv_scale_count == 8
    assert report.sampling == {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 40}
    assert (report.special_ids.bos, report.special_ids.eos) == (1170, 1156)
    assert report.special_ids.generation_bos == 1155


def spoil_config(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda c: c.update(fields))


def remove_config(*fields: str) -> Callable[[Path], None]:
    return lambda folder: edit_json(
        folder / "config.json", lambda c: [c.pop(field) for field in fields]
    )


def add_file(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(b"x") and None


def narrow_router(folder: Path) -> None:
    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "gate.weight" in name]:
            tensors[name] = tensors[name].bfloat16()

    edit_tensors(folder, narrow)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_config(bos_token_id=1, eos_token_id=2), "eos_token_id [2]"),
        (spoil_config(bos_token_id=1, eos_token_id=2), "bos_token_id 1"),
        (remove_config("rotary_dim"), "no rotary_dim"),
        (
            spoil_config(rope_parameters={"rope_type": "default", "rope_theta": 5000000}),
            "no partial_rotary_factor",
        ),
        (narrow_router, "router tensors are not F32, model.layers.0.block_sparse_moe.gate.weight"),
        (add_file("model-inputscales.safetensors"), "model-inputscales.safetensors is not named"),
        (add_file("model.safetensors.bak"), ".bak is a backup"),
        (add_file("pytorch_model.bin"), "pytorch_model.bin looks like a pickle"),
        (add_file("modeling_minimax_m2.py"), "modeling_minimax_m2.py is code"),
        (lambda folder: (folder / "generation_config.json").unlink(), "generation_config.json is"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (
            lambda folder: edit_json(
                folder / "generation_config.json", lambda g: g.update(eos_token_id=7)
            ),
            "eos_token_id [7]",
        ),
    ],
)
def test_an_oddity_is_said(tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    build_tiny(tmp_path, **SMALL)
    spoil(tmp_path)
    oddities = inspect(tmp_path).oddities
    assert any(said in text for text in oddities), oddities


def test_missing_input_scales_are_counted(tmp_path: Path) -> None:
    build_tiny(tmp_path, format="nvfp4-modelopt", **SMALL)
    name = f"{expert_name(0, 1, 'w2')}.input_scale"
    edit_tensors(tmp_path, lambda tensors: tensors.pop(name) and None)
    assert any("1 of 18 linears lack input_scale" in text for text in inspect(tmp_path).oddities)


def poisoned(folder: Path, format: str, name: str, value: float) -> InspectReport:
    build_tiny(folder, format=format, **SMALL)

    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = torch.full_like(tensors[name], value)

    edit_tensors(folder, poison)
    return inspect(folder)


@pytest.mark.parametrize(
    ("format", "suffix", "value"),
    [
        ("fp8", "weight_scale_inv", float("nan")),
        ("nvfp4-modelopt", "weight_scale", float("nan")),
        ("nvfp4-modelopt", "weight_scale_2", -1.0),
        ("int4-ct-sym-g32", "weight_scale", float("inf")),
        ("int4-awq", "scales", float("inf")),
        ("mxfp4", "weight_scale", 255),
        ("int8-ascend-dynamic", "weight_scale", float("nan")),
        ("nvfp4-modelopt", "weight_scale_2", 4000.0),
        ("nvfp4-ct", "weight_global_scale", 0.001),
    ],
)
def test_bad_scales_are_found(tmp_path: Path, format: str, suffix: str, value: float) -> None:
    name = f"{expert_name(0, 4, 'w2')}.{suffix}"
    report = poisoned(tmp_path, format, name, value)
    assert [text for text in report.oddities if text.startswith(name)], report.oddities
    assert len(inspect(tmp_path, scan_scales=False).oddities) == USUAL


def test_many_bad_scales_are_summed_up(tmp_path: Path) -> None:
    build_tiny(tmp_path, format="fp8", **SMALL)

    def poison(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("_scale_inv")]:
            tensors[name].fill_(float("nan"))

    edit_tensors(tmp_path, poison)
    oddities = inspect(tmp_path).oddities
    assert len(oddities) == USUAL + 11
    assert oddities[-1] == "and 12 more linears with bad scales"


def test_broken_checkpoints_raise(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        inspect(tmp_path)
    build_tiny(tmp_path, **SMALL)
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        inspect(tmp_path)
