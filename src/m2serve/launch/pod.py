"""One node of a plan as a Kubernetes pod. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from m2serve.launch.command import flag_words, program_of
from m2serve.launch.options import LaunchOptions
from m2serve.launch.placeholders import render
from m2serve.launch.plumbing import (
    HEALTH_INTERVAL_S,
    SHM_GIB,
    Mount,
    Plumbing,
    entrypoint_of,
    is_folder,
    model_in_container,
    plumbing_of,
    start_seconds,
)
from m2serve.records import Plan, Setting

# A probe that finds the engine busy is not a reason to kill it: a minute of silence is.
_LIVENESS_FAILURES = 6
_TERMINATION_S = 60


def pod_spec(
    plan: Plan,
    options: LaunchOptions,
    settings: tuple[Setting, ...],
    *,
    weights_claim: str,
    addresses: dict[str, str],
    ranks: dict[str, int] | None = None,
) -> dict[str, Any]:
    """A pod template's spec. `addresses` says what placeholders become. `ranks`: for the workers,
    which share one template, flags whose value is the worker's number times a factor.
    """
    plumbing = plumbing_of(plan, options)
    container: dict[str, Any] = {"name": plan.engine, "image": plan.image}
    container |= _command(plan, settings, addresses, ranks)
    container["env"] = _environment(settings, addresses)
    container["resources"] = _resources(plumbing)
    container["volumeMounts"] = _volume_mounts(plumbing.mounts)
    if security := _security(plumbing):
        container["securityContext"] = security
    if ranks is None:
        container["ports"] = [{"name": "http", "containerPort": options.port}]
        container |= _probes(plan)
    spec: dict[str, Any] = {}
    if plumbing.is_shared_host:
        spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    spec["terminationGracePeriodSeconds"] = _TERMINATION_S
    spec["containers"] = [container]
    spec["volumes"] = _volumes(plan, plumbing.mounts, weights_claim)
    return spec


def _command(
    plan: Plan,
    settings: Iterable[Setting],
    addresses: dict[str, str],
    ranks: dict[str, int] | None,
) -> dict[str, Any]:
    """`command` replaces the image's entrypoint, `args` are what follows it."""
    entrypoint = entrypoint_of(plan.engine)
    program = program_of(plan, model_in_container(plan))
    flags = [word for s in settings if s.kind == "flag" for word in flag_words(s)]
    words = [_value(word, addresses) for word in (*program, *flags)]
    if ranks:
        tail = " ".join(f"{flag} $((LWS_WORKER_INDEX * {by}))" for flag, by in ranks.items())
        # The shell takes the words as they are and adds what only the pod knows.
        words = ["sh", "-c", _escaped(f'exec "$@" {tail}'), "sh", *words]
        entrypoint = ("sh",) if entrypoint else ()
    if not entrypoint:
        return {"args": words}
    return {"command": list(entrypoint), "args": words[len(entrypoint) :]}


def _environment(settings: Iterable[Setting], addresses: dict[str, str]) -> list[dict[str, Any]]:
    token = {"name": "hf-token", "key": "token", "optional": True}
    pod_ip = {"fieldRef": {"fieldPath": "status.podIP"}}
    # POD_IP comes first: only variables above a reference are replaced in it.
    entries: list[dict[str, Any]] = [
        {"name": "POD_IP", "valueFrom": pod_ip},
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": token}},
    ]
    for setting in settings:
        if setting.kind == "env":
            entries.append({"name": setting.name, "value": _value(setting.value or "", addresses)})
    return entries


def _value(text: str, addresses: dict[str, str]) -> str:
    return render(text, _escaped, addresses)


def _escaped(text: str) -> str:
    """Kubernetes replaces $(NAME) in commands and values; $$ is a plain dollar sign."""
    return text.replace("$", "$$")


def _resources(plumbing: Plumbing) -> dict[str, Any]:
    accelerators = {plumbing.resource: plumbing.num_devices}
    return {"requests": dict(accelerators), "limits": dict(accelerators)}


def _security(plumbing: Plumbing) -> dict[str, Any]:
    if plumbing.is_shared_host:
        return {"privileged": True}
    security: dict[str, Any] = {}
    if plumbing.capabilities:
        security["capabilities"] = {"add": list(plumbing.capabilities)}
    if plumbing.is_unconfined:
        security["seccompProfile"] = {"type": "Unconfined"}
    return security


def _probes(plan: Plan) -> dict[str, Any]:
    check = {"httpGet": {"path": "/health", "port": "http"}}
    period = {"periodSeconds": HEALTH_INTERVAL_S}
    starts = start_seconds(plan) // HEALTH_INTERVAL_S
    return {
        "startupProbe": {**check, **period, "failureThreshold": starts},
        "readinessProbe": {**check, **period, "timeoutSeconds": 5},
        "livenessProbe": {
            **check,
            **period,
            "timeoutSeconds": 10,
            "failureThreshold": _LIVENESS_FAILURES,
        },
    }


def _volume_mounts(mounts: tuple[Mount, ...]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}]
    for index, mount in enumerate(mounts):
        entry: dict[str, Any] = {"name": f"host-{index}", "mountPath": mount.target}
        entries.append({**entry, "readOnly": True} if mount.is_read_only else entry)
    return entries


def _volumes(plan: Plan, mounts: tuple[Mount, ...], weights_claim: str) -> list[dict[str, Any]]:
    memory = {"medium": "Memory", "sizeLimit": f"{SHM_GIB}Gi"}
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": memory}]
    for index, mount in enumerate(mounts):
        is_weights = index == len(mounts) - 1
        if is_weights and not is_folder(plan):
            source: dict[str, Any] = {"persistentVolumeClaim": {"claimName": weights_claim}}
        else:
            source = {"hostPath": {"path": mount.source}}
        volumes.append({"name": f"host-{index}", **source})
    return volumes
