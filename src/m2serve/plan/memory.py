"""The exact memory of every rank: weights by component, overhead, and what is left for KV cache.

Experts lie over all ranks of a stage (whole with expert parallelism, else cut), attention,
embedding and lm_head over the tensor ranks, router and norms on every rank. Key and value heads are
copied when there are more tensor ranks than heads. Embedding is on the first stage, lm_head on the
last.
"""

from __future__ import annotations

from dataclasses import dataclass

from m2serve.plan.configuration import Configuration, sizes
from m2serve.plan.overhead import SPREAD, overhead_terms
from m2serve.records import MemoryTerm, Parallelism, RankMemory
from m2serve.spec.cost import kv_elements_per_token, linear_bytes
from m2serve.spec.shape import ModelShape
from m2serve.spec.variants import Variant, find_draft

KV_BYTES = {"auto": 2, "bf16": 2, "fp8": 1, "int8": 1}
# A draft of unknown size is taken as the largest known one (togethercomputer's, 858M parameters).
_UNKNOWN_DRAFT_BYTES = 1_716_000_000


@dataclass(frozen=True)
class MemoryPlan:
    """`kv_cache_tokens` of the whole deployment, `replica_tokens` of one data-parallel rank, which
    a request cannot exceed. `safe_tokens` is the latter when the overhead is the spread above its
    estimate. `shortfall_bytes` is what the fullest device lacks, 0 when it fits.
    """

    ranks: tuple[RankMemory, ...]
    kv_cache_tokens: int
    replica_tokens: int
    safe_tokens: int
    shortfall_bytes: int


def plan_memory(configuration: Configuration) -> MemoryPlan:
    """Ranks are data-parallel outermost, then stages, prefill-context and tensor ranks, as vLLM
    numbers them; the devices are taken in the hardware's order.
    """
    cut, shape = configuration.parallelism, configuration.shape
    stages = stage_layers(shape, cut)
    kinds = [_kind(configuration, rank) for rank in range(cut.world_size)]
    terms_of = {kind: _fixed_terms(configuration, kind, stages) for kind in dict.fromkeys(kinds)}
    fixed = [terms_of[kind] for kind in kinds]
    budgets = [_budget(configuration, rank) for rank in range(cut.world_size)]
    free = [budget - _total(terms) for budget, terms in zip(budgets, fixed, strict=True)]
    per_token = [
        kv_bytes_per_token(shape, cut, stages[_stage(cut, rank)], configuration.kv_cache_dtype)
        for rank in range(cut.world_size)
    ]
    block = int(configuration.engine.default("block_size", configuration.version) or 1)
    per_replica = cut.world_size // cut.data
    blocks = []
    for start in range(0, cut.world_size, per_replica):
        replica = range(start, start + per_replica)
        blocks.append(max(0, min(free[r] // (per_token[r] * block) for r in replica)))
    ranks = tuple(
        _rank_memory(configuration, r, budgets[r], fixed[r], blocks[r // per_replica] * block * b)
        for r, b in enumerate(per_token)
    )
    context_ranks = cut.decode_context * cut.prefill_context
    replica_tokens = min(blocks) * block * context_ranks
    total = sum(blocks) * block * context_ranks
    safe_blocks = min(
        (free[r] - int(SPREAD * rank.term("overhead"))) // (per_token[r] * block)
        for r, rank in enumerate(ranks)
    )
    safe_tokens = max(0, safe_blocks) * block * context_ranks
    return MemoryPlan(ranks, total, replica_tokens, safe_tokens, max(0, -min(free)))


def stage_layers(shape: ModelShape, cut: Parallelism) -> tuple[int, ...]:
    """Layers of each stage; an even cut gives the remainder to the stages before the last, from the
    back, as vLLM's get_pp_indices does.
    """
    if cut.pipeline_layers:
        return cut.pipeline_layers
    layers = [shape.num_hidden_layers // cut.pipeline] * cut.pipeline
    for extra in range(shape.num_hidden_layers % cut.pipeline):
        layers[-2 - extra] += 1
    return tuple(layers)


def kv_bytes_per_token(shape: ModelShape, cut: Parallelism, layers: int, dtype: str) -> int:
    """Bytes that one rank keeps for one token of its own share of the sequence."""
    heads = max(1, -(-shape.num_key_value_heads // cut.tensor))
    per_head = kv_elements_per_token(shape) // (shape.num_hidden_layers * shape.num_key_value_heads)
    return layers * heads * per_head * KV_BYTES[dtype]


def weight_terms(
    variant: Variant, cut: Parallelism, stage: int, num_local_experts: int, layers: int
) -> tuple[MemoryTerm, ...]:
    """Weights of a rank of `stage`, which has `layers` layers and `num_local_experts` of each whole
    (a share of all of them without expert parallelism).
    """
    shape, whole = sizes(variant)
    depth = shape.num_hidden_layers
    if cut.expert_parallel:
        experts = whole.experts * num_local_experts // variant.num_experts
    else:
        experts = whole.experts // _shards(cut)
    terms = [
        ("weights.experts", experts * layers // depth),
        ("weights.attention", _attention(variant, cut.tensor) * layers // depth),
        ("weights.router", whole.router * layers // depth),
        ("weights.norms", whole.norms * layers // depth),
    ]
    if stage == 0:
        terms.append(("weights.embedding", whole.embedding // cut.tensor))
    if stage == cut.pipeline - 1:
        terms.append(("weights.lm_head", whole.lm_head // cut.tensor))
    return tuple(MemoryTerm(name, size) for name, size in terms)


def num_local_experts(variant: Variant, cut: Parallelism, rank: int) -> int:
    """Experts a layer that this rank holds, whole or in part; the first take the remainder."""
    if not cut.expert_parallel:
        return variant.num_experts
    share, rest = divmod(variant.num_experts, _shards(cut))
    in_stage = cut.prefill_context * cut.tensor
    position = _data(cut, rank) * in_stage + rank % in_stage
    return share + (position < rest)


def draft_bytes(draft: str) -> int:
    """Of a draft by hub id; one of unknown size counts as the largest known."""
    return find_draft(draft).num_bytes or _UNKNOWN_DRAFT_BYTES


def _attention(variant: Variant, tensor: int) -> int:
    """Bytes of all layers' q, k, v and o on one rank."""
    shape, format = sizes(variant)[0], variant.attention_format
    queries = linear_bytes(shape.q_size, shape.hidden_size, format)
    queries += linear_bytes(shape.hidden_size, shape.q_size, format)
    keys = 2 * linear_bytes(shape.kv_size, shape.hidden_size, format)
    kv_cut = min(tensor, shape.num_key_value_heads)
    return shape.num_hidden_layers * (queries // tensor + keys // kv_cut)


# What ranks with the same memory have in common: stage, local experts, the device's architecture.
_Kind = tuple[int, int, str]


def _kind(configuration: Configuration, rank: int) -> _Kind:
    cut = configuration.parallelism
    experts = num_local_experts(configuration.held, cut, rank)
    return _stage(cut, rank), experts, configuration.devices[rank].arch


def _fixed_terms(
    configuration: Configuration, kind: _Kind, stages: tuple[int, ...]
) -> tuple[MemoryTerm, ...]:
    cut, variant = configuration.parallelism, configuration.held
    stage, experts, arch = kind
    weights = weight_terms(variant, cut, stage, experts, stages[stage])
    terms = list(weights)
    if configuration.draft:
        terms.append(MemoryTerm("weights.draft", draft_bytes(configuration.draft)))
    terms += overhead_terms(
        sizes(variant)[0],
        engine=configuration.engine.name,
        arch=arch,
        tensor=cut.tensor,
        pipeline=cut.pipeline,
        shards=configuration.expert_shards,
        expert_parallel=cut.expert_parallel,
        max_num_batched_tokens=configuration.max_num_batched_tokens,
        enforce_eager=configuration.enforce_eager,
    )
    in_layers = sum(t.num_bytes for t in weights if t.name in _OFFLOADABLE)
    offloaded = min(configuration.cpu_offload_bytes, in_layers)
    if offloaded:
        terms.append(MemoryTerm("offloaded", -offloaded))
    return tuple(terms)


_OFFLOADABLE = ("weights.experts", "weights.attention")


def _rank_memory(
    configuration: Configuration,
    rank: int,
    budget: int,
    fixed: tuple[MemoryTerm, ...],
    kv_cache: int,
) -> RankMemory:
    device = configuration.devices[rank]
    terms = (*fixed, MemoryTerm("kv_cache", kv_cache))
    return RankMemory(rank, device.name, device.memory_bytes, budget, terms)


def _budget(configuration: Configuration, rank: int) -> int:
    device = configuration.devices[rank]
    return int(device.memory_bytes * configuration.gpu_memory_utilization)


def _shards(cut: Parallelism) -> int:
    return cut.tensor * cut.data * cut.prefill_context


def _stage(cut: Parallelism, rank: int) -> int:
    return rank // (cut.prefill_context * cut.tensor) % cut.pipeline


def _data(cut: Parallelism, rank: int) -> int:
    return rank // (cut.prefill_context * cut.tensor * cut.pipeline)


def _total(terms: tuple[MemoryTerm, ...]) -> int:
    return sum(term.num_bytes for term in terms)
