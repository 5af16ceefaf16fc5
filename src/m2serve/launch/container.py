"""An engine's command for this machine, run in the engine's image instead. Pure.

For `m2 serve --engine` where the engine is not installed and docker is: the container uses the
host's network, so the command's own address and port hold, and shows the engine the checkpoint
under its own path. `process.EngineProcess` runs the result as it runs any command; docker passes
SIGTERM on. After a SIGKILL of docker itself the container lives on, so `remove_argv` comes last.
"""

from __future__ import annotations

import os
from dataclasses import replace

from m2serve.errors import UsageError
from m2serve.launch.docker import device_rows, image_words
from m2serve.launch.plumbing import folder_mount, vendor_plumbing
from m2serve.records import NodeLaunch
from m2serve.spec.engines import find_engine
from m2serve.spec.hardware import Accelerator


def container_launch(
    launch: NodeLaunch,
    engine: str,
    accelerators: tuple[Accelerator, ...],
    *,
    folder: str,
    name: str,
    engine_version: str = "",
    devices: tuple[int, ...] = (),
) -> NodeLaunch:
    """`launch` is for the host (local.local_launch), `folder` the checkpoint its argv names,
    `accelerators` those that are used, `devices` their numbers (() the first ones), `name` the
    container's. The release is the engine's default.

    Raises UsageError where the engine has no image for the accelerators.
    """
    if not accelerators:
        raise UsageError(f"{engine} in a container needs an accelerator; none is here")
    row = find_engine(engine)
    first = accelerators[0]
    image = row.image_for(engine_version or row.default_version, first.arch)
    if not image or first.arch not in row.archs:
        raise UsageError(f"{engine} has no container image for {first.title}")
    plumbing = vendor_plumbing(first.vendor, len(accelerators), devices)
    path = os.path.abspath(folder)
    plumbing = replace(plumbing, mounts=(*plumbing.mounts, folder_mount(path)))
    inside = tuple(path if word == folder else word for word in launch.argv)
    argv = [
        *("docker", "run", "--rm", "--init", "--name", name, "--network", "host"),
        *(word for row_words in device_rows(plumbing) for word in row_words),
        *(word for variable, value in launch.env for word in ("--env", f"{variable}={value}")),
        *image_words(engine, image, inside),
    ]
    return replace(launch, argv=tuple(argv), env=(), image=image, num_devices=len(accelerators))


def remove_argv(name: str) -> tuple[str, ...]:
    """Ends and removes the container; a name without one is no harm."""
    return ("docker", "rm", "--force", name)
