"""Memory that an engine takes beside weights and KV cache: an estimate, its parts named.

Calibrated on what was published: 6.8 GiB a GPU (two MI300X), about 8.7 (four RTX Pro 6000), both
with tensor parallelism and 8,192 batched tokens; 3 to 4 GiB on one GPU (REAP-139B on one 96 GB card
with 2,048 tokens, DGX Spark). aiconfigurator books 3.9 GB of it as fixed.
"""

from __future__ import annotations

from m2serve.records import MemoryTerm
from m2serve.spec.shape import ModelShape
from m2serve.spec.units import GIB

SOURCE = "published remainders: 2xMI300X 6.8 GiB, 4xRTX Pro 6000 8.7 GiB, one device 3 to 4 GiB"
# The published remainders lie within this share of the estimate.
SPREAD = 0.25

_CONTEXT = int(1.5 * GIB)
_GRAPHS = 1 * GIB
_COLLECTIVES = int(3.9 * GIB)
_POINT_TO_POINT = int(0.4 * GIB)
_HOST_PROCESS = 1 * GIB
_HIDDEN_COPIES = 10
_BYTES = 2


def overhead_terms(
    shape: ModelShape,
    *,
    engine: str,
    arch: str,
    tensor: int,
    pipeline: int,
    shards: int,
    expert_parallel: bool,
    max_num_batched_tokens: int,
    enforce_eager: bool,
) -> tuple[MemoryTerm, ...]:
    """Bytes on one device; `shards` are the ranks that share a stage's experts."""
    if arch == "cpu":
        terms = [("overhead.context", _HOST_PROCESS)]
    else:
        terms = [("overhead.context", _CONTEXT)]
        if not enforce_eager and engine != "own":
            terms.append(("overhead.graphs", _GRAPHS))
    if shards > 1:
        terms.append(("overhead.communication", _COLLECTIVES))
    elif pipeline > 1:
        terms.append(("overhead.communication", _POINT_TO_POINT))
    expert_cut = 1 if expert_parallel else shards
    activations = max_num_batched_tokens * activation_bytes_per_token(shape, tensor, expert_cut)
    terms.append(("overhead.activations", activations))
    return tuple(MemoryTerm(name, size) for name, size in terms)


def activation_bytes_per_token(shape: ModelShape, tensor: int, expert_cut: int) -> int:
    """Live bytes of one token in a step, BF16: what the chosen experts take in and give out
    (gate and up, their product, the result of each), q, k and v in and out, ten hidden rows.
    """
    width = shape.intermediate_size // expert_cut
    experts = shape.num_experts_per_tok * (3 * width + shape.hidden_size)
    attention = 2 * (shape.q_size + 2 * shape.kv_size) // tensor
    return _BYTES * (experts + attention + _HIDDEN_COPIES * shape.hidden_size)
