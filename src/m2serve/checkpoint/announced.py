"""Which storage format the configuration files announce for each linear.

The tensors themselves decide how a linear is read; what is announced is checked against them.
Carriers: `quantization_config` in config.json, ModelOpt's hf_quant_config.json, and Ascend's
quant_model_description.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2serve.checkpoint.announcement import (
    DENSE,
    AnnouncedFormats,
    Announcement,
    block_size,
    entries,
    positive,
    unless,
)
from m2serve.checkpoint.compressed_tensors import compressed_tensors
from m2serve.checkpoint.formats import Fp8Block, Int4Awq, Int8Ascend, Mxfp4, Nvfp4ModelOpt
from m2serve.checkpoint.module_patterns import ModulePatterns
from m2serve.errors import CheckpointError
from m2serve.spec.config_formats import ASCEND_FILE, MODELOPT_FILE
from m2serve.spec.shape import load_json_object

MAX_DESCRIPTION_BYTES = 256 * 1024 * 1024
QUAROT_NOTE = "the weights are rotated (QuaRot, folded); hidden states differ from the original's"
METHODS = ("fp8", "modelopt", "compressed-tensors", "awq", "quark", "ascend")

_NVFP4_ALGORITHMS = ("NVFP4", "W4A16_NVFP4")
_ASCEND_TYPES: Mapping[str, Any] = {"FLOAT": None, "W8A8_DYNAMIC": False, "W8A8": True}


def read_announced(folder: Path, config: Mapping[str, Any]) -> AnnouncedFormats:
    """Read the carriers; raises CheckpointError for a method or a parameter we do not read."""
    settings = config.get("quantization_config") or {}
    if not isinstance(settings, Mapping):
        raise CheckpointError(f"quantization_config in {folder / 'config.json'} is not an object")
    method = _method(folder, settings)
    match method:
        case None:
            source = "config.json (no quantization_config)"
            return AnnouncedFormats(source, lambda module: DENSE)
        case "fp8":
            return _fp8(settings)
        case "modelopt" | "modelopt_fp4":
            return _modelopt(folder, settings)
        case "compressed-tensors":
            return compressed_tensors(settings)
        case "awq":
            return _awq(settings)
        case "quark":
            return _quark(settings)
        case "ascend":
            return _ascend(folder)
    raise CheckpointError(
        f"quant_method {method!r} in {folder / 'config.json'} is not one m2serve reads "
        f"({', '.join(METHODS)})"
    )


def _method(folder: Path, settings: Mapping[str, Any]) -> str | None:
    method = settings.get("quant_method")
    if method:
        return str(method)
    if (folder / ASCEND_FILE).is_file():
        return "ascend"
    if "quant_algo" in settings or (folder / MODELOPT_FILE).is_file():
        return "modelopt"
    return "compressed-tensors" if "config_groups" in settings else None


def _fp8(settings: Mapping[str, Any]) -> AnnouncedFormats:
    parameters: dict[str, Any] = {}
    if settings.get("weight_block_size") is not None:
        parameters["block_size"] = block_size(settings["weight_block_size"], "weight_block_size")
    excluded = ModulePatterns(entries(settings, "modules_to_not_convert"), "modules_to_not_convert")
    source = "config.json (quant_method 'fp8')"
    return AnnouncedFormats(source, unless(excluded, Announcement(Fp8Block, parameters)))


def _modelopt(folder: Path, settings: Mapping[str, Any]) -> AnnouncedFormats:
    path = folder / MODELOPT_FILE
    beside = load_json_object(path).get("quantization") if path.is_file() else {}
    if not isinstance(beside, Mapping):
        raise CheckpointError(f"{path} has no quantization object")
    for algorithm in (settings.get("quant_algo"), beside.get("quant_algo")):
        if algorithm is not None and algorithm not in _NVFP4_ALGORITHMS:
            raise CheckpointError(
                f"quant_algo {algorithm!r} in {folder} is not one m2serve reads "
                f"({', '.join(_NVFP4_ALGORITHMS)})"
            )
    if beside.get("group_size") not in (None, 16):
        raise CheckpointError(f"group_size is {beside['group_size']!r} in {path}; NVFP4 has 16")
    source = f"config.json and {MODELOPT_FILE} (quant_method 'modelopt')"
    if "ignore" not in settings and "exclude_modules" not in beside:
        return AnnouncedFormats(source, lambda module: None)
    listed = entries(settings, "ignore") + entries(beside, "exclude_modules")
    excluded = ModulePatterns(listed, "exclude_modules")
    return AnnouncedFormats(source, unless(excluded, Announcement(Nvfp4ModelOpt)))


def _awq(settings: Mapping[str, Any]) -> AnnouncedFormats:
    bits = settings.get("bits", settings.get("w_bit", 4))
    version = settings.get("version", "gemm")
    if bits != 4 or str(version).lower() != "gemm":
        raise CheckpointError(
            f"AWQ with bits {bits!r} and version {version!r} is not one m2serve reads; "
            "4 bits in the gemm version is"
        )
    group_size = settings.get("group_size", settings.get("q_group_size"))
    parameters = {"group_size": group_size} if positive(group_size) else {}
    excluded = ModulePatterns(entries(settings, "modules_to_not_convert"), "modules_to_not_convert")
    source = "config.json (quant_method 'awq')"
    return AnnouncedFormats(source, unless(excluded, Announcement(Int4Awq, parameters)))


def _quark(settings: Mapping[str, Any]) -> AnnouncedFormats:
    overall = settings.get("global_quant_config") or {}
    weight = overall.get("weight") if isinstance(overall, Mapping) else None
    weight = weight[0] if isinstance(weight, list) and weight else weight
    if not isinstance(weight, Mapping) or weight.get("dtype") != "fp4":
        raise CheckpointError(
            "quant_method 'quark' in config.json announces weights "
            f"{str(weight)[:120]}; m2serve reads its MXFP4 (dtype 'fp4') only"
        )
    excluded = ModulePatterns(entries(settings, "exclude"), "exclude")
    source = "config.json (quant_method 'quark')"
    return AnnouncedFormats(source, unless(excluded, Announcement(Mxfp4)))


def _ascend(folder: Path) -> AnnouncedFormats:
    path = folder / ASCEND_FILE
    if not path.is_file():
        raise CheckpointError(f"quant_method is 'ascend' but {path} is missing")
    description = load_json_object(path, MAX_DESCRIPTION_BYTES)

    def of(module: str) -> Announcement | None:
        kind = description.get(f"{module}.weight")
        if kind is None:
            return None
        if not isinstance(kind, str) or kind not in _ASCEND_TYPES:
            raise CheckpointError(
                f"{path.name} gives {module}.weight the type {kind!r}, which m2serve does not "
                f"read ({', '.join(_ASCEND_TYPES)})"
            )
        static = _ASCEND_TYPES[kind]
        return DENSE if static is None else Announcement(Int8Ascend, {"static": static})

    rotated = _mentions_quarot(description)
    return AnnouncedFormats(path.name, of, (QUAROT_NOTE,) if rotated else ())


def _mentions_quarot(description: Mapping[str, Any]) -> bool:
    optional = description.get("optional")
    nested = isinstance(optional, Mapping) and "quarot" in optional
    return nested or any(key.startswith("optional.quarot") for key in description)
