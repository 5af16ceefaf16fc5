"""A plan as Kubernetes objects: a Deployment for one node, a LeaderWorkerSet for several. Pure.

LeaderWorkerSet (lws.sigs.k8s.io) starts and restarts the pods of a group together and tells each
its number and the leader's address.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from m2serve.errors import UsageError
from m2serve.launch.command import make_launch, node_settings, resource_name
from m2serve.launch.compose import setting_comments
from m2serve.launch.files import LaunchFile
from m2serve.launch.options import DEFAULTS, LaunchOptions
from m2serve.launch.plumbing import is_folder, weights_bytes_per_node
from m2serve.launch.pod import pod_spec
from m2serve.launch.shell import one_line
from m2serve.launch.yaml_text import yaml_text
from m2serve.records import Plan, Setting
from m2serve.spec.units import GIB

_POD = {"nic": "eth0", "this_ip": "$(POD_IP)"}


def kubernetes_files(plan: Plan, options: LaunchOptions = DEFAULTS) -> tuple[LaunchFile, ...]:
    """kubernetes.yaml; raises UsageError for several nodes without the interface's name."""
    if plan.num_nodes > 1 and not options.nic:
        raise UsageError(
            "pods on several nodes use the hosts' network; name the interface that joins the nodes"
        )
    make_launch(plan, options)
    inside = replace(options, host="0.0.0.0", node_ips=())
    name = resource_name(plan)
    claim = [] if is_folder(plan) else [_claim(plan, name)]
    documents = [*claim, _workload(plan, inside, name), _service(plan, inside, name)]
    return (LaunchFile("kubernetes.yaml", yaml_text(documents, _comments(plan, inside))),)


def _comments(plan: Plan, options: LaunchOptions) -> list[str]:
    settings = node_settings(plan, options, 0)
    nodes = f" on each of {plan.num_nodes} nodes" if plan.num_nodes > 1 else ""
    lines = [f"{plan.model} on {plan.hardware}{nodes}: {plan.engine} {plan.engine_version}"]
    if plan.num_nodes > 1:
        lines.append("LeaderWorkerSet 0.6 or newer must be installed (lws.sigs.k8s.io)")
    if plan.num_replicas > 1:
        lines.append(
            f"{plan.num_replicas} pods, each with its own accelerators; the Service spreads "
            "requests without regard to prefixes. m2 serve with the address of every pod as "
            "--upstream keeps requests that begin alike at one."
        )
    lines += [one_line(warning) for warning in plan.warnings]
    host = setting_comments(settings, ("system",))
    lines += ["", "On each host, as root:", *host] if host else []
    if options.with_reasons:
        lines += ["", "Why:", *setting_comments(settings, ("env", "flag"))]
    return lines


def _claim(plan: Plan, name: str) -> dict[str, Any]:
    """Room for the weights and a quarter more; written by every node of several."""
    size = math.ceil(weights_bytes_per_node(plan) * plan.num_nodes * 1.25 / GIB / 10) * 10
    mode = "ReadWriteMany" if plan.num_nodes > 1 else "ReadWriteOnce"
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": f"{name}-weights"},
        "spec": {
            "accessModes": [mode],
            "resources": {"requests": {"storage": f"{size}Gi"}},
        },
    }


def _workload(plan: Plan, options: LaunchOptions, name: str) -> dict[str, Any]:
    if plan.num_nodes > 1:
        return _leader_worker_set(plan, options, name)
    labels = _labels(name)
    spec = pod_spec(
        plan,
        options,
        node_settings(plan, options, 0),
        weights_claim=f"{name}-weights",
        addresses={**_POD, "node0_ip": "$(POD_IP)", "cache": ""},
    )
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": plan.num_replicas,
            "selector": {"matchLabels": labels},
            # The accelerators are free only when the old pod is gone.
            "strategy": {"type": "Recreate"},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def _leader_worker_set(plan: Plan, options: LaunchOptions, name: str) -> dict[str, Any]:
    claim = f"{name}-weights"
    cache = {"cache": ""}
    leader = pod_spec(
        plan,
        options,
        node_settings(plan, options, 0),
        weights_claim=claim,
        addresses={**_POD, **cache, "node0_ip": "$(POD_IP)"},
    )
    settings, ranks = _worker_settings(plan, options)
    worker = pod_spec(
        plan,
        options,
        settings,
        weights_claim=claim,
        addresses={**_POD, **cache, "node0_ip": "$(LWS_LEADER_ADDRESS)"},
        ranks=ranks,
    )
    labels = _labels(name)
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": 1,
            "leaderWorkerTemplate": {
                "size": plan.num_nodes,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": {
                    "metadata": {"labels": {**labels, "role": "leader"}},
                    "spec": leader,
                },
                "workerTemplate": {"metadata": {"labels": labels}, "spec": worker},
            },
        },
    }


def _worker_settings(
    plan: Plan, options: LaunchOptions
) -> tuple[tuple[Setting, ...], dict[str, int]]:
    """What all workers share, and the flags that count with the worker's number."""
    first = node_settings(plan, options, 1)
    own = [s for s in first if s.node == 1 and s.kind == "flag" and s.value is not None]
    ranks = {setting.name: int(setting.value or 0) for setting in own}
    for node in range(2, plan.num_nodes):
        for setting in node_settings(plan, options, node):
            if setting.name in ranks and setting.value != str(ranks[setting.name] * node):
                raise UsageError(
                    f"{setting.name} {setting.value} of node {node} does not follow from the "
                    "node's number; Kubernetes' workers share one template"
                )
    return tuple(s for s in first if s.name not in ranks), ranks


def _service(plan: Plan, options: LaunchOptions, name: str) -> dict[str, Any]:
    selector = _labels(name)
    if plan.num_nodes > 1:
        selector = {**selector, "role": "leader"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": _labels(name)},
        "spec": {
            "selector": selector,
            "ports": [{"name": "http", "port": options.port, "targetPort": "http"}],
        },
    }


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": name}
