"""How many parameters and bytes a MiniMax-M2 is. No torch; whole numbers only.

Formulas follow from the tensor shapes: q [A*D, H], k and v [K*D, H], o [H, A*D], three expert
matrices of I x H, a router [E, H] with a bias [E], RMSNorms over H, A*D and K*D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from m2serve.errors import UsageError
from m2serve.spec.shape import ModelShape

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "int8": 1}
FP8_BLOCK = 128
BITS_PREFIX, INT4_PREFIX, ZERO_POINTS = "bits-", "int4-g", "-zp"
_GROUP_SIZES = {"fp8": FP8_BLOCK, "nvfp4": 16, "mxfp4": 32}


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of the whole model by component; `active` are those one token touches.

    `attention` includes the q and k norms, `norms` are the two of each layer and the final one.
    """

    embedding: int
    lm_head: int
    attention: int
    router: int
    experts: int
    norms: int
    active_experts: int

    @property
    def total(self) -> int:
        parts = self.attention + self.router + self.experts + self.norms
        return self.embedding + self.lm_head + parts

    @property
    def active(self) -> int:
        """Per token without embedding and lm_head: everything in the layers, and the last norm."""
        return self.attention + self.router + self.active_experts + self.norms

    @property
    def active_with_lm_head(self) -> int:
        return self.active + self.lm_head


def count_parameters(shape: ModelShape) -> ParameterCount:
    """Exact counts, all layers together."""
    layers, hidden = shape.num_hidden_layers, shape.hidden_size
    qk_norms = shape.q_size + shape.kv_size
    experts = expert_parameters(shape)
    return ParameterCount(
        embedding=shape.vocab_size * hidden,
        lm_head=shape.vocab_size * hidden,
        attention=layers * (attention_parameters(shape) + qk_norms),
        router=layers * shape.num_local_experts * (hidden + 1),
        experts=layers * shape.num_local_experts * experts,
        norms=(2 * layers + 1) * hidden,
        active_experts=layers * shape.num_experts_per_tok * experts,
    )


def attention_parameters(shape: ModelShape) -> int:
    """Parameters of q, k, v and o of one layer, norms not counted."""
    return 2 * (shape.q_size + shape.kv_size) * shape.hidden_size


def expert_parameters(shape: ModelShape) -> int:
    """Parameters of w1, w2 and w3 of one expert of one layer."""
    return 3 * shape.intermediate_size * shape.hidden_size


def kv_elements_per_token(shape: ModelShape) -> int:
    """Numbers the KV cache keeps for one token: k and v of every layer."""
    return 2 * shape.kv_size * shape.num_hidden_layers


def kv_bytes_per_token(shape: ModelShape, dtype: str) -> int:
    """Bytes of KV cache for one token; `dtype` is a key of DTYPE_BYTES, else UsageError."""
    return kv_elements_per_token(shape) * dtype_bytes(dtype)


def kv_slot_bytes(shape: ModelShape, dtype: str) -> int:
    """Bytes of one token in our own engine's cache, as kv_bytes_per_token: int8 has a float32 scale
    for each head of k and of v, in every layer."""
    scales = 4 * kv_elements_per_token(shape) // shape.head_dim if dtype == "int8" else 0
    return kv_bytes_per_token(shape, dtype) + scales


def dtype_bytes(dtype: str) -> int:
    """Bytes of one number; `dtype` is a key of DTYPE_BYTES, else UsageError."""
    if dtype not in DTYPE_BYTES:
        raise UsageError(f"dtype {dtype!r} is unknown; one of {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype]


def linear_bytes(rows: int, columns: int, format: str) -> int:
    """Bytes of one [rows, columns] matrix with its scales in a storage format, else UsageError.

    Formats: f32, bf16, fp8 (128 x 128 blocks, float32 scales), nvfp4 (groups of 16, one float32
    global scale), mxfp4 (groups of 32), int8 (float32 scale a row), int4-gN (groups of N, 16-bit
    scales), int4-gN-zp (with 4-bit zero points), bits-N (N bits a weight all told, as GGUF and MLX
    files are described).
    """
    elements = rows * columns
    if format.startswith(BITS_PREFIX):
        return math.ceil(elements * bits_per_weight(format) / 8)
    if format.startswith(INT4_PREFIX):
        group = group_size(format)
        zero_points = elements // (2 * group) if format.endswith(ZERO_POINTS) else 0
        return elements // 2 + 2 * elements // group + zero_points
    match format:
        case "f32":
            return 4 * elements
        case "bf16":
            return 2 * elements
        case "fp8":
            return elements + 4 * _ceil_div(rows, FP8_BLOCK) * _ceil_div(columns, FP8_BLOCK)
        case "nvfp4":
            return elements // 2 + elements // 16 + 4
        case "mxfp4":
            return elements // 2 + elements // 32
        case "int8":
            return elements + 4 * rows
    raise UsageError(f"storage format {format!r} has no known size")


def group_size(format: str) -> int:
    """Weights of a row that share a scale; 0 for a scale a row, for bits-N and unquantised.

    UsageError for an int4 format without a group size from 8 to 1024.
    """
    if not format.startswith(INT4_PREFIX):
        return _GROUP_SIZES.get(format, 0)
    digits = format.removeprefix(INT4_PREFIX).removesuffix(ZERO_POINTS)
    if (
        not (digits.isascii() and digits.isdecimal())
        or len(digits) > 4
        or not 8 <= int(digits) <= 1024
    ):
        raise UsageError(f"storage format {format!r} needs a group size from 8 to 1024")
    return int(digits)


def bits_per_weight(format: str) -> float:
    """N of "bits-N", more than 0 and at most 32, else UsageError."""
    try:
        bits = float(format.removeprefix(BITS_PREFIX))
    except ValueError:
        bits = 0.0
    if not 0 < bits <= 32:
        raise UsageError(f"storage format {format!r} needs a number of bits up to 32 after 'bits-'")
    return bits


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of the tensors by component, scales included; `norms` are all of them."""

    experts: int
    attention: int
    router: int
    embedding: int
    lm_head: int
    norms: int

    @property
    def total(self) -> int:
        layers = self.experts + self.attention + self.router + self.norms
        return layers + self.embedding + self.lm_head


def weight_bytes(
    shape: ModelShape,
    *,
    attention: str,
    experts: str,
    embedding: str = "bf16",
    head: str = "bf16",
    router_dtype: str = "float32",
) -> WeightBytes:
    """Bytes by component in formats of `linear_bytes`, router in a DTYPE_BYTES; norms are BF16."""
    layers, hidden, width = shape.num_hidden_layers, shape.hidden_size, shape.intermediate_size
    one_expert = 2 * linear_bytes(width, hidden, experts) + linear_bytes(hidden, width, experts)
    one_attention = (
        linear_bytes(shape.q_size, hidden, attention)
        + 2 * linear_bytes(shape.kv_size, hidden, attention)
        + linear_bytes(hidden, shape.q_size, attention)
    )
    count = count_parameters(shape)
    return WeightBytes(
        experts=layers * shape.num_local_experts * one_expert,
        attention=layers * one_attention,
        router=dtype_bytes(router_dtype) * count.router,
        embedding=linear_bytes(shape.vocab_size, hidden, embedding),
        lm_head=linear_bytes(shape.vocab_size, hidden, head),
        norms=2 * (count.norms + layers * (shape.q_size + shape.kv_size)),
    )


def active_bytes_per_token(
    shape: ModelShape,
    experts: str,
    attention: str,
    head: str,
    *,
    router_dtype: str = "bfloat16",
) -> int:
    """Weight bytes that decoding one token of one sequence reads: all but the embedding, of whose
    rows it is one, and of the experts those it is routed to. Formats as in `weight_bytes`.
    """
    parts = weight_bytes(
        shape,
        attention=attention,
        experts=experts,
        embedding="bf16",
        head=head,
        router_dtype=router_dtype,
    )
    active_experts = parts.experts * shape.num_experts_per_tok // shape.num_local_experts
    embedding_row = parts.embedding // shape.vocab_size
    dense = parts.attention + parts.router + parts.norms + parts.lm_head
    return dense + active_experts + embedding_row


def checkpoint_bytes(shape: ModelShape, *, attention: str, experts: str) -> int:
    """Tensor bytes of a checkpoint with these formats; the rest BF16, router float32."""
    return weight_bytes(shape, attention=attention, experts=experts).total


def fp8_checkpoint_tensors(shape: ModelShape) -> int:
    """Tensors of a release like the official one: a weight and its scale for every FP8 linear."""
    linears = 4 + 3 * shape.num_local_experts
    norms_and_router = 6
    return 3 + shape.num_hidden_layers * (norms_and_router + 2 * linears)


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
