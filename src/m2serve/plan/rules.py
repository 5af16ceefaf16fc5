"""What cannot load or cannot run, one rule a function: a sentence, or None when nothing is wrong.

Memory is not judged here (plan/memory.py). A rule sees one Configuration and knows no other.
"""

from __future__ import annotations

from collections.abc import Callable

from m2serve.plan.configuration import Configuration
from m2serve.spec.engines import Kernel, format_family
from m2serve.spec.versions import Version, is_within

Rule = Callable[[Configuration], str | None]


def first_objection(configuration: Configuration) -> str | None:
    """The sentence of the first rule that speaks against it."""
    return next((text for rule in RULES if (text := rule(configuration)) is not None), None)


def engine_runs_here(c: Configuration) -> str | None:
    for group in c.hardware.groups:
        device = group.accelerator
        if device.arch not in c.engine.archs:
            if (c.engine.name, device.arch) == ("vllm", "cpu"):
                return (
                    "on a processor vLLM runs with its own defaults (m2 serve MODEL --engine "
                    "vllm); there are no figures to plan with"
                )
            return f"{c.engine.title} does not run on {device.name}"
    return None


def engine_reads_checkpoint(c: Configuration) -> str | None:
    if c.variant.quantization not in c.engine.quantizations:
        return f"{c.engine.title} does not load {c.variant.quantization} checkpoints of this family"
    return None


def layout_is_readable(c: Configuration) -> str | None:
    """msModelSlim's files say so in their name; a folder is taken at its word."""
    if c.variant.own_shape is not None:
        return None
    is_slim = "quarot" in c.variant.name.lower()
    if is_slim and c.engine.name != "vllm-ascend":
        return "the checkpoint is in msModelSlim's layout, which vLLM-Ascend alone reads"
    if c.engine.name == "vllm-ascend" and c.variant.quantization == "w8a8" and not is_slim:
        return "vLLM-Ascend reads W8A8 in msModelSlim's layout, which the checkpoint is not in"
    return None


def mxfp4_is_native(c: Configuration) -> str | None:
    if c.variant.quantization != "mxfp4" or c.engine.name == "own" or c.arch == "gfx950":
        return None
    return f"this family's MXFP4 checkpoints are AMD Quark's W4A4, emulated on {c.arch}"


def version_is_new_enough(c: Configuration) -> str | None:
    for arch in c.archs:
        for floor in c.engine.floors_for(c.variant.base, c.variant.quantization, arch):
            if Version.parse(c.version) < Version.parse(floor.version):
                return f"{c.engine.title} {c.version} is older than {floor.version}: {floor.reason}"
    return None


def version_is_not_broken(c: Configuration) -> str | None:
    is_unpacked = c.engine.name == "vllm-ascend" and c.variant.quantization == "fp8"
    if is_unpacked and is_within(c.version, ">=0.23.0rc1,<0.23.0"):
        return (
            f"vLLM-Ascend {c.version} crashes on the FP8 release (vllm-project/vllm-ascend#12685); "
            "take 0.18.0, or a W8A8 checkpoint"
        )
    is_copied = c.parallelism.tensor > c.shape.num_key_value_heads
    if c.engine.name == "sglang" and is_copied and is_within(c.version, "<0.5.10"):
        return (
            f"SGLang {c.version} copies the 8 KV heads wrongly over TP{c.parallelism.tensor}, "
            "and the text is garbled (sgl-project/sglang#20967)"
        )
    return None


def kernels_exist(c: Configuration) -> str | None:
    parts = (("moe", c.held.experts_format), ("linear", c.held.attention_format))
    for device_arch in c.archs:
        for operation, format in parts:
            kernels = c.kernels(operation, format, device_arch)
            objection = _kernel_objection(c, operation, format, device_arch, kernels)
            if objection:
                return objection
    return None


def context_is_within_checkpoint(c: Configuration) -> str | None:
    if c.max_model_len > c.variant.max_model_len:
        return (
            f"a context of {c.max_model_len:,} tokens is more than the {c.variant.max_model_len:,} "
            "of the checkpoint's config.json"
        )
    return None


def own_engine_has_one_device(c: Configuration) -> str | None:
    if c.engine.name == "own" and len(c.devices) > 1:
        return f"the own engine drives one device, not {len(c.devices)}"
    return None


def equal_cards_or_pipeline(c: Configuration) -> str | None:
    cut = c.parallelism
    if not c.hardware.is_uniform and cut.world_size != cut.pipeline:
        return (
            "the cards are unequal: tensor, data and expert parallelism are held to the smallest; "
            "pipeline parallelism with unequal stages uses each"
        )
    return None


def world_size_is_devices(c: Configuration) -> str | None:
    if c.parallelism.world_size != len(c.devices):
        return f"{c.parallelism.world_size} ranks do not fit {len(c.devices)} devices"
    return None


def heads_divide(c: Configuration) -> str | None:
    shape, tensor = c.shape, c.parallelism.tensor
    if shape.num_attention_heads % tensor:
        return f"TP{tensor} does not divide the {shape.num_attention_heads} query heads"
    heads = shape.num_key_value_heads
    if heads % tensor and tensor % heads:
        return f"TP{tensor} neither divides nor multiplies the {heads} key-value heads"
    return None


def experts_divide(c: Configuration) -> str | None:
    """The cut width of an expert must hold whole blocks or groups of scales."""
    cut, shape = c.parallelism, c.shape
    if cut.expert_parallel:
        if c.expert_shards > c.held.num_experts:
            return f"{c.expert_shards} ranks are more than the {c.held.num_experts} experts"
        if c.engine.name == "sglang" and c.held.num_experts % c.expert_shards:
            return (
                f"SGLang's {c.expert_shards} ranks do not divide the {c.held.num_experts} experts"
            )
        return None
    if shape.intermediate_size % c.expert_shards:
        return f"{c.expert_shards} ranks do not divide the expert width {shape.intermediate_size}"
    width, group = shape.intermediate_size // c.expert_shards, c.held.group_size
    if group and width % group:
        kind = "the FP8 block" if c.held.quantization == "fp8" else f"the {_family(c)} group"
        return (
            f"{shape.intermediate_size} / {c.expert_shards} = {width} is not a multiple of {kind} "
            f"of {group}; a smaller TP or expert parallelism keeps them whole"
        )
    return None


def attention_divides(c: Configuration) -> str | None:
    tensor, shape = c.parallelism.tensor, c.shape
    if c.held.attention_format == "fp8" and (shape.q_size // tensor) % 128:
        return (
            f"{shape.q_size} / {tensor} = {shape.q_size // tensor} rows of the query projection "
            "are not a multiple of the FP8 block of 128"
        )
    return None


def tensor_stays_in_node(c: Configuration) -> str | None:
    tensor, in_node = c.parallelism.tensor, c.devices_per_node
    if in_node > 1 and (tensor > in_node or in_node % tensor) and c.hardware.num_nodes > 1:
        return (
            f"TP{tensor} would span nodes of {in_node}: every layer waits for the network twice, "
            "and it hangs or is unstable (vllm-project/vllm-ascend#7159, MiniMax-M2.5#30); "
            "TP inside a node and DP between them"
        )
    return None


def pipeline_is_supported(c: Configuration) -> str | None:
    cut = c.parallelism
    if cut.pipeline == 1:
        return None
    if c.engine.name == "vllm-ascend":
        return "pipeline stages on Ascend ran at 2 to 10 tokens/s (vllm-project/vllm-ascend#8900)"
    if c.engine.name != "vllm":
        return f"{c.engine.title} is planned without pipeline parallelism; vLLM has it"
    if cut.pipeline > c.shape.num_hidden_layers:
        return f"PP{cut.pipeline} has more stages than the {c.shape.num_hidden_layers} layers"
    if cut.data > 1:
        return "data parallelism is planned without pipeline parallelism"
    return None


def context_parallel_is_supported(c: Configuration) -> str | None:
    cut = c.parallelism
    if cut.decode_context == cut.prefill_context == 1:
        return None
    if c.engine.name != "vllm-ascend":
        return f"context parallelism is planned for vLLM-Ascend alone, not for {c.engine.title}"
    if c.hardware.num_nodes > 1 and c.devices_per_node % (cut.tensor * cut.prefill_context):
        return "context-parallel ranks talk in every layer and stay inside a node"
    copies = max(1, cut.tensor // c.shape.num_key_value_heads)
    if cut.decode_context > copies:
        return (
            f"DCP{cut.decode_context} needs that many copies of each KV head, TP{cut.tensor} "
            f"makes {copies}"
        )
    return None


def data_parallel_shares_experts(c: Configuration) -> str | None:
    if c.parallelism.data > 1 and not c.parallelism.expert_parallel:
        return "data-parallel ranks cut the experts between them; with EP they stay whole"
    return None


def ascend_needs_expert_parallel(c: Configuration) -> str | None:
    is_cut = c.expert_shards > 1 and not c.parallelism.expert_parallel
    if c.engine.name == "vllm-ascend" and is_cut:
        return "on Ascend this model is known to run with expert parallelism alone"
    return None


def kv_cache_dtype_runs(c: Configuration) -> str | None:
    if c.kv_cache_dtype == "auto":
        return None
    if c.engine.name == "vllm-ascend":
        if c.kv_cache_dtype != "int8" or not c.variant.has_kv_scales:
            return "Ascend keeps the KV cache in INT8 only with a c8 checkpoint"
        return None
    if c.kv_cache_dtype == "int8":
        return f"{c.engine.title} has no INT8 KV cache for this family"
    for arch in c.archs:
        kernels = c.kernels("attention", "fp8", arch)
        if all(kernel.is_broken for kernel in kernels):
            return f"no attention of {c.engine.title} {c.version} reads an FP8 KV cache on {arch}"
    if any("fp8" not in device.native_formats for device in c.devices):
        return f"{c.devices[0].name} has no FP8 arithmetic for an FP8 KV cache"
    return None


def draft_is_supported(c: Configuration) -> str | None:
    if c.draft and c.draft != c.variant.draft:
        return f"draft {c.draft} was not made for {c.variant.name}"
    if c.draft and c.kv_cache_dtype == "int8":
        return "Eagle3 does not go with an INT8 KV cache on Ascend"
    return None


def _kernel_objection(
    c: Configuration, operation: str, format: str, arch: str, kernels: tuple[Kernel, ...]
) -> str | None:
    what = "experts" if operation == "moe" else "attention weights"
    where = f"{c.engine.title} {c.version} has no kernel for {format_family(format).upper()} {what}"
    if not kernels:
        return f"{where} on {arch}"
    if all(kernel.is_broken for kernel in kernels):
        return f"{where} on {arch} that works: {kernels[0].note or kernels[0].name}"
    return None


def _family(c: Configuration) -> str:
    return format_family(c.held.experts_format).upper()


RULES: tuple[Rule, ...] = (
    engine_runs_here,
    engine_reads_checkpoint,
    layout_is_readable,
    mxfp4_is_native,
    own_engine_has_one_device,
    version_is_new_enough,
    version_is_not_broken,
    kernels_exist,
    context_is_within_checkpoint,
    world_size_is_devices,
    equal_cards_or_pipeline,
    heads_divide,
    experts_divide,
    attention_divides,
    tensor_stays_in_node,
    pipeline_is_supported,
    context_parallel_is_supported,
    data_parallel_shares_experts,
    ascend_needs_expert_parallel,
    kv_cache_dtype_runs,
    draft_is_supported,
)
