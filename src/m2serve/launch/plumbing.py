"""What a container needs to reach accelerators and weights. Pure.

NVIDIA's container toolkit brings devices and driver; AMD's are two device files; Ascend's are one
file for each die, three for the driver, and the driver's own libraries from the host.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace

from m2serve.errors import UsageError
from m2serve.launch.options import LaunchOptions, devices_per_server, hardware_of
from m2serve.records import Plan

SHM_GIB = 32
HEALTH_INTERVAL_S = 10
# Weights are read, or downloaded the first time, at no less than this; then the engine compiles,
# captures its graphs and warms up.
_LOAD_BYTES_PER_S = 100_000_000
_WARM_UP_S = 900
_CACHES = {
    "huggingface": ("${HOME}/.cache/huggingface", "/root/.cache/huggingface"),
    "modelscope": ("${HOME}/.cache/modelscope", "/root/.cache/modelscope"),
}
_ASCEND_DEVICES = ("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc")
_ASCEND_MOUNTS = (
    "/usr/local/dcmi",
    "/usr/local/Ascend/driver/tools/hccn_tool",
    "/usr/local/bin/npu-smi",
    "/usr/local/Ascend/driver/lib64",
    "/usr/local/Ascend/driver/version.info",
    "/etc/ascend_install.info",
)
_ASCEND_NETWORK = "/etc/hccn.conf"
_RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu", "ascend": "huawei.com/Ascend910"}


@dataclass(frozen=True)
class Mount:
    source: str
    target: str
    is_read_only: bool = True


@dataclass(frozen=True)
class Plumbing:
    """`devices` are files of the host. `nvidia_devices`: a count, or numbers when chosen.

    `is_shared_host`: several nodes; ranks meet over the host's network, InfiniBand and RoCE need
    its devices and unlimited locked memory. `resource` is Kubernetes' name of one accelerator.
    """

    num_devices: int
    resource: str
    devices: tuple[str, ...]
    nvidia_devices: tuple[int, ...] | int
    mounts: tuple[Mount, ...]
    groups: tuple[str, ...]
    capabilities: tuple[str, ...]
    is_unconfined: bool
    is_shared_host: bool


def plumbing_of(plan: Plan, options: LaunchOptions) -> Plumbing:
    """Raises UsageError for a plan without an image or with accelerators no container knows."""
    vendor = hardware_of(plan).groups[0].accelerator.vendor
    if not plan.image:
        raise UsageError(f"{plan.engine} has no container image; take the shell form")
    if vendor not in _RESOURCES:
        raise UsageError(f"no container reaches {plan.hardware}; take the shell form")
    plain = vendor_plumbing(
        vendor, devices_per_server(plan), options.devices, is_shared_host=plan.num_nodes > 1
    )
    return replace(plain, mounts=(*plain.mounts, weights_mount(plan, options)))


def vendor_plumbing(
    vendor: str, count: int, chosen: tuple[int, ...] = (), *, is_shared_host: bool = False
) -> Plumbing:
    """Devices and driver alone, for `count` accelerators or the `chosen` ones."""
    devices: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    if vendor == "amd":
        devices = ("/dev/kfd", "/dev/dri")
    elif vendor == "ascend":
        numbers = chosen or range(count)
        devices = (*(f"/dev/davinci{number}" for number in numbers), *_ASCEND_DEVICES)
        mounts = (*_ASCEND_MOUNTS, _ASCEND_NETWORK) if is_shared_host else _ASCEND_MOUNTS
    return Plumbing(
        num_devices=count,
        resource=_RESOURCES[vendor],
        devices=devices,
        nvidia_devices=(chosen or count) if vendor == "nvidia" else 0,
        mounts=tuple(Mount(path, path) for path in mounts),
        groups=("video",) if vendor == "amd" else (),
        capabilities=("SYS_PTRACE",) if vendor == "amd" else (),
        is_unconfined=vendor == "amd",
        is_shared_host=is_shared_host,
    )


def weights_mount(plan: Plan, options: LaunchOptions) -> Mount:
    """The model's folder, read-only and under its own path, or the cache of the hub."""
    if is_folder(plan):
        return folder_mount(plan.model)
    source = options.cache_dir or "{cache}"
    return Mount(source, _CACHES[options.hub][1], is_read_only=False)


def folder_mount(folder: str) -> Mount:
    """A snapshot in a hub's cache is made of links to its neighbours: they are mounted, too."""
    path = os.path.abspath(folder)
    repository = path.partition("/snapshots/")[0]
    return Mount(repository, repository)


def is_folder(plan: Plan) -> bool:
    """Whether the plan was made from a folder rather than for a known upload."""
    return not plan.variant


def model_in_container(plan: Plan) -> str:
    return os.path.abspath(plan.model) if is_folder(plan) else plan.model


def cache_folder(options: LaunchOptions) -> str:
    """The hub's own on the host; holds ${HOME}."""
    return _CACHES[options.hub][0]


def weights_bytes_per_node(plan: Plan) -> int:
    per_node = max(1, len(plan.ranks) // plan.num_nodes)
    nodes = [plan.ranks[at : at + per_node] for at in range(0, len(plan.ranks), per_node)]
    return max((sum(rank.term("weights") for rank in ranks) for ranks in nodes), default=0)


def start_seconds(plan: Plan) -> int:
    """How long a start may take before it counts as failed, in whole minutes."""
    seconds = weights_bytes_per_node(plan) / _LOAD_BYTES_PER_S + _WARM_UP_S
    return math.ceil(seconds / 60) * 60


def health_argv(port: int) -> tuple[str, ...]:
    """A check inside the container; every engine's image has Python, not all have curl."""
    url = f"http://127.0.0.1:{port}/health"
    return ("python3", "-c", f"import urllib.request as u; u.urlopen('{url}', timeout=5)")


def entrypoint_of(engine: str) -> tuple[str, ...]:
    """What replaces the image's entrypoint. vLLM's images start the server by themselves, by
    releases with one program or another; the others' set up their environment and run the command.
    """
    return ("vllm",) if engine == "vllm" else ()
