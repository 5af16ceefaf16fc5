"""SGLang's flags and variables, each with its reason."""

from __future__ import annotations

import math

from m2serve.plan.configuration import Configuration
from m2serve.plan.memory import MemoryPlan
from m2serve.plan.setting import Settings, env, flag
from m2serve.plan.settings_shared import MEMORY, PARSERS, SEARCH, name_settings
from m2serve.plan.settings_vllm import THREAD, pcie_settings

COOKBOOK = "sgl-cookbook 7b5bd9c"
DIST_INIT_PORT = 20000


def sglang_settings(c: Configuration, memory: MemoryPlan) -> Settings:
    return (
        *_cut(c),
        *_limits(c, memory),
        *_kernels(c),
        *_pcie(c),
        *_parsers(c),
        *name_settings(c),
        *_nodes(c),
    )


def static_fraction(memory: MemoryPlan) -> float:
    """Weights and KV cache as a share of the device, what --mem-fraction-static means; activations
    and graphs lie beside it. The smallest of the ranks', in hundredths.
    """
    shares = [(r.budget_bytes - r.term("overhead")) / r.usable_bytes for r in memory.ranks]
    return math.floor(min(shares) * 100) / 100


def _cut(c: Configuration) -> Settings:
    cut = c.parallelism
    settings: Settings = ()
    world = cut.tensor * cut.data
    if world > 1:
        reason = f"the model is cut over these ranks; {len(c.devices)} devices in all"
        settings += flag(c, "tensor_parallel_size", world, reason, SEARCH)
    if cut.data > 1:
        reason = "attention is cut over tp/dp ranks, each group serves requests of its own"
        settings += flag(c, "data_parallel_size", cut.data, reason, SEARCH)
        settings += flag(c, "enable_dp_attention", None, "what --dp-size means here", COOKBOOK)
    if cut.expert_parallel:
        reason = f"each rank holds {c.held.num_experts / world:g} whole experts a layer"
        settings += flag(c, "expert_parallel_size", world, reason, COOKBOOK)
    return settings


def _limits(c: Configuration, memory: MemoryPlan) -> Settings:
    settings = (
        *flag(c, "max_model_len", c.max_model_len, "one request's prompt and answer", MEMORY),
        *flag(
            c,
            "max_num_seqs",
            c.max_num_seqs * c.parallelism.data,
            "the workload's users as a power of two; more wait",
            SEARCH,
        ),
        *flag(
            c,
            "max_num_batched_tokens",
            c.max_num_batched_tokens,
            "prompts are computed in pieces that bound the activations",
            MEMORY,
        ),
        *flag(
            c,
            "gpu_memory_utilization",
            f"{static_fraction(memory):.2f}",
            "weights and KV cache; activations and graphs lie beside this share",
            MEMORY,
        ),
    )
    if c.kv_cache_dtype == "fp8":
        reason = "half the bytes a token; check tool calls and long contexts after switching"
        settings += flag(c, "kv_cache_dtype", "fp8_e4m3", reason, SEARCH)
    return settings


def _kernels(c: Configuration) -> Settings:
    settings: Settings = ()
    quantization, is_sm120 = c.held.quantization, c.arch in ("sm_120", "sm_121")
    if quantization == "fp8" and is_sm120:
        reason = "DeepGEMM and CUTLASS have no FP8 kernels for this architecture and crash"
        source = f"{THREAD}; sgl-project/sglang#18870"
        settings += flag(c, "linear_backend", "triton", reason, source)
        settings += flag(c, "moe_backend", "triton", reason, source)
    elif quantization == "nvfp4" and c.arch == "sm_121":
        reason = "the FP4 kernels give garbage on sm_121; Marlin unpacks to BF16"
        settings += flag(c, "moe_backend", "marlin", reason, "eugr/spark-vllm-docker")
    elif quantization == "nvfp4" and c.arch in ("sm_100", "sm_103", "sm_120"):
        reason = "the TensorRT-LLM experts corrupt M2.7's text, and sm_120 lacks them"
        source = "sgl-project/sglang#26324"
        settings += flag(c, "moe_backend", "flashinfer_cutlass", reason, source)
    if c.kv_cache_dtype == "fp8" and c.arch == "sm_90":
        reason = "FA3 writes gibberish with an FP8 KV cache"
        settings += flag(c, "attention_backend", "flashinfer", reason, "sgl-project/sglang#20820")
    elif c.arch in ("gfx942", "gfx950"):
        settings += flag(c, "attention_backend", "triton", "the cookbook's on AMD", COOKBOOK)
    return settings


def _pcie(c: Configuration) -> Settings:
    settings = pcie_settings(c)
    if not any(setting.name == "NCCL_P2P_LEVEL" for setting in settings):
        return settings
    small = "small messages between cards take the low-latency path"
    reason = "its buffers need NVLink; NCCL does it over PCIe"
    return (
        *settings,
        *env(c, "NCCL_ALLOC_P2P_NET_LL_BUFFERS", 1, small, THREAD),
        *env(c, "NCCL_MIN_NCHANNELS", 8, "fewer channels leave PCIe 5 idle", THREAD),
        *flag(c, "disable_custom_all_reduce", None, reason, THREAD),
    )


def _parsers(c: Configuration) -> Settings:
    engine = c.engine
    reason = f"thinking goes to a field of its own; {engine.append_think_parser} leaves it inside"
    return (
        *flag(c, "tool_call_parser", engine.tool_parser, "M2's own tool-call tags", PARSERS),
        *flag(c, "reasoning_parser", engine.reasoning_parser, reason, COOKBOOK),
    )


def _nodes(c: Configuration) -> Settings:
    nodes = c.hardware.num_nodes
    if nodes == 1:
        return ()
    source = "SGLang on several nodes"
    address = f"{{node0_ip}}:{DIST_INIT_PORT}"
    settings = flag(c, "nnodes", nodes, "one engine over all nodes", source)
    settings += flag(c, "dist_init_addr", address, "where the nodes meet", source)
    for node in range(nodes):
        settings += flag(c, "node_rank", node, "this node's number", source, node)
    reason = "the interface that joins the nodes"
    settings += env(c, "NCCL_SOCKET_IFNAME", "{nic}", reason, "NCCL")
    return settings + env(c, "GLOO_SOCKET_IFNAME", "{nic}", reason, "torch.distributed")
