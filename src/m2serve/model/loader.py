"""Checkpoint -> MiniMaxM2. The layout has bound every tensor by name; here they are read.

Quantised linears stay in their storage format, bit for bit. Norms take the compute dtype, and so do
dense linears and the embedding unless `linear_dtype` says otherwise; the router stays float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from m2serve.checkpoint.layout import CheckpointLayout, plan_layout
from m2serve.checkpoint.loading import load_linear, load_plain, load_stacked
from m2serve.checkpoint.names import (
    ATTENTION_PROJECTIONS,
    EMBEDDING,
    FINAL_NORM,
    LM_HEAD,
    attention_name,
    correction_bias_name,
    expert_name,
    gate_name,
    norm_name,
)
from m2serve.checkpoint.reader import Checkpoint
from m2serve.checkpoint.requantize import WeightFormat, bytes_saved, check_requantizable
from m2serve.checkpoint.weights import DenseWeight, Weight
from m2serve.kernels.cpu_linear import CpuActivation
from m2serve.kernels.dequantize import move
from m2serve.kernels.dispatch import linear_dtype
from m2serve.model.layers import AttentionWeights, LayerWeights, ModelWeights, MoeWeights
from m2serve.model.minimax_m2 import MiniMaxM2
from m2serve.model.native import make_model
from m2serve.model.room import check_room, held_bytes


def load_model(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[float], None] = lambda fraction: None,
    *,
    attention_format: WeightFormat = "",
    head_format: WeightFormat = "",
    cpu_activation: CpuActivation = "auto",
    free_bytes: int | None = None,
) -> MiniMaxM2:
    """Read all weights; `progress` gets the fraction of bytes read.

    Raises ResourceError before that when they take more than `free_bytes` of memory.

    Attention and head are requantised to these formats while they are read; "bf16" is BF16 in
    memory whatever `dtype` is. Raises CheckpointError, and UsageError before anything is read when
    a stored format cannot become the one asked for.
    """
    layout = plan_layout(checkpoint)
    num_layers = checkpoint.shape.num_hidden_layers
    formats: dict[str, WeightFormat] = {LM_HEAD: head_format}
    for index in range(num_layers):
        for projection in ATTENTION_PROJECTIONS:
            formats[attention_name(index, projection)] = attention_format
    attention = [layout.linears[name] for name in formats if name != LM_HEAD]
    check_requantizable("--attention-format", attention_format, attention)
    check_requantizable("--head-format", head_format, [layout.linears[LM_HEAD]])
    if free_bytes is not None:
        check_room(held_bytes(checkpoint, layout, formats, device, dtype), free_bytes, device)
    reader = _Reader(checkpoint, layout, formats, device, dtype, progress)
    layers = tuple(_layer(reader, index) for index in range(num_layers))
    held = linear_dtype(device, torch.bfloat16, dtype)
    weights = ModelWeights(
        embedding=reader.embedding(),
        layers=layers,
        norm=reader.plain(FINAL_NORM),
        lm_head=reader.linear(LM_HEAD),
        bytes_saved=sum(
            bytes_saved(layout.linears[name], format, held.itemsize)
            for name, format in formats.items()
        ),
    )
    return make_model(checkpoint.shape, weights, cpu_activation)


class _Reader:
    """Reads by canonical name and keeps count of the bytes."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        layout: CheckpointLayout,
        formats: Mapping[str, WeightFormat],
        device: torch.device,
        dtype: torch.dtype,
        progress: Callable[[float], None],
    ) -> None:
        self._checkpoint = checkpoint
        self._layout = layout
        self._formats = formats
        self._device = device
        self._dtype = dtype
        self._progress = progress
        linear_bytes = sum(plan.nbytes for plan in layout.linears.values())
        plain_bytes = sum(plan.nbytes for plan in layout.plain.values())
        self._total_bytes = linear_bytes + plain_bytes
        self._done_bytes = 0

    def plain(self, name: str) -> torch.Tensor:
        """In the compute dtype, or float32 where the model asks for it."""
        upcast = self._layout.plain[name].spec.upcast
        return self._stored(name).to(self._device, torch.float32 if upcast else self._dtype)

    def embedding(self) -> torch.Tensor:
        """As a dense matrix is held, though only rows of it are ever read."""
        tensor = self._stored(EMBEDDING)
        return tensor.to(self._device, linear_dtype(self._device, tensor.dtype, self._dtype))

    def linear(self, name: str) -> Weight:
        plan, format = self._layout.linears[name], self._formats[name]
        weight = load_linear(self._checkpoint, plan, format)
        self._count(plan.nbytes)
        return self._moved(weight, torch.bfloat16 if format == "bf16" else self._dtype)

    def stacked(self, names: Sequence[str], batch_shape: tuple[int, ...]) -> Weight:
        plans = [self._layout.linears[name] for name in names]
        before = self._done_bytes

        def report(done: int, total: int) -> None:
            del total
            self._progress((before + done) / self._total_bytes)

        weight = load_stacked(self._checkpoint, plans, batch_shape, report)
        self._done_bytes = before + sum(plan.nbytes for plan in plans)
        return self._moved(weight, self._dtype)

    def _stored(self, name: str) -> torch.Tensor:
        plan = self._layout.plain[name]
        tensor = load_plain(self._checkpoint, plan)
        self._count(plan.nbytes)
        return tensor

    def _moved(self, weight: Weight, dtype: torch.dtype) -> Weight:
        if isinstance(weight, DenseWeight):
            dtype = linear_dtype(self._device, weight.weight.dtype, dtype)
        return move(weight, self._device, dtype)

    def _count(self, nbytes: int) -> None:
        self._done_bytes += nbytes
        self._progress(self._done_bytes / self._total_bytes)


def _layer(reader: _Reader, index: int) -> LayerWeights:
    projections = {
        name: reader.linear(attention_name(index, name)) for name in ATTENTION_PROJECTIONS
    }
    return LayerWeights(
        input_norm=reader.plain(norm_name(index, "input_layernorm")),
        attention=AttentionWeights(
            **projections,
            q_norm=reader.plain(norm_name(index, "q_norm")),
            k_norm=reader.plain(norm_name(index, "k_norm")),
        ),
        post_attention_norm=reader.plain(norm_name(index, "post_attention_layernorm")),
        moe=_moe(reader, index),
    )


def _moe(reader: _Reader, index: int) -> MoeWeights:
    gate = reader.plain(gate_name(index))
    count = gate.shape[0]
    gate_up = [expert_name(index, e, matrix) for e in range(count) for matrix in ("w1", "w3")]
    down = [expert_name(index, e, "w2") for e in range(count)]
    return MoeWeights(
        gate=gate,
        correction_bias=reader.plain(correction_bias_name(index)),
        w13=reader.stacked(gate_up, (count, 2)),
        w2=reader.stacked(down, (count,)),
    )
