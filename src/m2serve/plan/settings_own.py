"""Flags of our own engine: one processor or one GPU."""

from __future__ import annotations

from m2serve.plan.configuration import Configuration
from m2serve.plan.memory import MemoryPlan
from m2serve.plan.setting import Settings, env, flag
from m2serve.plan.settings_shared import MEMORY, name_settings

OWN = "m2 serve"


def own_settings(c: Configuration, memory: MemoryPlan) -> Settings:
    device = "cpu" if c.arch == "cpu" else "cuda"
    kv_cache = memory.ranks[0].term("kv_cache")
    settings = (
        *flag(c, "device", device, "the only device of the plan", OWN),
        *flag(c, "dtype", "bfloat16", "statistics are in float32 all the same", OWN),
        *flag(c, "max_model_len", c.max_model_len, "one request's prompt and answer", MEMORY),
        *flag(c, "max_num_seqs", c.max_num_seqs, "the workload's users; more wait", OWN),
        *flag(
            c,
            "max_num_batched_tokens",
            c.max_num_batched_tokens,
            "a step's tokens bound its activations",
            MEMORY,
        ),
        *flag(c, "kv_cache_memory_bytes", kv_cache, "what weights and overhead leave", MEMORY),
        *flag(
            c,
            "reasoning_parser",
            c.engine.reasoning_parser,
            "thinking goes to a field of its own",
            OWN,
        ),
        *name_settings(c),
    )
    if c.arch == "cpu":
        reason = "threads that wait do not take bandwidth from those that read"
        settings += env(c, "OMP_WAIT_POLICY", "PASSIVE", reason, OWN)
    return settings
