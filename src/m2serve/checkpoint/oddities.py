"""What is odd about a checkpoint that can be served all the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from m2serve.checkpoint.formats import Nvfp4CompressedTensors, Nvfp4ModelOpt
from m2serve.checkpoint.layout import CheckpointLayout, LinearPlan
from m2serve.checkpoint.reader import Checkpoint
from m2serve.checkpoint.special_ids import SpecialIds
from m2serve.errors import CheckpointError

SCAN_THREADS = 4
SHOWN_SCALES = 10
_PICKLE_SUFFIXES = frozenset((".bin", ".pt", ".pth", ".pkl", ".ckpt"))


def find_oddities(
    checkpoint: Checkpoint, layout: CheckpointLayout, ids: SpecialIds, *, scan_scales: bool
) -> tuple[str, ...]:
    """One sentence each; `scan_scales` reads every scale tensor of the checkpoint."""
    found = [
        *layout.notes,
        *_config_oddities(checkpoint.config),
        *_id_oddities(checkpoint, ids),
        *_file_oddities(checkpoint.folder),
        *_router_oddities(checkpoint, layout),
        *_input_scale_oddities(layout),
    ]
    if scan_scales:
        found += scale_oddities(checkpoint, layout)
    return tuple(found)


def _config_oddities(config: Mapping[str, Any]) -> Iterator[str]:
    rope = config.get("rope_parameters")
    has_factor = isinstance(rope, Mapping) and "partial_rotary_factor" in rope
    if isinstance(rope, Mapping) and not has_factor:
        yield (
            "rope_parameters in config.json has no partial_rotary_factor; other engines may rotate "
            "the whole head"
        )
    if not has_factor and "rotary_dim" not in config and "partial_rotary_factor" not in config:
        yield "config.json has no rotary_dim; half of head_dim is assumed"
    if config.get("use_mtp") and config.get("num_mtp_modules"):
        yield (
            f"config.json announces {config['num_mtp_modules']} multi-token prediction modules; "
            "none is served, and the releases ship none"
        )
    if config.get("auto_map"):
        yield "config.json names remote code (auto_map); it is never run"


def _id_oddities(checkpoint: Checkpoint, ids: SpecialIds) -> Iterator[str]:
    if not checkpoint.generation_config:
        yield "generation_config.json is missing; it holds the sampling defaults and the end id"
    known = ids.generation_eos or ((ids.eos,) if ids.eos is not None else ())
    if ids.config_eos and known and set(ids.config_eos) != set(known):
        yield (
            f"config.json says eos_token_id {list(ids.config_eos)}, the tokenizer and "
            f"generation_config.json say {list(known)}; config.json is not believed"
        )
    boses = {ids.bos, ids.generation_bos} - {None}
    if ids.config_bos is not None and boses and ids.config_bos not in boses:
        yield (
            f"config.json says bos_token_id {ids.config_bos}, the tokenizer and "
            f"generation_config.json say {sorted(map(int, filter(None, boses)))}; "
            "config.json is not believed"
        )
    if ids.eos is not None and ids.generation_eos and ids.eos not in ids.generation_eos:
        yield (
            f"generation_config.json says eos_token_id {list(ids.generation_eos)}, "
            f"the tokenizer says {ids.eos}"
        )


def _file_oddities(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.suffix in _PICKLE_SUFFIXES:
            yield f"{path.name} looks like a pickle file; it is never opened"
        elif path.suffix == ".bak":
            yield f"{path.name} is a backup; it is ignored"
        elif path.suffix == ".py":
            yield f"{path.name} is code; it is never run"
    if not (folder / "tokenizer.json").is_file():
        yield "tokenizer.json is missing; the checkpoint cannot be served without it"


def _router_oddities(checkpoint: Checkpoint, layout: CheckpointLayout) -> Iterator[str]:
    narrow = [
        plan.tensor
        for plan in layout.plain.values()
        if plan.spec.upcast and checkpoint.tensors[plan.tensor].dtype != "F32"
    ]
    if narrow:
        dtype = checkpoint.tensors[narrow[0]].dtype
        yield (
            f"{len(narrow)} router tensors are not F32, {narrow[0]} ({dtype}) for one; "
            "the original has F32, and rounding can change which experts are chosen"
        )


def _input_scale_oddities(layout: CheckpointLayout) -> Iterator[str]:
    for kind in (Nvfp4ModelOpt, Nvfp4CompressedTensors):
        plans = [plan for plan in layout.linears.values() if isinstance(plan.format, kind)]
        missing = [plan.name for plan in plans if kind.input_scale not in plan.tensors]
        if missing and len(missing) < len(plans):
            yield (
                f"{len(missing)} of {len(plans)} linears lack {kind.input_scale}, {missing[0]} for "
                "one; the largest of their layer is used"
            )


def scale_oddities(checkpoint: Checkpoint, layout: CheckpointLayout) -> list[str]:
    """Read all scale tensors in a few threads; NaN, Inf, impossible or inverted ones."""

    def check(plan: LinearPlan) -> str | None:
        tensors = {
            suffix: checkpoint.read(plan.tensors[suffix])
            for suffix in plan.format.scale_suffixes
            if suffix in plan.tensors
        }
        try:
            plan.format.check_scales(plan.name, tensors)
        except CheckpointError as error:
            return str(error)
        return _inverted_global_scale(plan, {k: v.flatten()[0].float() for k, v in tensors.items()})

    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        found = [text for text in pool.map(check, layout.linears.values()) if text is not None]
    if len(found) > SHOWN_SCALES:
        rest = len(found) - SHOWN_SCALES
        return [*found[:SHOWN_SCALES], f"and {rest} more linears with bad scales"]
    return found


def _inverted_global_scale(plan: LinearPlan, first: Mapping[str, Any]) -> str | None:
    """A global scale of the wrong convention makes weights wrong by a factor of 10^6 to 10^8."""
    if isinstance(plan.format, Nvfp4ModelOpt) and first["weight_scale_2"] > 1:
        return f"{plan.name}.weight_scale_2 is {first['weight_scale_2']:g}; is it a divisor?"
    if isinstance(plan.format, Nvfp4CompressedTensors) and first["weight_global_scale"] < 1:
        value = first["weight_global_scale"]
        return f"{plan.name}.weight_global_scale is {value:g}; is it a multiplier?"
    return None
