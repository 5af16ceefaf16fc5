"""The settings of a configuration, by engine."""

from __future__ import annotations

from m2serve.plan.configuration import Configuration, sizes
from m2serve.plan.memory import MemoryPlan
from m2serve.plan.setting import Settings
from m2serve.plan.settings_ascend import ascend_settings
from m2serve.plan.settings_own import own_settings
from m2serve.plan.settings_sglang import sglang_settings
from m2serve.plan.settings_shared import cut_settings, limit_settings
from m2serve.plan.settings_vllm import vllm_settings
from m2serve.records import Workload


def settings_of(c: Configuration, memory: MemoryPlan, workload: Workload) -> Settings:
    """Every flag, variable and host command; what the release does not know is left out."""
    match c.engine.name:
        case "own":
            return own_settings(c, memory)
        case "sglang":
            return sglang_settings(c, memory)
        case "vllm-ascend":
            return ascend_settings(c, workload.input_len)
    return vllm_settings(c, has_little_room(c, memory))


def bare_settings(c: Configuration) -> Settings:
    """Cut and limits alone, without any workaround."""
    return (*cut_settings(c), *limit_settings(c))


def has_little_room(c: Configuration, memory: MemoryPlan) -> bool:
    """Whether a second copy of one layer's experts, as reordering makes it, exceeds a tenth of what
    the KV cache will take: the loader works before the cache exists.
    """
    layer = sizes(c.held)[1].experts // c.shape.num_hidden_layers // c.expert_shards
    return any(layer > rank.term("kv_cache") // 10 for rank in memory.ranks)
