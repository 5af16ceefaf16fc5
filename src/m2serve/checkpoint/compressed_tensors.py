"""The groups of a compressed-tensors `quantization_config`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m2serve.checkpoint.announcement import (
    DENSE,
    AnnouncedFormats,
    Announcement,
    block_size,
    entries,
    positive,
)
from m2serve.checkpoint.formats import (
    Fp8Block,
    Int4Packed,
    Int8Channel,
    Mxfp4,
    Nvfp4CompressedTensors,
)
from m2serve.checkpoint.module_patterns import ModulePatterns
from m2serve.errors import CheckpointError

EVERY_LINEAR = "Linear"


def compressed_tensors(settings: Mapping[str, Any]) -> AnnouncedFormats:
    """Ignored modules are dense; a group that names a module wins over one for every Linear."""
    groups = settings.get("config_groups") or {}
    if not isinstance(groups, Mapping):
        raise CheckpointError("config_groups in the quantization config is not an object")
    ignored = ModulePatterns(entries(settings, "ignore"), "ignore")
    named: list[tuple[ModulePatterns, Announcement]] = []
    fallback: Announcement | None = None
    for name, group in groups.items():
        announcement = _announcement(name, group)
        if announcement is None:
            continue
        targets = entries(group, "targets")
        if EVERY_LINEAR in targets:
            fallback = announcement
        patterns = [target for target in targets if target != EVERY_LINEAR]
        named.append((ModulePatterns(patterns, f"targets of {name}"), announcement))

    def of(module: str) -> Announcement | None:
        if ignored.match(module):
            return DENSE
        for patterns, announcement in named:
            if patterns.match(module):
                return announcement
        return fallback

    return AnnouncedFormats("config.json (quant_method 'compressed-tensors')", of)


def _announcement(name: str, group: Any) -> Announcement | None:
    """Format of a group's weights; None for a group that quantises activations or the cache."""
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if weights is None:
        return None
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"config_groups.{name}.weights is not an object")
    kind = (weights.get("num_bits"), weights.get("type"))
    group_size, symmetric = weights.get("group_size"), weights.get("symmetric", True)
    match kind:
        case (4, "float") if group_size in (None, 16):
            return Announcement(Nvfp4CompressedTensors)
        case (4, "float") if group_size == 32:
            return Announcement(Mxfp4)
        case (4, "int"):
            parameters: dict[str, Any] = {"symmetric": bool(symmetric)}
            if positive(group_size):
                parameters["group_size"] = group_size
            return Announcement(Int4Packed, parameters)
        case (8, "int") if symmetric and weights.get("strategy") == "channel":
            return Announcement(Int8Channel)
        case (8, "float") if weights.get("strategy") == "block":
            size = block_size(weights.get("block_structure"), "block_structure")
            return Announcement(Fp8Block, {"block_size": size})
    raise CheckpointError(
        f"config_groups.{name} announces weights of {kind[0]!r} bits, type {kind[1]!r}, strategy "
        f"{weights.get('strategy')!r}, group_size {group_size!r}, which m2serve does not read"
    )
