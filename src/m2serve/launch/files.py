"""A text of a launch and the name it is written under."""

from __future__ import annotations

from dataclasses import dataclass

from m2serve.records import Plan


@dataclass(frozen=True)
class LaunchFile:
    name: str
    text: str


def node_file(plan: Plan, single: str, several: str, ending: str, node: int) -> str:
    """("serve", "node", "sh" -> "serve.sh" for one node, "node1.sh" for the second of several)."""
    return f"{single}.{ending}" if plan.num_nodes == 1 else f"{several}{node}.{ending}"
