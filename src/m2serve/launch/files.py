"""A text of a launch and the name it is written under."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from m2serve.records import Plan


@dataclass(frozen=True)
class LaunchFile:
    name: str
    text: str


def node_file(plan: Plan, single: str, several: str, ending: str, node: int) -> str:
    """("serve", "node", "sh" -> "serve.sh" for one node, "node1.sh" for the second of several)."""
    return f"{single}.{ending}" if plan.num_nodes == 1 else f"{several}{node}.{ending}"


def script_files(
    plan: Plan,
    single: str,
    several: str,
    script: Callable[[int], str],
    of_replicas: Callable[[], str],
) -> tuple[LaunchFile, ...]:
    """One script a node, by its number; where there are replicas one for all of them."""
    if plan.num_replicas > 1:
        return (LaunchFile(f"{single}.sh", of_replicas()),)
    return tuple(
        LaunchFile(node_file(plan, single, several, "sh", node), script(node))
        for node in range(plan.num_nodes)
    )
