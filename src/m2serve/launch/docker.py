"""A plan as docker commands, one script for each node. Pure."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterable
from dataclasses import replace

from m2serve.launch.command import make_launch, node_settings, resource_name
from m2serve.launch.files import LaunchFile, script_files
from m2serve.launch.options import DEFAULTS, LaunchOptions, hardware_of
from m2serve.launch.placeholders import placeholders_in
from m2serve.launch.plumbing import (
    HEALTH_INTERVAL_S,
    SHM_GIB,
    Mount,
    Plumbing,
    cache_folder,
    entrypoint_of,
    health_argv,
    is_folder,
    model_in_container,
    plumbing_of,
    start_seconds,
)
from m2serve.launch.replicas import (
    function_lines,
    replica_name,
    server_options,
    together_lines,
)
from m2serve.launch.shell import (
    Row,
    address_lines,
    array_lines,
    blocks_text,
    engine_rows,
    front_lines,
    head_comments,
    host_lines,
    script_start,
    setting_values,
)
from m2serve.records import Plan, Setting


def docker_files(plan: Plan, options: LaunchOptions = DEFAULTS) -> tuple[LaunchFile, ...]:
    """docker.sh, or docker-node0.sh and on, each with one `docker run` in the foreground."""
    make_launch(plan, options)  # which refuses what a command cannot carry
    return script_files(
        plan,
        "docker",
        "docker-node",
        lambda node: _script(plan, options, node),
        lambda: _script_of_several(plan, options),
    )


def docker_argv(plan: Plan, options: LaunchOptions = DEFAULTS, node: int = 0) -> tuple[str, ...]:
    """The `docker run` of one node; addresses and the cache folder may be placeholders."""
    settings = inside_settings(plan, options, node)
    rows = _rows(plan, options, settings, node, resource_name(plan))
    return tuple(word for words, _ in rows for word in words)


def inside_settings(plan: Plan, options: LaunchOptions, node: int) -> tuple[Setting, ...]:
    """A node's settings inside a container of its own network, which publishes the port.

    A container has only the chosen devices and counts them from 0, but AMD's, which are not apart.
    """
    if hardware_of(plan).groups[0].accelerator.vendor != "amd":
        options = replace(options, devices=())
    if plan.num_nodes > 1:
        return node_settings(plan, options, node)
    settings = node_settings(plan, replace(options, host="0.0.0.0"), node)
    why = "every address of the container; docker publishes the port"
    return tuple(replace(s, reason=why) if s.name == "--host" else s for s in settings)


def device_rows(plumbing: Plumbing) -> list[tuple[str, ...]]:
    """Flags of `docker run` for accelerators, driver, weights and shared memory."""
    rows: list[tuple[str, ...]] = []
    if isinstance(plumbing.nvidia_devices, tuple):
        numbers = ",".join(str(number) for number in plumbing.nvidia_devices)
        rows.append(("--gpus", f'"device={numbers}"'))
    elif plumbing.nvidia_devices:
        rows.append(("--gpus", str(plumbing.nvidia_devices)))
    rows += [("--device", device) for device in plumbing.devices]
    rows += [("--group-add", group) for group in plumbing.groups]
    rows += [("--cap-add", capability) for capability in plumbing.capabilities]
    if plumbing.is_unconfined:
        rows.append(("--security-opt", "seccomp=unconfined"))
    if plumbing.is_shared_host:
        rows += [("--privileged",), ("--ipc", "host"), ("--ulimit", "memlock=-1")]
    else:
        rows.append(("--shm-size", f"{SHM_GIB}g"))
    return rows + [("--mount", mount_text(mount)) for mount in plumbing.mounts]


def mount_text(mount: Mount) -> str:
    """The value of --mount, which docker reads as one line of CSV."""
    fields = ["type=bind", f"source={mount.source}", f"target={mount.target}"]
    line = io.StringIO()
    fields += ["readonly"] if mount.is_read_only else []
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()


def image_words(engine: str, image: str, argv: tuple[str, ...]) -> tuple[str, ...]:
    """The end of `docker run`: the image, and the engine's command in it."""
    entrypoint = entrypoint_of(engine)
    if not entrypoint:
        return (image, *argv)
    return ("--entrypoint", entrypoint[0], image, *argv[len(entrypoint) :])


def _rows(
    plan: Plan, options: LaunchOptions, settings: Iterable[Setting], node: int, name: str
) -> Iterable[Row]:
    settings = tuple(settings)
    yield ("docker", "run", "--rm", "--init", "--name", name), ""
    yield _network(plan, options), ""
    yield from ((row, "") for row in device_rows(plumbing_of(plan, options)))
    yield ("--env", "HF_TOKEN"), "from the caller's environment, where it is set"
    for setting in settings:
        if setting.kind == "env":
            yield ("--env", f"{setting.name}={setting.value}"), setting.reason
    if node == 0:
        yield _health(plan, options), "weights take long to load"
    (program, _), *flags = engine_rows(plan, settings, model_in_container(plan))
    yield image_words(plan.engine, plan.image, tuple(program)), ""
    yield from flags


def _network(plan: Plan, options: LaunchOptions) -> tuple[str, ...]:
    if plan.num_nodes > 1:
        return ("--network", "host")
    host = f"[{options.host}]" if ":" in options.host else options.host
    return ("--publish", f"{host}:{options.port}:{options.port}")


def _health(plan: Plan, options: LaunchOptions) -> tuple[str, ...]:
    check = shlex.join(health_argv(options.port))
    start, interval = f"{start_seconds(plan)}s", f"{HEALTH_INTERVAL_S}s"
    return ("--health-cmd", check, "--health-start-period", start, "--health-interval", interval)


def _script(plan: Plan, options: LaunchOptions, node: int) -> str:
    settings = inside_settings(plan, options, node)
    reasons = options.with_reasons
    rows = list(_rows(plan, options, settings, node, resource_name(plan)))
    used = placeholders_in([*setting_values(settings), *(w for row, _ in rows for w in row)])
    return blocks_text(
        [
            script_start(head_comments(plan, options)),
            address_lines(used, options),
            _cache_lines(plan, options),
            host_lines(settings, reasons),
            array_lines(rows, reasons),
            ['exec "${command[@]}"'],
        ]
    )


def _script_of_several(plan: Plan, options: LaunchOptions) -> str:
    functions = {}
    for number, own in enumerate(server_options(plan, options)):
        settings = inside_settings(plan, own, 0)
        name = resource_name(plan) + replica_name(plan, number)
        rows = _rows(plan, own, settings, 0, name)
        reasons = options.with_reasons and number == 0  # the same for all
        functions[f"server{number}"] = [*array_lines(rows, reasons), 'exec "${command[@]}"']
    functions["front"] = front_lines(plan, options)
    return blocks_text(
        [
            script_start(head_comments(plan, options)),
            _cache_lines(plan, options),
            host_lines(inside_settings(plan, options, 0), options.with_reasons),
            *(function_lines(name, body) for name, body in functions.items()),
            together_lines(functions),
        ]
    )


def _cache_lines(plan: Plan, options: LaunchOptions) -> list[str]:
    """docker mounts no folder that does not exist."""
    if is_folder(plan):
        return []
    if options.cache_dir:
        return [f"mkdir -p {shlex.quote(options.cache_dir)}"]
    return [f'CACHE="{cache_folder(options)}"', 'mkdir -p "${CACHE}"']
