"""The frozen records that planning, launching, measuring and reporting hand to one another.

Each is also a file: `to_json` and the reader of its room turn it into JSON and back. Bytes are
whole bytes, times are in the unit of the name, memory sizes are per device. No torch.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

Objective = Literal["latency", "throughput", "cost"]
EngineName = Literal["own", "vllm", "sglang", "vllm-ascend"]
SettingKind = Literal["flag", "env", "system"]


@dataclass(frozen=True)
class Workload:
    """What the deployment is for. `max_model_len` 0: the checkpoint's own context.

    `prefix_hit` is the share of prompt tokens that a prefix cache already holds, 0 to 1.
    """

    max_model_len: int = 0
    concurrency: int = 8
    input_len: int = 2048
    output_len: int = 512
    prefix_hit: float = 0.0
    slo_ttft_ms: float | None = None
    slo_tpot_ms: float | None = None
    objective: Objective = "latency"


@dataclass(frozen=True)
class Parallelism:
    """How a model is cut. `pipeline_layers`: layers of each stage, empty for an even cut.

    `expert_parallel`: experts are spread whole over all tensor * data ranks, else each is cut.
    World size is tensor * pipeline * data * prefill_context (decode_context reuses tensor ranks).
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert_parallel: bool = False
    decode_context: int = 1
    prefill_context: int = 1
    pipeline_layers: tuple[int, ...] = ()

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.data * self.prefill_context


@dataclass(frozen=True)
class Setting:
    """One flag of the engine's command, one variable, or one command for the host (`system`).

    `name` as typed ("--tensor-parallel-size", "NCCL_P2P_LEVEL", "sysctl -w vm.swappiness=0");
    `value` None: a flag alone. `reason` is one sentence, `source` where it comes from. `node` is
    the only node it is for, None: every node. A value may hold the placeholders {node0_ip},
    {this_ip} and {nic}.
    """

    kind: SettingKind
    name: str
    value: str | None
    reason: str
    source: str
    node: int | None = None


@dataclass(frozen=True)
class Departure:
    """What a published deployment of the same kind sets ("--enforce-eager") and a plan does not, or
    sets otherwise; `document` is its id in spec/deployments.toml.
    """

    document: str
    setting: str
    reason: str


@dataclass(frozen=True)
class MemoryTerm:
    """`name` is weights.experts, .attention, .router, .embedding, .lm_head, .norms or .draft,
    overhead.context, .graphs, .communication or .activations, kv_cache, offloaded (negative).
    """

    name: str
    num_bytes: int


@dataclass(frozen=True)
class RankMemory:
    """The memory of one device. `usable_bytes` is the device's, `budget_bytes` what the engine may
    take of it (usable times gpu_memory_utilization); the terms add up to at most the budget.
    """

    rank: int
    device: str
    usable_bytes: int
    budget_bytes: int
    terms: tuple[MemoryTerm, ...]

    @property
    def used_bytes(self) -> int:
        return sum(term.num_bytes for term in self.terms)

    def term(self, prefix: str) -> int:
        """Bytes of all terms whose name starts with `prefix`."""
        return sum(t.num_bytes for t in self.terms if t.name.startswith(prefix))


@dataclass(frozen=True)
class Estimate:
    """A predicted figure with the interval that should hold four measurements of five.

    `source` says where it comes from. `is_measured`: from runs of this very deployment, see
    plan/measured.py.
    """

    value: float
    low: float
    high: float
    source: str
    is_measured: bool = False


@dataclass(frozen=True)
class Speed:
    """For the workload. Output tokens/s are of the whole deployment."""

    ttft_ms: Estimate
    tpot_ms: Estimate
    output_tokens_per_s: Estimate


@dataclass(frozen=True)
class IssueNote:
    """A known issue (spec/known_issues.toml) that applies to a plan, and what was done about it."""

    id: str
    title: str
    action: str
    reference: str


@dataclass(frozen=True)
class Rejection:
    """A configuration that was considered and dropped, and why, in one sentence."""

    configuration: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """How to run a checkpoint on given hardware.

    `model` is what the user named (a path or a hub id), `variant` the row of spec/variants.toml it
    is ("" when read from a folder), `hardware` the text that spec/hardware.py reads ("4xb200").
    `settings` never repeat what `model`, `host` and `port` say. `warnings` include the licence's.
    `kv_cache_tokens` are of the whole deployment, all data-parallel ranks together.

    `num_replicas` above 1: as many equal servers, each on its own share of the hardware in order,
    behind one front. `parallelism`, `settings`, `ranks` and `max_model_len` are then of one.

    `devices` are the numbers of the accelerators that are used where the machine has others before
    them, () the first ones.
    """

    model: str
    variant: str
    hardware: str
    num_nodes: int
    engine: EngineName
    engine_version: str
    image: str
    parallelism: Parallelism
    kv_cache_dtype: str
    max_model_len: int
    workload: Workload
    settings: tuple[Setting, ...]
    ranks: tuple[RankMemory, ...]
    kv_cache_tokens: int
    speed: Speed
    issues: tuple[IssueNote, ...] = ()
    warnings: tuple[str, ...] = ()
    runners_up: tuple[Rejection, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    departures: tuple[Departure, ...] = ()
    num_replicas: int = 1
    devices: tuple[int, ...] = ()


@dataclass(frozen=True)
class NodeLaunch:
    """What one node runs: environment, host commands first, then argv. `is_headless`: it serves no
    HTTP. `replica` counts the independent servers of a node. Placeholders for addresses are
    {node0_ip}, {this_ip} and {nic}.
    """

    node: int
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    host_commands: tuple[str, ...]
    image: str
    num_devices: int
    is_headless: bool = False
    replica: int = 0


@dataclass(frozen=True)
class Launch:
    """A plan as commands, in the order the nodes start. `ports` maps each port to its purpose.

    `front` is the argv of our server before independent replicas, empty where there is one server.
    """

    engine: EngineName
    model: str
    nodes: tuple[NodeLaunch, ...]
    ports: tuple[tuple[int, str], ...]
    front: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunRecord:
    """One measured run of an endpoint or an engine; times in milliseconds, rates per second.

    `model` is the checkpoint (hub id or folder), `input_len` the prompt with what was in the cache.
    A plan finds its runs by what `extra` tells (plan/run_records.py): "date" (ISO), "hardware" (for
    spec.hardware.parse_hardware; else `machine` is read so), "parallelism" ("TP4 DP2 EP" or
    "2 x TP4"; else the flags in `command`), "kv_cache_dtype" and "prefix_hit".
    """

    commit: str
    command: str
    machine: str
    model: str
    engine: str
    engine_version: str
    input_len: int
    output_len: int
    concurrency: int
    ttft_ms: float
    tpot_ms: float
    output_tokens_per_s: float
    extra: tuple[tuple[str, str], ...] = ()


def to_json(record: Any) -> str:
    """A record as indented JSON with the fields' names; what `--json` prints."""
    return json.dumps(dataclasses.asdict(record), indent=2, ensure_ascii=False)
