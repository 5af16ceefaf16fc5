"""vLLM-Ascend's flags, variables and host commands, each with its reason."""

from __future__ import annotations

from m2serve.plan.configuration import Configuration
from m2serve.plan.setting import Settings, as_json, env, flag, host_command
from m2serve.plan.settings_shared import (
    cut_settings,
    limit_settings,
    name_settings,
    node_settings,
    parser_settings,
)

GUIDE = "vllm-ascend guide, MiniMax-M2"
LONG_PROMPT = 65_536
_JEMALLOC = "/usr/lib/aarch64-linux-gnu/libjemalloc.so.2"
_CONTEXT_INTERLEAVE = 128


def ascend_settings(c: Configuration, input_len: int) -> Settings:
    """`input_len` is the workload's prompt; a long one is served differently."""
    return (
        *cut_settings(c),
        *_context(c),
        *limit_settings(c),
        *_quantization(c),
        *_scheduling(c, input_len),
        *_draft(c, input_len),
        *parser_settings(c),
        *name_settings(c),
        *node_settings(c),
        *_collectives(c),
        *_process(c),
        *_host(c),
    )


def is_long(input_len: int) -> bool:
    return input_len >= LONG_PROMPT


def draft_tokens(input_len: int) -> int:
    """Drafted a step."""
    return 1 if is_long(input_len) else 3


def _context(c: Configuration) -> Settings:
    if c.parallelism.prefill_context == c.parallelism.decode_context == 1:
        return ()
    reason = "tokens in a row that one rank keeps; a whole block of the KV cache"
    return flag(c, "cp_kv_cache_interleave_size", _CONTEXT_INTERLEAVE, reason, GUIDE)


def _quantization(c: Configuration) -> Settings:
    settings: Settings = ()
    if c.held.quantization == "w8a8":
        reason = "the checkpoint is in msModelSlim's layout"
        settings += flag(c, "quantization", "ascend", reason, GUIDE)
    if c.kv_cache_dtype != "auto":
        reason = "the checkpoint carries the scales of an INT8 KV cache"
        settings += flag(c, "kv_cache_dtype", c.kv_cache_dtype, reason, "vllm-ascend tutorial")
    return settings


def _scheduling(c: Configuration, input_len: int) -> Settings:
    graphs = "decode steps run as one graph, prefill does not"
    binding = "each rank's host threads stay on cores near its device"
    settings = (
        *flag(c, "async_scheduling", None, "the next step is prepared during this one", GUIDE),
        *flag(c, "compilation_config", as_json(cudagraph_mode="FULL_DECODE_ONLY"), graphs, GUIDE),
        *flag(c, "additional_config", as_json(enable_cpu_binding=True), binding, GUIDE),
    )
    if c.parallelism.expert_parallel:
        reason = "with expert parallelism the output is garbled without it"
        settings += env(c, "VLLM_ASCEND_ENABLE_FLASHCOMM1", 1, reason, f"{GUIDE}, FAQ")
    if c.parallelism.data > 1 and c.hardware.num_nodes == 1 and not is_long(input_len):
        reason = "prefill and decode are balanced over the data-parallel ranks"
        settings += env(c, "VLLM_ASCEND_BALANCE_SCHEDULING", 1, reason, GUIDE)
    return settings


def _draft(c: Configuration, input_len: int) -> Settings:
    if not c.draft:
        return ()
    value = as_json(
        method="eagle3",
        model=c.draft,
        num_speculative_tokens=draft_tokens(input_len),
        enforce_eager=True,
    )
    reason = "an Eagle3 draft made for this very checkpoint; a cache path works as well as the id"
    return flag(c, "speculative_config", value, reason, GUIDE)


def _collectives(c: Configuration) -> Settings:
    aiv = "collectives unfold on the vector cores, without a trip through the host"
    settings = (
        *env(c, "HCCL_OP_EXPANSION_MODE", "AIV", aiv, GUIDE),
        *env(c, "HCCL_BUFFSIZE", 1024, "MiB shared by two ranks, enough for expert traffic", GUIDE),
    )
    if c.arch == "ascend-910b":
        reason = "inside the node ranks talk over PCIe, not RoCE"
        settings += env(c, "HCCL_INTRA_PCIE_ENABLE", 1, reason, GUIDE)
        settings += env(c, "HCCL_INTRA_ROCE_ENABLE", 0, reason, GUIDE)
    if c.hardware.num_nodes > 1:
        settings += env(c, "HCCL_IF_IP", "{this_ip}", "this node's own address", GUIDE)
        for name in ("HCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"):
            settings += env(c, name, "{nic}", "the interface that joins the nodes", GUIDE)
    return settings


def _process(c: Configuration) -> Settings:
    devices = ",".join(str(device) for device in range(c.devices_per_node))
    fragments = "memory segments grow instead of falling apart"
    threads = "host threads beyond one a rank fight for cores"
    return (
        *env(c, "ASCEND_RT_VISIBLE_DEVICES", devices, "the devices of this node", GUIDE),
        *env(c, "PYTORCH_NPU_ALLOC_CONF", "expandable_segments:True", fragments, GUIDE),
        *env(c, "OMP_PROC_BIND", "false", "CPU binding is the engine's", GUIDE),
        *env(c, "OMP_NUM_THREADS", 1, threads, GUIDE),
        *env(c, "TASK_QUEUE_ENABLE", 1, "kernels are queued by a thread of its own", GUIDE),
        *env(
            c,
            "LD_PRELOAD",
            _JEMALLOC,
            "jemalloc is quicker with the host's small buffers",
            GUIDE,
        ),
    )


def _host(c: Configuration) -> Settings:
    return (
        *host_command(
            "echo performance | tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
            "host cores at full clock: every step waits for them",
            GUIDE,
        ),
        *host_command("sysctl -w vm.swappiness=0", "pinned host memory stays in memory", GUIDE),
        *host_command("sysctl -w kernel.numa_balancing=0", "pages stay by their cores", GUIDE),
        *host_command(
            "sysctl -w kernel.sched_migration_cost_ns=50000",
            "threads change cores more readily; the guide's command lacks -w and sets nothing",
            GUIDE,
        ),
    )
