"""Independent servers of one plan: the devices and the port of each, and our front before them.

Pure. The front listens where clients come; the servers listen on this machine alone, on the ports
after it, in the order of their devices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from m2serve.errors import UsageError
from m2serve.launch.options import LaunchOptions, devices_per_node, devices_per_server
from m2serve.records import Plan

LOCAL = "127.0.0.1"
MAX_PORT = 65_535


def server_options(plan: Plan, options: LaunchOptions) -> tuple[LaunchOptions, ...]:
    """The options of each server; with a single one those given. Raises UsageError."""
    if plan.num_replicas == 1:
        return (options,)
    if options.port + plan.num_replicas > MAX_PORT:
        raise UsageError(
            f"port {options.port} leaves no room for {plan.num_replicas} servers after it"
        )
    devices = options.devices or tuple(range(devices_per_node(plan)))
    size = devices_per_server(plan)
    return tuple(
        replace(
            options,
            host=LOCAL,
            port=options.port + 1 + number,
            devices=devices[number * size : (number + 1) * size],
        )
        for number in range(plan.num_replicas)
    )


def front_argv(plan: Plan, options: LaunchOptions) -> tuple[str, ...]:
    """Our server before the replicas, () where there is one server."""
    if plan.num_replicas == 1:
        return ()
    served = next((s.value for s in plan.settings if s.name == "--served-model-name"), None)
    name = ("--served-model-name", served) if served else ()
    urls = [f"http://{LOCAL}:{own.port}" for own in server_options(plan, options)]
    upstream = (word for url in urls for word in ("--upstream", url))
    listens = ("--host", options.host, "--port", str(options.port))
    return ("m2", "serve", plan.model, *listens, *name, *upstream)


def replica_name(plan: Plan, number: int) -> str:
    """A function or container's ending: "" where there is one server."""
    return f"-{number}" if plan.num_replicas > 1 else ""


def function_lines(name: str, body: Iterable[str]) -> list[str]:
    """A bash function; text inside quotes that spans lines is none of ours."""
    return [f"{name}() {{", *(f"    {line}" if line else "" for line in body), "}"]


def together_lines(names: Iterable[str]) -> list[str]:
    """Starts functions at once and ends all when the first ends or the script is told to."""
    return [
        "# The first to end ends all.",
        "trap 'trap - EXIT; kill $(jobs -p) 2>/dev/null || true; wait' EXIT",
        "trap 'exit 143' TERM",
        "trap 'exit 130' INT",
        *(f"{name} &" for name in names),
        "wait -n",
    ]
