"""What a checkpoint is: sizes, formats, defaults, and what is odd about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2serve.checkpoint.layout import CheckpointLayout, plan_layout
from m2serve.checkpoint.oddities import find_oddities
from m2serve.checkpoint.reader import Checkpoint
from m2serve.checkpoint.special_ids import SpecialIds, special_ids
from m2serve.spec.cost import count_parameters, kv_bytes_per_token

_KV_DTYPES = ("bfloat16", "fp8")
_SAMPLING_FIELDS = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class InspectReport:
    """Parameters, bytes of tensors, context in tokens; every field goes into JSON as it is.

    `parameters_active` are those one token touches, embedding and lm_head not counted.
    `bytes_by_format` counts linears by storage format and the rest as plain; both tables and
    `bytes_total` leave out tensors the model does not use.
    """

    folder: str
    parameters_total: int
    parameters_active: int
    parameters: Mapping[str, int]
    tensor_count: int
    bytes_total: int
    bytes_by_component: Mapping[str, int]
    bytes_by_format: Mapping[str, int]
    num_hidden_layers: int
    num_local_experts: int
    num_experts_per_tok: int
    vocab_size: int
    max_position_embeddings: int
    kv_bytes_per_token: Mapping[str, int]
    kv_scale_count: int
    sampling: Mapping[str, Any]
    special_ids: SpecialIds
    oddities: tuple[str, ...]


def inspect(path: Path | str, *, scan_scales: bool = True) -> InspectReport:
    """Read headers and configuration, and every scale tensor unless told not to.

    Raises ConfigError or CheckpointError for a checkpoint that cannot be served; what can be
    served but deserves attention is in `oddities`.
    """
    with Checkpoint.open(path) as checkpoint:
        layout = plan_layout(checkpoint)
        ids = special_ids(checkpoint.folder, checkpoint.config, checkpoint.generation_config)
        oddities = find_oddities(checkpoint, layout, ids, scan_scales=scan_scales)
    shape = checkpoint.shape
    count = count_parameters(shape)
    by_format = bytes_by_format(layout)
    return InspectReport(
        folder=str(checkpoint.folder),
        parameters_total=count.total,
        parameters_active=count.active,
        parameters=asdict(count),
        tensor_count=len(checkpoint.tensors),
        bytes_total=sum(by_format.values()),
        bytes_by_component=bytes_by_component(layout),
        bytes_by_format=by_format,
        num_hidden_layers=shape.num_hidden_layers,
        num_local_experts=shape.num_local_experts,
        num_experts_per_tok=shape.num_experts_per_tok,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_position_embeddings,
        kv_bytes_per_token={dtype: kv_bytes_per_token(shape, dtype) for dtype in _KV_DTYPES},
        kv_scale_count=len(layout.kv_scales),
        sampling={
            name: checkpoint.generation_config[name]
            for name in _SAMPLING_FIELDS
            if name in checkpoint.generation_config
        },
        special_ids=ids,
        oddities=oddities,
    )


def bytes_by_format(layout: CheckpointLayout) -> dict[str, int]:
    """Tensor bytes of linears by storage format; norms, embedding and router are `plain`."""
    sizes: Counter[str] = Counter()
    for plan in layout.linears.values():
        sizes[str(plan.format)] += plan.nbytes
    sizes["plain"] = sum(plan.nbytes for plan in layout.plain.values())
    return dict(sizes)


def bytes_by_component(layout: CheckpointLayout) -> dict[str, int]:
    """Tensor bytes of embedding, attention (with its norms), router, experts, norms, lm_head."""
    sizes: Counter[str] = Counter()
    for name, nbytes in [
        *((plan.spec.name, plan.nbytes) for plan in layout.plain.values()),
        *((plan.name, plan.nbytes) for plan in layout.linears.values()),
    ]:
        sizes[_component(name)] += nbytes
    return dict(sizes)


def _component(name: str) -> str:
    if ".experts." in name:
        return "experts"
    if ".block_sparse_moe." in name:
        return "router"
    if ".self_attn." in name:
        return "attention"
    if name.startswith("lm_head"):
        return "lm_head"
    return "embedding" if "embed_tokens" in name else "norms"
