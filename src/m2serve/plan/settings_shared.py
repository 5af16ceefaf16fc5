"""What vLLM and vLLM-Ascend have in common: the cut, the limits, the parsers, the nodes."""

from __future__ import annotations

from m2serve.plan.configuration import Configuration
from m2serve.plan.setting import Settings, env, flag

DATA_PARALLEL_RPC_PORT = 2347
MEMORY = "the plan's memory model"
SEARCH = "the plan's search"
PARSERS = "vLLM's registry; recipes guide and vllm-ascend guide"
MULTI_NODE = "vLLM data-parallel deployment; vllm-ascend guide, two nodes"


def cut_settings(c: Configuration) -> Settings:
    """Sizes of every kind of parallelism; a size of 1 is the default and left out."""
    cut = c.parallelism
    sizes = (
        ("tensor_parallel_size", cut.tensor, "attention and vocabulary are cut over these ranks"),
        ("pipeline_parallel_size", cut.pipeline, "each stage holds some of the layers"),
        ("data_parallel_size", cut.data, "each rank serves requests of its own"),
        (
            "prefill_context_parallel_size",
            cut.prefill_context,
            "a long prompt is computed by these ranks together",
        ),
    )
    settings: Settings = ()
    for key, size, reason in sizes:
        if size > 1:
            settings += flag(c, key, size, f"{reason}; {_world(c)}", SEARCH)
    if cut.decode_context > 1 or cut.prefill_context > 1:
        reason = "the ranks of a context group share its KV cache"
        size = cut.decode_context
        settings += flag(c, "decode_context_parallel_size", size, reason, "vllm-ascend guide")
    if cut.expert_parallel:
        reason = f"each rank holds {c.held.num_experts / c.expert_shards:g} whole experts a layer"
        settings += flag(c, "expert_parallel", None, reason, "recipes guide")
    if cut.pipeline_layers:
        settings += env(
            c,
            "VLLM_PP_LAYER_PARTITION",
            ",".join(str(layers) for layers in cut.pipeline_layers),
            "unequal cards take layers by their memory",
            "model card of mconcat/MiniMax-M2.5-NVFP4",
        )
    return settings


def limit_settings(c: Configuration) -> Settings:
    """Context, batch and memory; all explicit, so that the memory plan holds."""
    tokens = c.max_num_batched_tokens
    return (
        *flag(
            c,
            "max_model_len",
            c.max_model_len,
            "one request's prompt and answer; it must fit the KV cache of one rank",
            MEMORY,
        ),
        *flag(
            c,
            "max_num_seqs",
            c.max_num_seqs,
            "the workload's users a data-parallel rank, as a power of two; more wait",
            SEARCH,
        ),
        *flag(
            c,
            "max_num_batched_tokens",
            tokens,
            f"a step of {tokens:,} tokens bounds the activations the plan has booked",
            MEMORY,
        ),
        *flag(
            c,
            "gpu_memory_utilization",
            f"{c.gpu_memory_utilization:.2f}",
            "weights, overhead and KV cache may take this share of the device",
            MEMORY,
        ),
    )


def parser_settings(c: Configuration) -> Settings:
    """The front parses by itself; direct clients of the engine need these."""
    engine = c.engine
    return (
        *flag(
            c,
            "enable_auto_tool_choice",
            None,
            "clients that talk to the engine directly get tool calls",
            PARSERS,
        ),
        *flag(c, "tool_call_parser", engine.tool_parser, "M2's own tool-call tags", PARSERS),
        *flag(
            c,
            "reasoning_parser",
            engine.reasoning_parser,
            f"thinking goes to its own field; {engine.append_think_parser} leaves it in content",
            PARSERS,
        ),
    )


def name_settings(c: Configuration) -> Settings:
    base = c.variant.base
    name = f"MiniMax-{base}" if base else c.variant.name.rstrip("/").rpartition("/")[2]
    reason = "clients ask for one name, whichever folder or upload is served"
    return flag(c, "served_model_name", name, reason, "vllm-ascend guide")


def node_settings(c: Configuration) -> Settings:
    """What several nodes add: addresses, ports, ranks; only node 0 serves HTTP."""
    nodes, cut = c.hardware.num_nodes, c.parallelism
    if nodes == 1:
        return ()
    settings: Settings = ()
    if cut.data > 1:
        local = cut.data // nodes
        settings += flag(c, "data_parallel_size_local", local, "ranks on each node", MULTI_NODE)
        address = "where the ranks of the other nodes find node 0"
        settings += flag(c, "data_parallel_address", "{node0_ip}", address, MULTI_NODE)
        port = "node 0 listens here for the other nodes' ranks; open it between the nodes"
        settings += flag(c, "data_parallel_rpc_port", DATA_PARALLEL_RPC_PORT, port, MULTI_NODE)
    else:
        settings += flag(c, "nnodes", nodes, "one engine over all nodes", MULTI_NODE)
        settings += flag(c, "master_addr", "{node0_ip}", "where the nodes meet", MULTI_NODE)
    for node in range(nodes):
        if cut.data > 1:
            rank = node * (cut.data // nodes)
            reason = "the first data-parallel rank of this node"
            settings += flag(c, "data_parallel_start_rank", rank, reason, MULTI_NODE, node)
        else:
            settings += flag(c, "node_rank", node, "this node's number", MULTI_NODE, node)
        if node:
            settings += flag(c, "headless", None, "node 0 serves HTTP for all", MULTI_NODE, node)
    return settings


def _world(c: Configuration) -> str:
    count = len(c.devices)
    return f"{count} device{'s' if count > 1 else ''} in all"
