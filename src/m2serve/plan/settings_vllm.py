"""vLLM's flags and variables on NVIDIA and AMD, each with its reason."""

from __future__ import annotations

from m2serve.plan.configuration import Configuration
from m2serve.plan.setting import Settings, as_json, env, flag
from m2serve.plan.settings_shared import (
    SEARCH,
    cut_settings,
    limit_settings,
    name_settings,
    node_settings,
    parser_settings,
)
from m2serve.spec.units import GIB
from m2serve.spec.versions import Version, is_within

RECIPE = "vllm-project/recipes 8959cf6, M2.5.yaml"
CARD = "model card of mconcat/MiniMax-M2.5-NVFP4"
THREAD = "thread of the RTX6kPRO group; rtx6kpro"
SPARK = "eugr/spark-vllm-docker"


def vllm_settings(c: Configuration, has_little_room: bool) -> Settings:
    """`has_little_room`: less free memory than a copy of a layer's experts while loading."""
    return (
        *cut_settings(c),
        *limit_settings(c),
        *_memory(c),
        *_graphs(c),
        *_moe(c, has_little_room),
        *_hopper(c),
        *_amd(c),
        *_attention(c),
        *pcie_settings(c),
        *parser_settings(c),
        *name_settings(c),
        *node_settings(c),
        *_network(c),
    )


def pcie_settings(c: Configuration) -> Settings:
    """For cards of one box that meet over PCIe; SGLang shares it."""
    cards = c.devices
    if c.devices_per_node < 2 or cards[0].vendor != "nvidia" or "PCIe" not in cards[0].link:
        return ()
    settings = env(
        c,
        "CUDA_DEVICE_ORDER",
        "PCI_BUS_ID",
        "cards are numbered by slot, as nvidia-smi shows them; the plan's order is theirs",
        CARD,
    )
    if all("no P2P" not in card.link for card in cards):
        reason = "cards behind one host bridge copy directly; SYS when they hang on two processors"
        settings += env(c, "NCCL_P2P_LEVEL", "PHB", reason, THREAD)
    return settings


def _memory(c: Configuration) -> Settings:
    settings: Settings = ()
    if c.kv_cache_dtype != "auto":
        reason = "half the bytes a token; check tool calls and long contexts after switching"
        settings += flag(c, "kv_cache_dtype", c.kv_cache_dtype, reason, SEARCH)
    if c.cpu_offload_bytes:
        size = round(c.cpu_offload_bytes / GIB)
        reason = f"each card leaves {size} GiB of weights in pinned host memory"
        settings += flag(c, "cpu_offload_gb", size, reason, CARD)
    return settings


def _graphs(c: Configuration) -> Settings:
    if c.enforce_eager:
        reason = "graphs would take memory that the KV cache needs"
        return flag(c, "enforce_eager", None, reason, CARD)
    if c.arch == "sm_121" and c.hardware.num_nodes > 1:
        mode, reason, source = "NONE", "graphs over the network hang on DGX Spark", SPARK
    elif c.arch.startswith("sm_"):
        mode, source = "PIECEWISE", f"{RECIPE}; recipes guide"
        reason = "full graphs end in illegal memory accesses with this model"
    else:
        return ()
    return flag(c, "compilation_config", as_json(cudagraph_mode=mode), reason, source)


def _moe(c: Configuration, has_little_room: bool) -> Settings:
    """Which kernels run the experts, where the engine's own choice is wrong or too hungry. A flag
    names one kernel for all cards, so unequal ones are left to the engine."""
    quantization, is_mixed = c.held.quantization, len(c.archs) > 1
    if quantization == "nvfp4" and is_mixed:
        reason = "FlashInfer copies the experts to reorder them while loading"
        return env(c, "VLLM_USE_FLASHINFER_MOE_FP4", 0, reason, CARD)
    if quantization == "nvfp4" and c.arch == "sm_121":
        reason = "the FP4 kernels give garbage on sm_121; Marlin unpacks to BF16"
        return flag(c, "moe_backend", "marlin", reason, SPARK)
    if quantization == "nvfp4" and c.arch == "sm_120" and _is_at_least(c, "0.22.0"):
        reason = "the fastest NVFP4 experts on sm_120, 128 to 152 tokens/s for one user on two"
        return flag(c, "moe_backend", "flashinfer_b12x", reason, "rtx6kpro; vllm/config/kernel.py")
    if quantization == "nvfp4" and (c.arch == "sm_120" or has_little_room):
        reason = "FlashInfer copies the experts to reorder them while loading, CUTLASS does not"
        by_variable = env(c, "VLLM_USE_FLASHINFER_MOE_FP4", 0, reason, CARD)
        return by_variable or flag(c, "moe_backend", "cutlass", reason, CARD)
    if quantization == "fp8" and c.arch in ("sm_100", "sm_103") and is_within(c.version, "<0.17"):
        reason = "FlashInfer's FP8 experts want grouped routing (n_group should not be zero)"
        return env(c, "VLLM_USE_FLASHINFER_MOE_FP8", 0, reason, "recipes guide; vllm#33543")
    return ()


def _hopper(c: Configuration) -> Settings:
    if c.archs != ("sm_90",) or c.held.quantization != "fp8":
        return ()
    settings: Settings = ()
    if not c.parallelism.expert_parallel:
        reason = "the recipe's choice for FP8 experts on Hopper"
        settings += flag(c, "moe_backend", "triton", reason, RECIPE)
    settings += env(c, "VLLM_USE_DEEP_GEMM", 0, "the recipe leaves DeepGEMM out on Hopper", RECIPE)
    reason = "the router's float32 product may use TF32"
    return settings + env(c, "VLLM_FLOAT32_MATMUL_PRECISION", "high", reason, RECIPE)


def _amd(c: Configuration) -> Settings:
    if not set(c.archs) <= {"gfx942", "gfx950"}:
        return ()
    is_int4 = c.held.experts_format.startswith("int4")  # whose experts are Triton's there
    used_for = "attention" if is_int4 else "experts and attention"
    reason = "not the default since 0.20, and 2,600 against 1,600 tokens/s a GPU"
    return (
        *flag(c, "attention_backend", "ROCM_AITER_FA", reason, "recipes; vllm-project/vllm#43029"),
        *env(c, "VLLM_ROCM_USE_AITER", 1, f"AMD's kernels for {used_for}", RECIPE),
        *env(c, "VLLM_ROCM_SHUFFLE_KV_CACHE_LAYOUT", 1, "the layout those kernels read", RECIPE),
    )


def _attention(c: Configuration) -> Settings:
    if c.kv_cache_dtype != "fp8" or not set(c.archs) & {"sm_89", "sm_90"}:
        return ()
    reason = "FlashAttention keeps the KV cache in BF16 here, FlashInfer reads FP8"
    return flag(c, "attention_backend", "FLASHINFER", reason, RECIPE)


def _network(c: Configuration) -> Settings:
    if c.hardware.num_nodes == 1:
        return ()
    reason = "the interface that joins the nodes"
    return (
        *env(c, "NCCL_SOCKET_IFNAME", "{nic}", reason, "NCCL"),
        *env(c, "GLOO_SOCKET_IFNAME", "{nic}", reason, "torch.distributed"),
        *env(c, "VLLM_HOST_IP", "{this_ip}", "this node's address", "vLLM on several nodes"),
    )


def _is_at_least(c: Configuration, version: str) -> bool:
    return Version.parse(c.version) >= Version.parse(version)
