"""A plan as a recipe of vllm-project/recipes: models/<provider>/<model>.yaml. Pure.

Its command builder adds the parallel flags itself, from the strategy; so a recipe holds the
model, the parsers as features, the checkpoints as variants, and what the hardware needs as an
override by its generation. Hardware counts as verified there after a run, so none is claimed here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from m2serve.errors import UsageError
from m2serve.launch.command import flag_words, make_launch, node_settings
from m2serve.launch.files import LaunchFile
from m2serve.launch.options import DEFAULTS, LaunchOptions, hardware_of
from m2serve.launch.placeholders import placeholders_in
from m2serve.launch.plumbing import is_folder
from m2serve.launch.recipe_guide import guide_text
from m2serve.launch.yaml_text import yaml_text
from m2serve.records import Parallelism, Plan, Setting
from m2serve.spec.cost import count_parameters
from m2serve.spec.variants import Variant, find_variant, load_variants

_FEATURES = {
    "tool_calling": (
        "Tool calls parsed from M2's own tags, with automatic tool choice",
        ("--tool-call-parser", "--enable-auto-tool-choice"),
    ),
    "reasoning": ("Thinking in a field of its own", ("--reasoning-parser",)),
    "spec_decoding": ("Drafting with Eagle3", ("--speculative-config",)),
}
# The strategy's own, the deployment's own, told by the model's id, or of one machine's memory where
# an override is for a whole generation.
_NOT_IN_RECIPES = {
    "--tensor-parallel-size",
    "--data-parallel-size",
    "--data-parallel-size-local",
    "--data-parallel-start-rank",
    "--data-parallel-address",
    "--data-parallel-rpc-port",
    "--enable-expert-parallel",
    "--nnodes",
    "--node-rank",
    "--master-addr",
    "--master-port",
    "--headless",
    "--host",
    "--port",
    "--served-model-name",
    "--max-model-len",
    "--max-num-seqs",
    "--gpu-memory-utilization",
}
_GENERATIONS = {
    "sm_80": "ampere",
    "sm_86": "ampere",
    "sm_89": "ada",
    "sm_90": "hopper",
    "sm_100": "blackwell",
    "sm_103": "blackwell",
    "sm_120": "blackwell",
    "sm_121": "blackwell",
    "ascend-910b": "npu",
    "ascend-910c": "npu",
}


def recipe_files(plan: Plan, options: LaunchOptions = DEFAULTS) -> tuple[LaunchFile, ...]:
    """<model>.yaml; raises UsageError for an engine that is not vLLM and for a folder."""
    if plan.engine not in ("vllm", "vllm-ascend"):
        raise UsageError(f"recipes are vLLM's; this plan is for {plan.engine}")
    if is_folder(plan):
        raise UsageError("a recipe names a published checkpoint, this plan is for a folder")
    make_launch(plan, options)
    variant = find_variant(plan.variant)
    official = _official(variant)
    settings = node_settings(plan, options, 0)
    document = {
        "meta": _meta(plan, official),
        "model": _model(plan, official),
        "features": _features(settings),
        "opt_in_features": [],
        "variants": _variants(plan, variant, official),
        "compatible_strategies": [strategy_of(plan)],
        "strategy_overrides": _strategy_overrides(plan),
        "hardware_overrides": _hardware_overrides(plan, settings),
        "guide": guide_text(plan, options),
    }
    name = official.name.partition("/")[2]
    return (LaunchFile(f"{name}.yaml", yaml_text([document])),)


def strategy_of(plan: Plan) -> str:
    """The strategy of recipes that cuts the model as the plan does."""
    where = "single_node" if plan.num_nodes == 1 else "multi_node"
    return f"{where}_{_cut_word(plan.parallelism, plan.num_nodes)}"


def _cut_word(cut: Parallelism, num_nodes: int) -> str:
    if cut.pipeline > 1:
        return "tp_pp" if num_nodes > 1 else "tp"
    if cut.data > 1 and num_nodes > 1 and cut.data == num_nodes:
        return "tp_dp"
    if cut.data > 1:
        return "dep"
    return "tep" if cut.expert_parallel else "tp"


def _official(variant: Variant) -> Variant:
    """The release of MiniMax that a checkpoint was made from."""
    releases = (v for v in load_variants() if v.base == variant.base)
    return next((v for v in releases if v.name.startswith("MiniMaxAI/")), variant)


def _meta(plan: Plan, official: Variant) -> dict[str, Any]:
    title = official.name.partition("/")[2]
    speed = plan.speed.tpot_ms.value
    return {
        "title": title,
        "slug": title.lower(),
        "provider": official.name.partition("/")[0].removesuffix("AI"),
        "description": f"{title}, a mixture of experts for coding and agents, planned for "
        f"{plan.num_nodes}x {plan.hardware}",
        "difficulty": "intermediate" if plan.num_nodes == 1 else "advanced",
        "tasks": ["text"],
        "performance_headline": f"{1000 / speed:.0f} tokens/s a user predicted for "
        f"{plan.workload.concurrency} users on {plan.hardware}, not measured",
        "related_recipes": [],
        "hardware": {},
    }


def _model(plan: Plan, official: Variant) -> dict[str, Any]:
    count = count_parameters(official.shape)
    return {
        "model_id": official.name,
        "min_vllm_version": plan.engine_version,
        "docker_image": plan.image,
        "architecture": "moe",
        "parameter_count": f"{count.total / 1e9:.0f}B",
        "active_parameters": f"{count.active_with_lm_head / 1e9:.0f}B",
        "context_length": official.max_model_len,
        "base_args": [],
        "base_env": {},
    }


def _features(settings: Iterable[Setting]) -> dict[str, Any]:
    settings = tuple(settings)
    features = {}
    for name, (description, flags) in _FEATURES.items():
        words = [word for s in settings if s.name in flags for word in flag_words(s)]
        if words:
            features[name] = {"description": description, "args": words}
    return features


def _variants(plan: Plan, variant: Variant, official: Variant) -> dict[str, Any]:
    """`default` is MiniMax's own; memory is what the plan books, KV cache for one context in it."""
    own = {
        "precision": variant.quantization,
        "vram_minimum_gb": _memory_gb(plan),
        "description": f"{variant.checkpoint_bytes / 1e9:.2f} GB of weights; with overhead and KV "
        f"cache for {plan.max_model_len:,} tokens",
    }
    if variant.name == official.name:
        return {"default": own}
    default = {
        "precision": official.quantization,
        "vram_minimum_gb": math.ceil(official.checkpoint_bytes / 1e9),
        "description": f"{official.checkpoint_bytes / 1e9:.2f} GB of weights alone",
    }
    return {"default": default, _variant_key(variant): {"model_id": variant.name, **own}}


def _variant_key(variant: Variant) -> str:
    return variant.quantization.replace("-", "_")


def _memory_gb(plan: Plan) -> int:
    """Weights and overhead of all ranks, and the KV cache of one request of full length."""
    fixed = sum(rank.used_bytes - rank.term("kv_cache") for rank in plan.ranks)
    cache = sum(rank.term("kv_cache") for rank in plan.ranks)
    share = min(1.0, plan.max_model_len / max(1, plan.kv_cache_tokens))
    return math.ceil((fixed + cache * share) / 1e9)


def _strategy_overrides(plan: Plan) -> dict[str, Any]:
    return {strategy_of(plan): {"tp": plan.parallelism.tensor}}


def _hardware_overrides(plan: Plan, settings: Iterable[Setting]) -> dict[str, Any]:
    left_out = _NOT_IN_RECIPES | {flag for _, flags in _FEATURES.values() for flag in flags}
    if plan.num_nodes > 1:
        left_out |= {"--pipeline-parallel-size"}
    args: list[str] = []
    env: dict[str, str] = {}
    for setting in settings:
        is_plain = not placeholders_in((setting.value or "",))
        if setting.kind == "env" and is_plain:
            env[setting.name] = setting.value or ""
        elif setting.kind == "flag" and setting.name not in left_out:
            args += flag_words(setting)
    return {_generation(plan): {"extra_args": args, "extra_env": env}}


def _generation(plan: Plan) -> str:
    device = hardware_of(plan).groups[0].accelerator
    return _GENERATIONS.get(device.arch, device.vendor)
