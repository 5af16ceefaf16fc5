"""Deciding, from headers and configuration alone, how every tensor of a checkpoint is read.

The suffixes and dtypes of a linear's tensors decide its format; the configuration must agree. A
tensor that is missing, extra, misshapen or of an unknown dtype is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from m2serve.checkpoint.announced import read_announced
from m2serve.checkpoint.announcement import AnnouncedFormats, Announcement
from m2serve.checkpoint.formats import FORMATS, StorageFormat, TensorInfo, TensorRule
from m2serve.checkpoint.formats.storage import FLOATS
from m2serve.checkpoint.names import (
    Inventory,
    LinearSpec,
    PlainSpec,
    canonical,
    inventory,
    is_kv_scale,
    layer_of,
)
from m2serve.checkpoint.reader import Checkpoint
from m2serve.errors import CheckpointError
from m2serve.spec.shape import ModelShape

_SHOWN_PROBLEMS = 3
_DECODER_PARTS = frozenset(
    {"input_layernorm", "self_attn", "post_attention_layernorm", "block_sparse_moe"}
)


@dataclass(frozen=True)
class LinearPlan:
    """How one linear is read; `tensors`: suffix -> the tensor's name in the checkpoint."""

    linear: LinearSpec
    format: StorageFormat
    tensors: Mapping[str, str]
    nbytes: int

    @property
    def name(self) -> str:
        return self.linear.name


@dataclass(frozen=True)
class PlainPlan:
    """How one plain tensor is read; `tensor` is its name in the checkpoint."""

    spec: PlainSpec
    tensor: str
    nbytes: int


@dataclass(frozen=True)
class CheckpointLayout:
    """Plans by canonical name: linears by module, plain tensors and KV scales by tensor.

    `kv_scales`: canonical name -> name in the checkpoint, empty for most.
    """

    shape: ModelShape
    linears: Mapping[str, LinearPlan]
    plain: Mapping[str, PlainPlan]
    kv_scales: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """A tensor of the checkpoint under its name there."""

    tensor: str
    info: TensorInfo


@dataclass(frozen=True)
class _Directory:
    """The checkpoint's tensors: those of linears by module and suffix, the others by name."""

    modules: dict[str, dict[str, _Found]]
    plain: dict[str, _Found]
    kv_scales: dict[str, str]
    num_beyond_last_layer: int


def plan_layout(checkpoint: Checkpoint) -> CheckpointLayout:
    """Plan every linear and plain tensor; raises CheckpointError, reads no tensor data."""
    wanted = inventory(checkpoint.shape)
    found = _sort_tensors(checkpoint, wanted)
    announced = read_announced(checkpoint.folder, checkpoint.config)
    problems: list[str] = _expert_count_problems(checkpoint.shape, found)
    linears: dict[str, LinearPlan] = {}
    for linear in wanted.linears:
        tensors = found.modules.pop(linear.name, {})
        plan = _plan_linear(linear, tensors, announced, problems)
        if plan is not None:
            linears[linear.name] = plan
    plain = _plan_plain(wanted.plain, found.plain, problems)
    for module, tensors in found.modules.items():
        problems += [f"{module}.{suffix} belongs to no part of the model" for suffix in tensors]
    if problems:
        raise CheckpointError(_sentence(checkpoint, problems))
    notes = [*checkpoint.notes, *announced.notes]
    if found.num_beyond_last_layer:
        notes.append(
            f"{found.num_beyond_last_layer} tensors of layers above the last "
            f"({checkpoint.shape.num_hidden_layers - 1}; multi-token prediction) are ignored"
        )
    return CheckpointLayout(checkpoint.shape, linears, plain, found.kv_scales, tuple(notes))


def _sort_tensors(checkpoint: Checkpoint, wanted: Inventory) -> _Directory:
    plain_names = {spec.name for spec in wanted.plain}
    directory = _Directory({}, {}, {}, 0)
    beyond: dict[int, set[str]] = {}
    last_layers = checkpoint.shape.num_hidden_layers + _num_mtp_layers(checkpoint.config)
    for tensor, info in checkpoint.tensors.items():
        name = canonical(tensor)
        if checkpoint.shape.num_hidden_layers <= (layer_of(name) or 0) < last_layers:
            beyond.setdefault(layer_of(name) or 0, set()).add(name)
        elif name in plain_names:
            _add(directory.plain, name, _Found(tensor, info))
        elif is_kv_scale(name):
            directory.kv_scales[name] = tensor
        else:
            module, _, suffix = name.rpartition(".")
            _add(directory.modules.setdefault(module, {}), suffix, _Found(tensor, info))
    _check_are_mtp(checkpoint, beyond)
    return replace(directory, num_beyond_last_layer=sum(map(len, beyond.values())))


def _check_are_mtp(checkpoint: Checkpoint, beyond: Mapping[int, set[str]]) -> None:
    """A layer of prediction has more than a decoder layer; one that has not is a decoder layer,
    and a config with too few of them would serve the first part of a model.
    """
    for layer, names in beyond.items():
        parts = {name.removeprefix(f"model.layers.{layer}.").split(".")[0] for name in names}
        if parts <= _DECODER_PARTS:
            raise CheckpointError(
                f"{min(names)} belongs to a decoder layer, but num_hidden_layers is "
                f"{checkpoint.shape.num_hidden_layers} in config.json"
            )


def _num_mtp_layers(config: Mapping[str, Any]) -> int:
    """Layers of multi-token prediction that may follow the last; any above them are extra."""
    num_modules = config.get("num_mtp_modules")
    return num_modules if config.get("use_mtp") and isinstance(num_modules, int) else 0


def _add(group: dict[str, _Found], key: str, found: _Found) -> None:
    if key in group:
        raise CheckpointError(f"{found.tensor} and {group[key].tensor} are the same tensor")
    group[key] = found


def _expert_count_problems(shape: ModelShape, found: _Directory) -> list[str]:
    """One sentence when the experts of a layer are not those config.json announces."""
    experts: dict[str, set[int]] = {}
    for module in found.modules:
        block, separator, tail = module.partition(".block_sparse_moe.experts.")
        number = tail.split(".", 1)[0]
        if separator and number.isdecimal() and len(number) <= 6:
            experts.setdefault(block, set()).add(int(number))
    expected = set(range(shape.num_local_experts))
    for block, present in experts.items():
        if present != expected:
            lost, extra = sorted(expected - present), sorted(present - expected)
            what = f"expert {lost[0]} is missing" if lost else f"expert {extra[0]} is one too many"
            return [
                f"{block}.block_sparse_moe.experts holds {len(present)} experts, config.json says "
                f"num_local_experts {shape.num_local_experts}: {what}"
            ]
    return []


def _plan_linear(
    linear: LinearSpec,
    tensors: Mapping[str, _Found],
    announced: AnnouncedFormats,
    problems: list[str],
) -> LinearPlan | None:
    infos = {suffix: found.info for suffix, found in tensors.items()}
    claim = announced.of(linear.name)
    if not infos:
        problems.append(f"{linear.name}.weight is missing, and so is every tensor of that linear")
        return None
    format = _detect(linear, infos)
    if format is None:
        present = ", ".join(f"{suffix} ({info.dtype})" for suffix, info in sorted(infos.items()))
        first = tensors[min(tensors)].tensor
        problems.append(
            f"{first} is in no storage format m2serve reads; {linear.name} holds {present}"
        )
        return None
    if claim is not None:
        if claim.kind is not type(format):
            problems.append(_contradiction(linear, tensors, format, claim, announced.source))
            return None
        format = replace(format, **claim.parameters)  # type: ignore[type-var]
    count = len(problems)
    _check_tensors(linear.name, format, format.rules(linear), tensors, problems)
    if len(problems) > count:
        return None
    names = {suffix: found.tensor for suffix, found in tensors.items()}
    return LinearPlan(linear, format, names, sum(info.nbytes for info in infos.values()))


def _detect(linear: LinearSpec, infos: Mapping[str, TensorInfo]) -> StorageFormat | None:
    for kind in FORMATS:
        format = kind.detect(linear, infos)
        if format is not None:
            return format
    return None


def _contradiction(
    linear: LinearSpec,
    tensors: Mapping[str, _Found],
    format: StorageFormat,
    claim: Announcement,
    source: str,
) -> str:
    main = next((s for s in ("weight", "weight_packed", "qweight") if s in tensors), min(tensors))
    stored = tensors[main]
    return (
        f"{stored.tensor} is {stored.info.dtype}, stored as {format.name}, but {source} announces "
        f"{claim.kind.name} for {linear.name}"
    )


def _check_tensors(
    module: str,
    format: StorageFormat,
    rules: Mapping[str, TensorRule],
    tensors: Mapping[str, _Found],
    problems: list[str],
) -> None:
    for suffix, rule in rules.items():
        found = tensors.get(suffix)
        if found is None:
            if not rule.optional:
                problems.append(f"{module}.{suffix} is missing; {format} needs it")
        else:
            _check_one(found, rule, str(format), problems)
    for suffix, found in tensors.items():
        if suffix not in rules:
            problems.append(f"{found.tensor} is an extra tensor; {format} has none of that name")


def _check_one(found: _Found, rule: TensorRule, reader: str, problems: list[str]) -> None:
    info = found.info
    if info.dtype not in rule.dtypes:
        wanted = " or ".join(rule.dtypes)
        problems.append(f"{found.tensor} is {info.dtype}; {reader} needs {wanted}")
    elif info.shape not in rule.shapes:
        wanted = " or ".join(str(list(shape)) for shape in rule.shapes)
        problems.append(
            f"{found.tensor} has shape {list(info.shape)}; {reader} and config.json need {wanted}"
        )


def _plan_plain(
    specs: tuple[PlainSpec, ...], found: Mapping[str, _Found], problems: list[str]
) -> dict[str, PlainPlan]:
    plans = {}
    for spec in specs:
        stored = found.get(spec.name)
        if stored is None:
            problems.append(f"{spec.name} is missing")
            continue
        _check_one(stored, TensorRule(FLOATS, (spec.shape,)), "a MiniMax-M2", problems)
        plans[spec.name] = PlainPlan(spec, stored.tensor, stored.info.nbytes)
    return plans


def _sentence(checkpoint: Checkpoint, problems: list[str]) -> str:
    shown = "; ".join(problems[:_SHOWN_PROBLEMS])
    rest = len(problems) - _SHOWN_PROBLEMS
    more = f"; and {rest} problems more" if rest > 0 else ""
    return f"{checkpoint.folder}: {shown}{more}"
