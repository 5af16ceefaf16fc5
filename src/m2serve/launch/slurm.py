"""A plan as a Slurm batch job: one task a node, the first to end ends all. Pure."""

from __future__ import annotations

from m2serve.launch.command import make_launch, node_settings, resource_name
from m2serve.launch.compose import setting_comments
from m2serve.launch.files import LaunchFile
from m2serve.launch.options import DEFAULTS, LaunchOptions, devices_per_node, hardware_of
from m2serve.launch.placeholders import placeholders_in
from m2serve.launch.shell import (
    array_lines,
    blocks_text,
    engine_rows,
    export_lines,
    head_comments,
    nic_line,
    server_lines,
    setting_values,
)
from m2serve.records import Plan

_RESOURCES = {"nvidia": "gpu", "amd": "gpu", "ascend": "npu"}
_NODES = 'mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")'
_ADDRESS_OF = """\
address_of() {
    srun --nodes=1 --ntasks=1 --nodelist="$1" ip -4 -o addr show dev "$NIC" |
        awk '{sub("/.*", "", $4); print $4; exit}'
}"""


def slurm_files(plan: Plan, options: LaunchOptions = DEFAULTS) -> tuple[LaunchFile, ...]:
    """job.sbatch for `sbatch`; the engine's program must be on the nodes' PATH."""
    make_launch(plan, options)
    head = ["#!/usr/bin/env bash", *_directives(plan), *_comments(plan, options)]
    if plan.num_replicas > 1:  # on one node, where the job's own script runs
        blocks = [head, ["set -euo pipefail"], *server_lines(plan, options)]
        return (LaunchFile("job.sbatch", blocks_text(blocks)),)
    nodes = range(plan.num_nodes)
    words = [word for node in nodes for word in setting_values(node_settings(plan, options, node))]
    used = placeholders_in(words)
    blocks = [
        head,
        ["set -euo pipefail", _NODES],
        *_addresses(used, options),
        *(_node_function(plan, options, node) for node in nodes),
        [*(_step(plan, node, used) for node in nodes), "wait -n"],
    ]
    return (LaunchFile("job.sbatch", blocks_text(blocks)),)


def _directives(plan: Plan) -> list[str]:
    vendor = hardware_of(plan).groups[0].accelerator.vendor
    lines = [
        f"#SBATCH --job-name={resource_name(plan)}",
        f"#SBATCH --nodes={plan.num_nodes}",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --exclusive",
        "#SBATCH --output=%x-%j.log",
    ]
    if vendor in _RESOURCES:
        lines.insert(3, f"#SBATCH --gres={_RESOURCES[vendor]}:{devices_per_node(plan)}")
    return lines


def _comments(plan: Plan, options: LaunchOptions) -> list[str]:
    host = setting_comments(node_settings(plan, options, 0), ("system",))
    lines = head_comments(plan, options, is_one_job=True)
    lines += ["On each node, by its administrator:", *host] if host else []
    return [f"# {line}" for line in lines]


def _addresses(used: set[str], options: LaunchOptions) -> list[list[str]]:
    if not used & {"nic", "this_ip", "node0_ip"}:
        return []
    lines = [nic_line(options), "export NIC"]
    if not used & {"this_ip", "node0_ip"}:
        return [lines]
    return [lines, [_ADDRESS_OF], ['NODE0_IP=$(address_of "${hosts[0]}")', "export NODE0_IP"]]


def _node_function(plan: Plan, options: LaunchOptions, node: int) -> list[str]:
    settings = node_settings(plan, options, node)
    reasons = options.with_reasons
    body = [
        *export_lines(settings, reasons),
        *array_lines(engine_rows(plan, settings), reasons),
        'exec "${command[@]}"',
    ]
    return [f"node{node}() {{", *(f"    {line}" for line in body), "}", f"export -f node{node}"]


def _step(plan: Plan, node: int, used: set[str]) -> str:
    step = f'srun --nodes=1 --ntasks=1 --nodelist="${{hosts[{node}]}}" bash -c node{node} &'
    if "this_ip" in used:
        return f'THIS_IP=$(address_of "${{hosts[{node}]}}") {step}'
    return step
