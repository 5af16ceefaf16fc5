"""Storage formats of a checkpoint's parts as its configuration announces them. No torch.

For sizes before the tensors are at hand; `m2 inspect` reads the tensors themselves. Carriers:
quantization_config in config.json, ModelOpt's hf_quant_config.json, Ascend's description file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2serve.errors import ConfigError
from m2serve.spec.shape import load_json_object

ASCEND_FILE = "quant_model_description.json"
MODELOPT_FILE = "hf_quant_config.json"

_ATTENTION = ("self_attn", "q_proj")
_WORDS = {"fp8": "fp8", "nvfp4": "nvfp4", "mxfp4": "mxfp4", "int8": "w8a8", "bf16": "bf16"}


@dataclass(frozen=True)
class ConfigFormats:
    """Formats of spec.cost.linear_bytes; `quantization` is the family's word for the experts'."""

    quantization: str
    experts: str
    attention: str
    head: str = "bf16"
    has_kv_scales: bool = False


def config_formats(folder: Path, config: Mapping[str, Any]) -> ConfigFormats:
    """Formats of experts and attention; ConfigError for a method or parameters we do not know."""
    settings = config.get("quantization_config") or {}
    if not isinstance(settings, Mapping):
        raise ConfigError(f"quantization_config in {folder / 'config.json'} is not an object")
    method = settings.get("quant_method")
    if not method and (folder / ASCEND_FILE).is_file():
        return _formats("int8", "int8")
    if not method and (folder / MODELOPT_FILE).is_file():
        method = "modelopt"
    if not method:
        return _formats("bf16", "bf16")
    match method:
        case "fp8":
            return _formats("fp8", _unless(settings, "modules_to_not_convert", "fp8"))
        case "modelopt" | "modelopt_fp4":
            return _modelopt(folder, settings)
        case "compressed-tensors":
            return _compressed_tensors(settings)
        case "awq":
            return _awq(settings)
        case "quark":
            return _quark(settings)
        case "ascend":
            return _formats("int8", "int8")
    raise ConfigError(
        f"quant_method {method!r} in {folder / 'config.json'} is unknown; one of fp8, modelopt, "
        "compressed-tensors, awq, quark, ascend"
    )


def _formats(experts: str, attention: str, has_kv_scales: bool = False) -> ConfigFormats:
    quantization = "int4-awq" if experts.startswith("int4") else _WORDS[experts]
    return ConfigFormats(quantization, experts, attention, has_kv_scales=has_kv_scales)


def _unless(settings: Mapping[str, Any], key: str, format: str) -> str:
    """`format`, or bf16 when an entry of the list `key` names the attention."""
    excluded = settings.get(key) or []
    if not isinstance(excluded, list):
        raise ConfigError(f"{key} in quantization_config is {excluded!r}; a list is needed")
    is_excluded = any(word in str(entry) for entry in excluded for word in _ATTENTION)
    return "bf16" if is_excluded else format


def _modelopt(folder: Path, settings: Mapping[str, Any]) -> ConfigFormats:
    path = folder / MODELOPT_FILE
    own = load_json_object(path).get("quantization") if path.is_file() else None
    merged = {**(own if isinstance(own, Mapping) else {}), **settings}
    algorithm = merged.get("quant_algo")
    if algorithm not in ("NVFP4", "W4A16_NVFP4"):
        raise ConfigError(f"quant_algo {algorithm!r} is unknown; NVFP4 is needed")
    key = "ignore" if merged.get("ignore") else "exclude_modules"
    has_scales = bool(merged.get("kv_cache_quant_algo") or merged.get("kv_cache_scheme"))
    return _formats("nvfp4", _unless(merged, key, "nvfp4"), has_scales)


def _compressed_tensors(settings: Mapping[str, Any]) -> ConfigFormats:
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise ConfigError("config_groups in quantization_config is not an object with entries")
    experts, attention = "bf16", "bf16"
    for group in groups.values():
        if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
            raise ConfigError("a group of config_groups in quantization_config has no weights")
        format = _compressed_format(group, str(settings.get("format")))
        targets = [str(target) for target in group.get("targets") or ["Linear"]]
        is_all = any(target == "Linear" for target in targets)
        if is_all or any("experts" in target for target in targets):
            experts = format
        if is_all or any(word in target for target in targets for word in _ATTENTION):
            attention = _unless(settings, "ignore", format)
    return _formats(experts, attention, bool(settings.get("kv_cache_scheme")))


def _compressed_format(group: Mapping[str, Any], default: str) -> str:
    weights = group["weights"]
    format = group.get("format") or default
    match format:
        case "nvfp4-pack-quantized":
            return "nvfp4"
        case "mxfp4-pack-quantized":
            return "mxfp4"
        case "int-quantized":
            return "int8"
        case "float-quantized":
            return "fp8"
        case "pack-quantized" if weights.get("num_bits") == 4:
            return _int4(weights.get("group_size"), weights.get("symmetric") is False)
    raise ConfigError(f"format {format!r} with weights {dict(weights)!r} is unknown")


def _awq(settings: Mapping[str, Any]) -> ConfigFormats:
    if settings.get("bits", settings.get("w_bit")) != 4:
        raise ConfigError(f"bits is {settings.get('bits')!r} in quantization_config; 4 is needed")
    size = settings.get("group_size", settings.get("q_group_size"))
    format = _int4(size, bool(settings.get("zero_point", True)))
    return _formats(format, _unless(settings, "modules_to_not_convert", format))


def _quark(settings: Mapping[str, Any]) -> ConfigFormats:
    scheme = settings.get("global_quant_config")
    weight = scheme.get("weight") if isinstance(scheme, Mapping) else None
    dtype = weight.get("dtype") if isinstance(weight, Mapping) else None
    known = {"fp4": "mxfp4", "int8": "int8", "fp8_e4m3": "fp8"}
    if dtype not in known:
        raise ConfigError(f"Quark's weight dtype {dtype!r} is unknown; one of {', '.join(known)}")
    return _formats(known[dtype], _unless(settings, "exclude", known[dtype]))


def _int4(group_size: Any, has_zero_points: bool) -> str:
    is_whole = isinstance(group_size, int) and not isinstance(group_size, bool)
    if not is_whole or not 8 <= group_size <= 1024:
        raise ConfigError(f"group_size is {group_size!r}; a whole number from 8 to 1024 is needed")
    return f"int4-g{group_size}-zp" if has_zero_points else f"int4-g{group_size}"
