"""Plans made by hand, one for each kind of machine a launch is written for.

`python tests/launch_plans.py` writes what the forms make of them to tests/golden/launch.
"""

import shutil
from pathlib import Path

from m2serve.launch.files import LaunchFile
from m2serve.launch.forms import FormName, launch_files
from m2serve.launch.options import LaunchOptions
from m2serve.records import (
    EngineName,
    Estimate,
    MemoryTerm,
    Parallelism,
    Plan,
    RankMemory,
    Setting,
    Speed,
    Workload,
)

GOLDEN = Path(__file__).parent / "golden" / "launch"
GIB = 1 << 30
SOURCE = "made by hand"


def flag(name: str, value: str | None, reason: str, node: int | None = None) -> Setting:
    return Setting("flag", name, value, reason, SOURCE, node)


def env(name: str, value: str, reason: str) -> Setting:
    return Setting("env", name, value, reason, SOURCE)


PARSERS = (
    flag("--enable-auto-tool-choice", None, "direct clients get tool calls"),
    flag("--tool-call-parser", "minimax_m2", "M2's tags"),
    flag("--reasoning-parser", "minimax_m2", "thinking in a field of its own"),
)
NAME = flag("--served-model-name", "MiniMax-M2.5", "one name for clients")


def plan(
    engine: EngineName,
    version: str,
    image: str,
    model: str,
    hardware: str,
    cut: Parallelism,
    weights_gib: float,
    settings: tuple[Setting, ...],
    *,
    num_nodes: int = 1,
    variant: str | None = None,
) -> Plan:
    """`weights_gib` of every rank; a `variant` of "" makes `model` a folder."""
    estimate = Estimate(10.0, 9.0, 11.0, SOURCE)
    terms = (
        MemoryTerm("weights.experts", int(weights_gib * GIB)),
        MemoryTerm("overhead.context", 7 * GIB),
        MemoryTerm("kv_cache", 15 * GIB),
    )
    ranks = tuple(
        RankMemory(rank, "device", 180 * GIB, 160 * GIB, terms) for rank in range(cut.world_size)
    )
    return Plan(
        model=model,
        variant=model if variant is None else variant,
        hardware=hardware,
        num_nodes=num_nodes,
        engine=engine,
        engine_version=version,
        image=image,
        parallelism=cut,
        kv_cache_dtype="auto",
        max_model_len=32768,
        workload=Workload(max_model_len=32768),
        settings=settings,
        ranks=ranks,
        kv_cache_tokens=400_000,
        speed=Speed(estimate, estimate, estimate),
        warnings=("A product built on M2.5 carries its notice.",),
    )


B200 = plan(
    "vllm",
    "0.20.2",
    "vllm/vllm-openai:v0.20.2",
    "MiniMaxAI/MiniMax-M2.5",
    "4xb200",
    Parallelism(tensor=4),
    53.72,
    (
        flag("--tensor-parallel-size", "4", "four ranks"),
        flag("--max-model-len", "32768", "prompt and answer"),
        flag("--compilation-config", '{"cudagraph_mode": "PIECEWISE"}', "full graphs fail"),
        *PARSERS,
        NAME,
    ),
)
RTX_PRO = plan(
    "sglang",
    "0.5.10.post1",
    "lmsysorg/sglang:v0.5.10.post1",
    "lukealonso/MiniMax-M2.5-NVFP4",
    "2xrtx-pro-6000",
    Parallelism(tensor=2),
    62.6,
    (
        flag("--tp-size", "2", "two ranks"),
        flag("--context-length", "32768", "prompt and answer"),
        env("NCCL_P2P_LEVEL", "PHB", "cards behind one bridge copy directly"),
        flag("--disable-custom-all-reduce", None, "its buffers need NVLink"),
        flag("--tool-call-parser", "minimax-m2", "M2's tags"),
        flag("--reasoning-parser", "minimax", "thinking in a field of its own"),
        NAME,
    ),
)
UNEQUAL = plan(
    "vllm",
    "0.20.2",
    "vllm/vllm-openai:v0.20.2",
    "/models/MiniMax M2.5 'NVFP4'",
    "1xrtx-pro-6000+2xrtx-5090",
    Parallelism(pipeline=3, pipeline_layers=(40, 11, 11)),
    41.7,
    (
        flag("--pipeline-parallel-size", "3", "three stages"),
        env("VLLM_PP_LAYER_PARTITION", "40,11,11", "layers by memory"),
        flag("--max-model-len", "4096", "prompt and answer"),
        env("CUDA_DEVICE_ORDER", "PCI_BUS_ID", "cards by slot"),
        *PARSERS,
        NAME,
    ),
    variant="",
)
ASCEND = (
    flag("--async-scheduling", None, "the next step is prepared early"),
    flag("--compilation-config", '{"cudagraph_mode": "FULL_DECODE_ONLY"}', "decode as a graph"),
    *PARSERS,
    NAME,
    env("HCCL_OP_EXPANSION_MODE", "AIV", "collectives on the vector cores"),
    Setting("system", "sysctl -w vm.swappiness=0", None, "pinned memory stays", SOURCE),
    Setting(
        "system",
        "echo performance | tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        None,
        "cores at full clock",
        SOURCE,
    ),
)
A3 = plan(
    "vllm-ascend",
    "0.18.0",
    "quay.io/ascend/vllm-ascend:v0.18.0-a3",
    "Eco-Tech/MiniMax-M2.5-w8a8-QuaRot",
    "16xascend-910c",
    Parallelism(tensor=4, data=4, expert_parallel=True),
    14.4,
    (
        flag("--tensor-parallel-size", "4", "four ranks"),
        flag("--data-parallel-size", "4", "four replicas of attention"),
        flag("--enable-expert-parallel", None, "whole experts"),
        flag("--quantization", "ascend", "msModelSlim's layout"),
        *ASCEND,
    ),
)
A2 = plan(
    "vllm-ascend",
    "0.18.0",
    "quay.io/ascend/vllm-ascend:v0.18.0",
    "MiniMaxAI/MiniMax-M2.5",
    "8xascend-910b3",
    Parallelism(tensor=8, data=2, expert_parallel=True),
    27.2,
    (
        flag("--tensor-parallel-size", "8", "eight ranks"),
        flag("--data-parallel-size", "2", "a replica of attention on each node"),
        flag("--enable-expert-parallel", None, "whole experts"),
        *ASCEND,
        flag("--data-parallel-size-local", "1", "one on each node"),
        flag("--data-parallel-address", "{node0_ip}", "where node 0 is"),
        flag("--data-parallel-rpc-port", "2347", "open it between the nodes"),
        flag("--data-parallel-start-rank", "0", "the first rank of this node", 0),
        flag("--data-parallel-start-rank", "1", "the first rank of this node", 1),
        flag("--headless", None, "node 0 serves for all", 1),
        env("HCCL_IF_IP", "{this_ip}", "this node's address"),
        env("HCCL_SOCKET_IFNAME", "{nic}", "between the nodes"),
    ),
    num_nodes=2,
)
MI300X = plan(
    "vllm",
    "0.20.2",
    "vllm/vllm-openai-rocm:v0.20.2",
    "MiniMaxAI/MiniMax-M2.5",
    "2xmi300x",
    Parallelism(tensor=2),
    107.3,
    (
        flag("--tensor-parallel-size", "2", "two ranks"),
        flag("--attention-backend", "ROCM_AITER_FA", "AMD's kernels"),
        env("VLLM_ROCM_USE_AITER", "1", "AMD's kernels"),
        *PARSERS,
        NAME,
    ),
)

PLANS = {
    "b200": B200,
    "rtx-pro-6000": RTX_PRO,
    "unequal": UNEQUAL,
    "a3": A3,
    "a2": A2,
    "mi300x": MI300X,
}
OPTIONS = {"a2": LaunchOptions(nic="enp67s0f0np0")}
CASES: tuple[tuple[str, FormName], ...] = (
    *(("b200", form) for form in ("shell", "docker", "compose", "kubernetes", "slurm", "recipe")),
    ("rtx-pro-6000", "docker"),
    ("rtx-pro-6000", "compose"),
    ("unequal", "shell"),
    ("unequal", "docker"),
    ("unequal", "kubernetes"),
    ("a3", "docker"),
    ("a3", "compose"),
    ("a3", "kubernetes"),
    ("a2", "shell"),
    ("a2", "docker"),
    ("a2", "compose"),
    ("a2", "kubernetes"),
    ("a2", "slurm"),
    ("mi300x", "docker"),
    ("mi300x", "compose"),
)


def files_of(name: str, form: FormName) -> tuple[LaunchFile, ...]:
    return launch_files(PLANS[name], form, OPTIONS.get(name, LaunchOptions()))


def write_golden() -> None:
    shutil.rmtree(GOLDEN, ignore_errors=True)
    for name, form in CASES:
        for file in files_of(name, form):
            path = GOLDEN / name / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file.text)


if __name__ == "__main__":
    write_golden()
