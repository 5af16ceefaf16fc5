"""Layers for unequal cards, and weights left in host memory where nothing else fits."""

from __future__ import annotations

import math

from m2serve.plan.configuration import Configuration, sizes
from m2serve.plan.memory import kv_bytes_per_token, plan_memory
from m2serve.records import Parallelism
from m2serve.spec.units import GIB

# Pinned host memory a device when the host's size is not known; a third of 256 GiB on three cards.
_UNKNOWN_HOST_SHARE = 64 * GIB
_HOST_SHARE = 0.8


def unequal_stages(c: Configuration, min_tokens: int) -> Configuration | None:
    """Stages by memory, so that the KV cache holds most tokens; None when it holds too few."""
    layers = _layers_for(c, min_tokens)
    if layers is None:
        return None
    low, high = min_tokens, max(min_tokens + 1, c.max_model_len * c.max_num_seqs)
    while low + 1 < high:
        tokens = (low + high) // 2
        found = _layers_for(c, tokens)
        low, high, layers = (tokens, high, found) if found else (low, tokens, layers)
    cut = c.parallelism
    return c.replace(
        parallelism=Parallelism(tensor=cut.tensor, pipeline=cut.pipeline, pipeline_layers=layers)
    )


def with_offload(c: Configuration, min_tokens: int) -> Configuration | None:
    """The same with as little of each card's weights in host memory as makes `min_tokens` fit, or
    None where the host has too little.
    """
    limit = _offload_limit(c)
    for size in range(1, limit // GIB + 1):
        trial = c.replace(cpu_offload_bytes=size * GIB)
        if not c.hardware.is_uniform:
            placed = unequal_stages(trial, min_tokens)
            if placed is not None:
                return placed
        elif plan_memory(trial).replica_tokens >= min_tokens:
            return trial
    return None


def _layers_for(c: Configuration, tokens: int) -> tuple[int, ...] | None:
    """Layers of each stage with `tokens` of KV cache, all of them in all, or None."""
    shape, whole = sizes(c.held)
    depth = shape.num_hidden_layers
    in_layers = whole.experts + whole.attention + whole.router + whole.norms
    per_layer = math.ceil(in_layers / depth) + tokens * kv_bytes_per_token(
        shape, c.parallelism, 1, c.kv_cache_dtype
    )
    stages = len(c.devices)
    room = _room_beside_layers(c)
    most = [max(0, free // per_layer) for free in room]
    if sum(most) < depth or min(most) < 1:
        return None
    layers = list(most)
    for stage in sorted(range(stages), key=lambda s: c.devices[s].bandwidth_gb_per_s):
        layers[stage] -= min(sum(layers) - depth, layers[stage] - 1)
    return tuple(layers) if sum(layers) == depth else None


def _room_beside_layers(c: Configuration) -> list[int]:
    """What each stage's device has for layers and their KV cache, offloaded bytes added."""
    stages = len(c.devices)
    one_each = Parallelism(pipeline=stages, pipeline_layers=(1,) * stages)
    bare = plan_memory(c.replace(parallelism=one_each, cpu_offload_bytes=0))
    in_layer = ("weights.experts", "weights.attention", "weights.router", "weights.norms")
    room = []
    for rank in bare.ranks:
        layer = sum(rank.term(name) for name in in_layer)
        fixed = rank.used_bytes - rank.term("kv_cache") - layer
        room.append(rank.budget_bytes - fixed + c.cpu_offload_bytes)
    return room


def _offload_limit(c: Configuration) -> int:
    known = c.hardware.host_memory_bytes
    if not known:
        return _UNKNOWN_HOST_SHARE
    return int(known * _HOST_SHARE / c.devices_per_node)
