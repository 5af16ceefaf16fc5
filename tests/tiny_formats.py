"""Which linears each published kind of checkpoint quantises, how, and what its files say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tiny_dequantize import from_file

from m2serve.checkpoint.formats import fp8_block, int4_awq, int4_packed, int8, mxfp4, nvfp4

ACTIVATION_RANGE = (-5.0, 4.6)
KV_SCALE = 0.05

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Encoder:
    """`encode(weight, amax)`: float32 [N, K] -> file tensors by suffix; amax None means its own."""

    storage: str
    encode: Callable[[torch.Tensor, float | None], Tensors]


def _fp8_renamed(weight: torch.Tensor) -> Tensors:
    tensors = fp8_block.quantize(weight)
    tensors["weight_scale"] = tensors.pop("weight_scale_inv")
    return tensors


FP8 = Encoder("fp8-block", lambda w, amax: fp8_block.quantize(w))
FP8_CT = Encoder("fp8-block", lambda w, amax: _fp8_renamed(w))
NVFP4 = Encoder(
    "nvfp4-modelopt", lambda w, amax: nvfp4.quantize_modelopt(w, amax=amax, input_amax=5.0)
)
NVFP4_CT = Encoder(
    "nvfp4-ct", lambda w, amax: nvfp4.quantize_compressed_tensors(w, amax=amax, input_amax=5.0)
)
INT4_G32 = Encoder("int4-ct", lambda w, amax: int4_packed.quantize(w, group_size=32))
INT4_ASYM = Encoder(
    "int4-ct", lambda w, amax: int4_packed.quantize(w, group_size=128, symmetric=False)
)
AWQ = Encoder("int4-awq", lambda w, amax: int4_awq.quantize(w, group_size=128))
INT8 = Encoder("int8-ct", lambda w, amax: int8.quantize(w))
ASCEND = Encoder("int8-ascend", lambda w, amax: int8.quantize_ascend(w))
ASCEND_STATIC = Encoder(
    "int8-ascend", lambda w, amax: int8.quantize_ascend(w, input_range=ACTIVATION_RANGE)
)
MXFP4 = Encoder("mxfp4", lambda w, amax: mxfp4.quantize(w, codes="weight"))


@dataclass(frozen=True)
class Recipe:
    """None leaves the linears of that kind BF16; `config(num_layers)` -> quantization_config."""

    attention: Encoder | None = None
    experts: Encoder | None = None
    config: Callable[[int], dict[str, Any]] | None = None


def _fp8_config(num_layers: int) -> dict[str, Any]:
    return {
        "activation_scheme": "dynamic",
        "fmt": "float8_e4m3fn",
        "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }


def _ignored_layers(num_layers: int) -> list[str]:
    ignored = ["lm_head"]
    for layer in range(num_layers):
        ignored.append(f"model.layers.{layer}.block_sparse_moe.gate")
        ignored.append(f"model.layers.{layer}.self_attn*")
    return ignored


def _modelopt_config(num_layers: int) -> dict[str, Any]:
    four_bits = {"dynamic": False, "group_size": 16, "num_bits": 4, "type": "float"}
    group = {"input_activations": four_bits, "targets": ["Linear"], "weights": four_bits}
    return {
        "config_groups": {"group_0": group},
        "ignore": _ignored_layers(num_layers),
        "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
        "producer": {"name": "modelopt", "version": "0.47.0"},
        "quant_algo": "NVFP4",
        "quant_method": "modelopt",
    }


def _groups_config(
    groups: Mapping[str, tuple[list[str], dict[str, Any]]], ignore: list[str]
) -> dict[str, Any]:
    return {
        "config_groups": {
            name: {"input_activations": None, "targets": targets, "weights": weights}
            for name, (targets, weights) in groups.items()
        },
        "ignore": ignore,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def _weights(num_bits: int, type: str, strategy: str, **more: Any) -> dict[str, Any]:
    return {
        "dynamic": False,
        "num_bits": num_bits,
        "strategy": strategy,
        "symmetric": True,
        "type": type,
        **more,
    }


_NOT_EXPERTS = ["lm_head", "re:.*self_attn.*", "re:.*block_sparse_moe.gate$"]


def _experts_only(weights: dict[str, Any]) -> Callable[[int], dict[str, Any]]:
    return lambda num_layers: _groups_config({"group_0": (["Linear"], weights)}, _NOT_EXPERTS)


def _int8_config(num_layers: int) -> dict[str, Any]:
    ignore = ["lm_head", "re:.*mlp.gate$"]
    return _groups_config({"group_0": (["Linear"], _weights(8, "int", "channel"))}, ignore)


def _mixed_config(num_layers: int) -> dict[str, Any]:
    block = _weights(8, "float", "block", block_structure=[128, 128])
    four = _weights(4, "int", "group", group_size=32)
    groups = {
        "group_0": (["re:.*block_sparse_moe.experts.*"], four),
        "group_1": (["re:.*self_attn.(q|k|v|o)_proj$"], block),
    }
    return _groups_config(groups, ["lm_head", "re:.*block_sparse_moe.gate$"])


def _awq_config(num_layers: int) -> dict[str, Any]:
    return {
        "bits": 4,
        "group_size": 128,
        "modules_to_not_convert": ["self_attn", "gate", "lm_head"],
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
    }


def _quark_config(num_layers: int) -> dict[str, Any]:
    four_bits = {"dtype": "fp4", "group_size": 32, "scale_format": "e8m0"}
    return {
        "exclude": ["lm_head", "*block_sparse_moe.gate*", "*self_attn*"],
        "global_quant_config": {"input_tensors": four_bits, "weight": four_bits},
        "quant_method": "quark",
    }


RECIPES: Mapping[str, Recipe] = {
    "bf16": Recipe(),
    "f32": Recipe(),
    "fp8": Recipe(FP8, FP8, _fp8_config),
    "nvfp4-modelopt": Recipe(None, NVFP4, _modelopt_config),
    "nvfp4-ct": Recipe(
        None, NVFP4_CT, _experts_only(_weights(4, "float", "tensor_group", group_size=16))
    ),
    "int4-awq": Recipe(None, AWQ, _awq_config),
    "int4-ct-sym-g32": Recipe(
        None, INT4_G32, _experts_only(_weights(4, "int", "group", group_size=32))
    ),
    "int4-ct-asym-g128": Recipe(
        None,
        INT4_ASYM,
        _experts_only({**_weights(4, "int", "group", group_size=128), "symmetric": False}),
    ),
    "int8-ct": Recipe(INT8, INT8, _int8_config),
    "int8-ascend-dynamic": Recipe(ASCEND, ASCEND),
    "int8-ascend-static": Recipe(ASCEND_STATIC, ASCEND),
    "mxfp4": Recipe(None, MXFP4, _quark_config),
    "fp8-attn-int4-experts": Recipe(FP8_CT, INT4_G32, _mixed_config),
}


def store(values: Tensors, format: str) -> tuple[Tensors, Tensors]:
    """Float32 values by checkpoint name -> file tensors, and the float32 values those stand for."""
    recipe = RECIPES[format]
    tensors: Tensors = {}
    meaning: Tensors = {}
    for name, value in values.items():
        module, _, suffix = name.rpartition(".")
        encoder = _encoder(recipe, module) if suffix == "weight" else None
        if encoder is None:
            tensors[name] = _dense(name, value, format)
            meaning[name] = tensors[name].float()
            continue
        stored = encoder.encode(value, _shared_amax(values, module))
        tensors.update({f"{module}.{part}": tensor for part, tensor in stored.items()})
        meaning[name] = torch.from_numpy(from_file(encoder.storage, stored))
    if format == "nvfp4-modelopt":
        tensors.update(_kv_scales(values))
    return tensors, meaning


def side_files(tensors: Tensors, meaning: Tensors, format: str) -> dict[str, dict[str, Any]]:
    """JSON files beside config.json: file name -> content."""
    num_layers = sum(name.endswith("q_proj.weight") for name in meaning)
    if format == "nvfp4-modelopt":
        quantization = {
            "exclude_modules": [*_ignored_layers(num_layers), "model.embed_tokens"],
            "group_size": 16,
            "kv_cache_quant_algo": "FP8",
            "quant_algo": "NVFP4",
        }
        producer = {"name": "modelopt", "version": "0.47.0"}
        return {"hf_quant_config.json": {"producer": producer, "quantization": quantization}}
    if format.startswith("int8-ascend"):
        description: dict[str, Any] = {"model_quant_type": "W8A8_DYNAMIC", "version": "1.0.0"}
        for name in tensors:
            module = name.rpartition(".")[0]
            kind = "W8A8_DYNAMIC" if f"{module}.weight_offset" in tensors else "FLOAT"
            description[name] = "W8A8" if f"{module}.deq_scale" in tensors else kind
        return {"quant_model_description.json": description}
    return {}


def _encoder(recipe: Recipe, module: str) -> Encoder | None:
    if ".experts." in module:
        return recipe.experts
    return recipe.attention if module.endswith("_proj") else None


def _shared_amax(values: Tensors, module: str) -> float | None:
    """w1 and w3 are multiplied as one matrix, so quantisers give them one global scale."""
    if not module.endswith((".w1", ".w3")):
        return None
    expert = module[: -len("w1")]
    return max(float(values[f"{expert}{w}.weight"].abs().max()) for w in ("w1", "w3"))


def _kv_scales(values: Tensors) -> Tensors:
    layers = [name[: -len("q_proj.weight")] for name in values if name.endswith("q_proj.weight")]
    scales = ("k_proj.k_scale", "v_proj.v_scale")
    return {f"{layer}{scale}": torch.tensor(KV_SCALE) for layer in layers for scale in scales}


def _dense(name: str, value: torch.Tensor, format: str) -> torch.Tensor:
    keeps_f32 = format == "f32" or ".gate." in name or name.endswith("e_score_correction_bias")
    return value.to(torch.float32 if keeps_f32 else torch.bfloat16)
