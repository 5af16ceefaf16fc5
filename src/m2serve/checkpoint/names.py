"""The tensors a MiniMax-M2 has, whatever the storage format: linears and plain tensors.

Names are those of the released checkpoints; `mlp` in place of `block_sparse_moe` (the module's name
in transformers) is read as the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass

from m2serve.spec.shape import ModelShape

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head"
ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")

# Scales of a quantised KV cache, under a layer's self_attn: kept, never required.
KV_SCALE_SUFFIXES = frozenset(
    f"{owner}{scale}"
    for owner, scale in (
        ("k_proj.", "k_scale"),
        ("v_proj.", "v_scale"),
        ("", "k_scale"),
        ("", "v_scale"),
        ("k_proj.", "kv_cache_scale"),
        ("k_proj.", "kv_cache_offset"),
        ("v_proj.", "kv_cache_scale"),
        ("v_proj.", "kv_cache_offset"),
    )
)


@dataclass(frozen=True)
class LinearSpec:
    """y = x Wᵀ with W [rows, columns]; `name` is the module's, without `.weight`."""

    name: str
    rows: int
    columns: int


@dataclass(frozen=True)
class PlainSpec:
    """A tensor that is never quantised; `upcast` ones are float32 whatever the file holds."""

    name: str
    shape: tuple[int, ...]
    upcast: bool = False


@dataclass(frozen=True)
class Inventory:
    """Everything a checkpoint of this shape must hold."""

    linears: tuple[LinearSpec, ...]
    plain: tuple[PlainSpec, ...]


def attention_name(layer: int, projection: str) -> str:
    """Module name of q_proj, k_proj, v_proj or o_proj."""
    return f"model.layers.{layer}.self_attn.{projection}"


def expert_name(layer: int, expert: int, matrix: str) -> str:
    """Module name of w1 (gate), w2 (down) or w3 (up) of one expert."""
    return f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{matrix}"


def norm_name(layer: int, norm: str) -> str:
    """Tensor name of input_layernorm, post_attention_layernorm, q_norm or k_norm."""
    owner = "self_attn." if norm in ("q_norm", "k_norm") else ""
    return f"model.layers.{layer}.{owner}{norm}.weight"


def gate_name(layer: int) -> str:
    """Tensor name of the router's weight [num_local_experts, hidden_size]."""
    return f"model.layers.{layer}.block_sparse_moe.gate.weight"


def correction_bias_name(layer: int) -> str:
    """Tensor name of the router's bias [num_local_experts]; the block owns it, not the gate."""
    return f"model.layers.{layer}.block_sparse_moe.e_score_correction_bias"


def canonical(name: str) -> str:
    """The released spelling of a tensor or module name."""
    return name.replace(".mlp.", ".block_sparse_moe.")


def layer_of(name: str) -> int | None:
    """Layer number in `model.layers.N.…`, None for a name outside the layers."""
    parts = name.split(".", 3)
    if parts[:2] != ["model", "layers"] or len(parts) < 4 or not parts[2].isascii():
        return None
    return int(parts[2]) if parts[2].isdigit() and len(parts[2]) <= 6 else None


def is_kv_scale(name: str) -> bool:
    """Whether the tensor is a KV-cache scale or offset of some layer."""
    head, separator, tail = name.partition(".self_attn.")
    return bool(separator) and layer_of(f"{head}.x") is not None and tail in KV_SCALE_SUFFIXES


def inventory(shape: ModelShape) -> Inventory:
    """Linears and plain tensors of this shape, in layer order."""
    hidden = shape.hidden_size
    linears: list[LinearSpec] = []
    plain = [PlainSpec(EMBEDDING, (shape.vocab_size, hidden))]
    for layer in range(shape.num_hidden_layers):
        linears += _layer_linears(shape, layer)
        plain += [
            PlainSpec(norm_name(layer, "input_layernorm"), (hidden,)),
            PlainSpec(norm_name(layer, "q_norm"), (shape.q_size,)),
            PlainSpec(norm_name(layer, "k_norm"), (shape.kv_size,)),
            PlainSpec(norm_name(layer, "post_attention_layernorm"), (hidden,)),
            PlainSpec(gate_name(layer), (shape.num_local_experts, hidden), upcast=True),
            PlainSpec(correction_bias_name(layer), (shape.num_local_experts,), upcast=True),
        ]
    plain.append(PlainSpec(FINAL_NORM, (hidden,)))
    linears.append(LinearSpec(LM_HEAD, shape.vocab_size, hidden))
    return Inventory(tuple(linears), tuple(plain))


def _layer_linears(shape: ModelShape, layer: int) -> list[LinearSpec]:
    hidden, width = shape.hidden_size, shape.intermediate_size
    linears = [
        LinearSpec(attention_name(layer, "q_proj"), shape.q_size, hidden),
        LinearSpec(attention_name(layer, "k_proj"), shape.kv_size, hidden),
        LinearSpec(attention_name(layer, "v_proj"), shape.kv_size, hidden),
        LinearSpec(attention_name(layer, "o_proj"), hidden, shape.q_size),
    ]
    for expert in range(shape.num_local_experts):
        linears += [
            LinearSpec(expert_name(layer, expert, "w1"), width, hidden),
            LinearSpec(expert_name(layer, expert, "w2"), hidden, width),
            LinearSpec(expert_name(layer, expert, "w3"), width, hidden),
        ]
    return linears
