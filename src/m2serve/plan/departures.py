"""Where a plan differs from a published deployment of the same kind, setting by setting.

A setting of a document that the plan leaves out needs a reason here, one with another value has one
here or its own; another cut is held against the document's by the forecast.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from m2serve.plan.configuration import Configuration, describe_replicas
from m2serve.plan.memory import plan_memory
from m2serve.plan.predict import predict
from m2serve.plan.search import max_num_seqs
from m2serve.plan.setting import Settings
from m2serve.records import Departure, Parallelism, Workload
from m2serve.spec.deployments import Deployment, load_deployments
from m2serve.spec.hardware import parse_hardware
from m2serve.spec.variants import find_variant

# What `m2 plan` leaves to the launch: where the engine listens.
LAUNCH_FLAGS = ("--host", "--port")

_CUT_FLAGS = (
    "--tensor-parallel-size",
    "--pipeline-parallel-size",
    "--data-parallel-size",
    "--decode-context-parallel-size",
    "--prefill-context-parallel-size",
    "--enable-expert-parallel",
    "--tp-size",
    "--dp-size",
    "--ep-size",
)

_LAYERS = "VLLM_PP_LAYER_PARTITION"

OTHER_VALUES = {
    "--gpu-memory-utilization": "the memory plan holds with it; what the document leaves free "
    "becomes KV cache",
    "--mem-fraction-static": "the memory plan holds with it, by the exact bytes of the weights",
    "--max-num-seqs": "the power of two that holds the workload's users on a data-parallel rank",
    "--max-num-batched-tokens": "the memory plan books the activations of so many tokens",
    _LAYERS: "by the exact bytes of layers and KV cache on these cards, none in host memory",
    "--reasoning-parser": "thinking goes to its own field, where clients look for it; the "
    "document's parser leaves it in the content",
    "--served-model-name": "clients of every plan ask for one name",
    "LD_PRELOAD": "nothing else is preloaded, and only a shell would expand $LD_PRELOAD",
}

REASONS = {
    "--trust-remote-code": "the engine has the model; the flag lets a checkpoint's own code run",
    "--quantization": "the engine reads it from the checkpoint's quantization_config",
    "--enforce-eager": "graphs are what makes a single stream fast; they fit here",
    "--cpu-offload-gb": "the layers fit these cards without host memory",
    "--enable-flashinfer-allreduce-fusion": "it crashes with M2 where ranks reduce in one shot",
    "--nsa-prefill-backend": "it is for sparse attention, which this model does not have",
    "--nsa-decode-backend": "it is for sparse attention, which this model does not have",
    "--cp-kv-cache-interleave-size": "the plan has no context parallelism",
    "--mm-processor-cache-type": "the model has no images",
    "SAFETENSORS_FAST_GPU": "newer safetensors ignore it",
    "VLLM_USE_FLASHINFER_MOE_FP8": "the n_group error is of 0.15 and 0.16, this release is newer",
    "VLLM_TORCH_PROFILER_WITH_STACK": "for profiling alone; this release does not read it",
    "VLLM_TORCH_PROFILER_DIR": "for profiling alone; this release does not read it",
    "VLLM_ASCEND_BALANCE_SCHEDULING": "it is for short prompts on ranks of one node",
}


_PLACEHOLDER = re.compile(r"\{\w{1,32}\}")


def departures_of(
    c: Configuration, settings: Settings, workload: Workload
) -> tuple[Departure, ...]:
    """Against every published deployment with this engine, hardware and quantization."""
    found: list[Departure] = []
    for deployment in load_deployments():
        if deployment.variant_of == "" and is_alike(c, deployment):
            found += departures_from(deployment, settings, c, workload)
    return tuple(found)


def is_alike(c: Configuration, deployment: Deployment) -> bool:
    if deployment.engine != c.engine.name:
        return False
    hardware = parse_hardware(deployment.hardware, deployment.num_nodes)
    same = hardware.groups == c.hardware.groups and hardware.num_nodes == c.hardware.num_nodes
    return same and find_variant(deployment.model).quantization == c.variant.quantization


def cut_of(deployment: Deployment) -> Parallelism:
    return Parallelism(
        tensor=deployment.tensor,
        pipeline=deployment.pipeline,
        data=deployment.data,
        expert_parallel=deployment.expert_parallel,
        decode_context=deployment.decode_context,
        prefill_context=deployment.prefill_context,
        pipeline_layers=deployment.pipeline_layers,
    )


def departures_from(
    deployment: Deployment, settings: Settings, c: Configuration, workload: Workload
) -> Iterator[Departure]:
    """What the plan of `c` sets otherwise or not at all; a reason of "" is a gap in the tables."""
    mine = {canonical(s.name): s for s in settings if s.kind in ("flag", "env")}
    theirs = [*deployment.settings, *deployment.environment]
    theirs += [pair for pair in _of_nodes(deployment) if pair not in theirs]
    for name, value in theirs:
        key = canonical(name)
        if key in LAUNCH_FLAGS:
            continue
        own = mine.get(key)
        if own is None:
            text = name if value is None else f"{name} {value}"
            yield Departure(deployment.id, text, _missing_reason(key, value))
        elif not is_same_value(value, own.value) and own.node is None:
            text = f"{own.name} {own.value} instead of {value}"
            is_cut = key in _CUT_FLAGS
            why = _against(deployment, c, workload) if is_cut else OTHER_VALUES.get(key, own.reason)
            yield Departure(deployment.id, text, why)
    commands = {s.name for s in settings if s.kind == "system"}
    for command in deployment.host_commands:
        if command.startswith("sysctl") and command.replace("sysctl k", "sysctl -w k") in commands:
            continue
        if command not in commands:
            yield Departure(deployment.id, command, _command_reason(command))


def _against(deployment: Deployment, c: Configuration, workload: Workload) -> str:
    """The document's cut and the plan's, by the forecast and the memory plan."""
    cut = cut_of(deployment)
    seqs = max_num_seqs(workload.concurrency, cut.data)
    theirs = c.replace(parallelism=cut, hardware=c.machine, num_replicas=1, max_num_seqs=seqs)
    said = [_cut_figures(each, workload) for each in (theirs, c)]
    return f"by the forecast {said[0]}; {said[1]}"


def _cut_figures(c: Configuration, workload: Workload) -> str:
    memory = plan_memory(c)
    name = describe_replicas(c.num_replicas, c.parallelism)
    if memory.shortfall_bytes:
        return f"{name} does not fit"
    speed = predict(c, memory, workload)
    held = memory.kv_cache_tokens * c.num_replicas
    return (
        f"{name} has {speed.tpot_ms.value:.1f} ms a token, "
        f"{speed.output_tokens_per_s.value:,.0f} tokens/s and room for {held:,} tokens"
    )


def canonical(name: str) -> str:
    """vLLM takes --a_b for --a-b."""
    return name.replace("_", "-") if name.startswith("--") else name


def is_same_value(theirs: str | None, mine: str | None) -> bool:
    """Numbers by value, JSON by content, a path of the document's own machine as any."""
    if theirs is None or mine is None:
        return theirs == mine
    if _PLACEHOLDER.fullmatch(theirs) and _PLACEHOLDER.fullmatch(mine):
        return True
    try:
        left, right = json.loads(theirs), json.loads(mine)
    except ValueError:
        return theirs == mine
    if isinstance(left, dict) and str(left.get("model", "")).startswith("/path/"):
        left = left | {"model": right.get("model")}
    return bool(left == right)


def _missing_reason(name: str, value: str | None) -> str:
    if name in _CUT_FLAGS:
        return "1 is the default" if value == "1" else "the plan cuts the model otherwise"
    return REASONS.get(name, "")


def _of_nodes(deployment: Deployment) -> list[tuple[str, str | None]]:
    pairs = (flag.partition(" ") for node in deployment.node_flags for flag in node)
    return [(name, value if separator else None) for name, separator, value in pairs]


def _command_reason(command: str) -> str:
    if command.startswith("uv pip install"):
        return "the plan names a release and its image"
    return ""
