"""How many parameters and bytes a MiniMax-M2 is. No torch; whole numbers only.

Formulas follow from the tensor shapes: q [A*D, H], k and v [K*D, H], o [H, A*D], three expert
matrices of I x H, a router [E, H] with a bias [E], RMSNorms over H, A*D and K*D.
"""

from __future__ import annotations

from dataclasses import dataclass

from m2serve.errors import UsageError
from m2serve.spec.shape import ModelShape

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "int8": 1}
FP8_BLOCK = 128


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
    if dtype not in DTYPE_BYTES:
        raise UsageError(f"dtype {dtype!r} is unknown; one of {', '.join(DTYPE_BYTES)}")
    return kv_elements_per_token(shape) * DTYPE_BYTES[dtype]


def linear_bytes(rows: int, columns: int, format: str) -> int:
    """Bytes of one [rows, columns] matrix with its scales in a storage format, else UsageError.

    Formats: f32, bf16, fp8 (128 x 128 blocks, float32 scales), nvfp4 (groups of 16, one float32
    global scale), mxfp4 (groups of 32), int8 (float32 scale a row), int4-g32 and int4-g128
    (symmetric, bfloat16 scales).
    """
    elements = rows * columns
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
        case "int4-g32":
            return elements // 2 + 2 * elements // 32
        case "int4-g128":
            return elements // 2 + 2 * elements // 128
    raise UsageError(f"storage format {format!r} has no known size")


def checkpoint_bytes(shape: ModelShape, *, attention: str, experts: str) -> int:
    """Tensor bytes of a checkpoint with these formats; the rest BF16, router float32."""
    hidden, width = shape.hidden_size, shape.intermediate_size
    one_expert = 2 * linear_bytes(width, hidden, experts) + linear_bytes(hidden, width, experts)
    one_layer = (
        linear_bytes(shape.q_size, hidden, attention)
        + 2 * linear_bytes(shape.kv_size, hidden, attention)
        + linear_bytes(hidden, shape.q_size, attention)
        + shape.num_local_experts * one_expert
    )
    count = count_parameters(shape)
    norms = count.norms + shape.num_hidden_layers * (shape.q_size + shape.kv_size)
    bf16 = 2 * (count.embedding + count.lm_head + norms)
    return shape.num_hidden_layers * one_layer + 4 * count.router + bf16


def fp8_checkpoint_tensors(shape: ModelShape) -> int:
    """Tensors of a release like the official one: a weight and its scale for every FP8 linear."""
    linears = 4 + 3 * shape.num_local_experts
    norms_and_router = 6
    return 3 + shape.num_hidden_layers * (norms_and_router + 2 * linears)


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
