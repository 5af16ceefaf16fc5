"""What containers get: devices, driver, weights, ports, health; Docker, Compose and Kubernetes."""

from dataclasses import replace
from typing import Any

import pytest
import yaml
from launch_plans import A2, A3, B200, MI300X, PLANS, RTX_PRO, UNEQUAL

from m2serve.errors import UsageError
from m2serve.launch.command import make_launch
from m2serve.launch.compose import compose_files
from m2serve.launch.container import container_launch, remove_argv
from m2serve.launch.docker import docker_argv
from m2serve.launch.kubernetes import kubernetes_files
from m2serve.launch.local import engine_argv, local_launch
from m2serve.launch.options import LaunchOptions
from m2serve.launch.plumbing import folder_mount, start_seconds
from m2serve.records import Parallelism, Plan, Setting
from m2serve.spec.hardware import find_accelerator

NIC = LaunchOptions(nic="eth0")


def values(argv: tuple[str, ...], flag: str) -> list[str]:
    return [argv[at + 1] for at, word in enumerate(argv) if word == flag]


def services(plan: Plan, options: LaunchOptions = NIC) -> list[dict[str, Any]]:
    loaded = [yaml.safe_load(file.text) for file in compose_files(plan, options)]
    return [service for one in loaded for service in one["services"].values()]


def objects(plan: Plan, options: LaunchOptions = NIC) -> dict[str, dict[str, Any]]:
    (file,) = kubernetes_files(plan, options)
    return {one["kind"]: one for one in yaml.safe_load_all(file.text)}


def pods(plan: Plan) -> list[dict[str, Any]]:
    """The specs of the pod templates, the leader's first."""
    found = objects(plan)
    if "Deployment" in found:
        return [found["Deployment"]["spec"]["template"]["spec"]]
    group = found["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]
    return [group["leaderTemplate"]["spec"], group["workerTemplate"]["spec"]]


def test_nvidia() -> None:
    argv = docker_argv(B200)
    assert values(argv, "--gpus") == ["4"]
    assert values(argv, "--publish") == ["127.0.0.1:8000:8000"]
    assert values(argv, "--host") == ["0.0.0.0"]
    assert values(argv, "--entrypoint") == ["vllm"]
    image = argv.index(B200.image)
    assert argv[image + 1 : image + 3] == ("serve", B200.model)


def test_nvidia_devices_that_were_chosen() -> None:
    options = LaunchOptions(devices=(4, 5, 6, 7))
    assert values(docker_argv(B200, options), "--gpus") == ['"device=4,5,6,7"']
    (service,) = services(B200, options)
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["4", "5", "6", "7"]
    assert "count" not in device


def test_amd() -> None:
    argv = docker_argv(MI300X)
    assert values(argv, "--device") == ["/dev/kfd", "/dev/dri"]
    assert values(argv, "--group-add") == ["video"]
    assert "--gpus" not in argv
    (pod,) = pods(MI300X)
    assert pod["containers"][0]["resources"]["limits"] == {"amd.com/gpu": 2}


def test_ascend() -> None:
    argv = docker_argv(A3)
    devices = values(argv, "--device")
    assert devices[:16] == [f"/dev/davinci{number}" for number in range(16)]
    assert devices[16:] == ["/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"]
    mounts = values(argv, "--mount")
    assert any("target=/usr/local/Ascend/driver/lib64" in mount for mount in mounts)
    assert not any("hccn.conf" in mount for mount in mounts)
    # The image's entrypoint sets up CANN.
    assert "--entrypoint" not in argv
    image = argv.index(A3.image)
    assert argv[image + 1 : image + 3] == ("vllm", "serve")


def test_several_nodes_use_the_hosts_network() -> None:
    for node in (0, 1):
        argv = docker_argv(A2, node=node)
        assert values(argv, "--network") == ["host"]
        assert "--publish" not in argv
        assert "--privileged" in argv
        assert any("hccn.conf" in mount for mount in values(argv, "--mount"))


def test_only_the_first_node_is_asked_for_its_health() -> None:
    assert "--health-cmd" in docker_argv(A2, node=0)
    assert "--health-cmd" not in docker_argv(A2, node=1)
    first, second = services(A2)
    assert "healthcheck" in first
    assert "healthcheck" not in second


def test_a_folder_is_mounted_read_only_under_its_own_path() -> None:
    (mount,) = values(docker_argv(UNEQUAL), "--mount")
    assert mount == f"type=bind,source={UNEQUAL.model},target={UNEQUAL.model},readonly"
    (service,) = services(UNEQUAL)
    assert service["volumes"][0]["source"] == UNEQUAL.model
    assert "PersistentVolumeClaim" not in objects(UNEQUAL)
    (pod,) = pods(UNEQUAL)
    assert {"name": "host-0", "hostPath": {"path": UNEQUAL.model}} in pod["volumes"]


def test_a_snapshot_of_a_cache_brings_what_it_links_to() -> None:
    mount = folder_mount("/cache/models--a--b/snapshots/0123")
    assert mount.source == mount.target == "/cache/models--a--b"


def test_the_cache_of_the_hub_is_mounted() -> None:
    options = LaunchOptions(cache_dir="/data/weights", hub="modelscope")
    (mount,) = values(docker_argv(B200, options), "--mount")
    assert mount == "type=bind,source=/data/weights,target=/root/.cache/modelscope"


def test_the_start_may_take_as_long_as_the_load() -> None:
    """4 x 53.72 GiB at 100 MB/s are 2,307 s, warm-up comes on top."""
    assert start_seconds(B200) == 3240
    (pod,) = pods(B200)
    probe = pod["containers"][0]["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] == 3240
    (service,) = services(B200)
    assert service["healthcheck"]["start_period"] == "3240s"


@pytest.mark.parametrize("name", PLANS)
def test_compose_says_what_the_launch_says(name: str) -> None:
    plan = PLANS[name]
    options = (
        LaunchOptions(nic="eth0")
        if plan.num_nodes == 1
        else LaunchOptions(nic="eth0", node_ips=("10.0.0.1", "10.0.0.2"))
    )
    for service, node in zip(
        services(plan, options), make_launch(plan, options).nodes, strict=True
    ):
        words = [*service.get("entrypoint", []), *service["command"]]
        expected = list(node.argv)
        if plan.num_nodes == 1:
            expected[expected.index("--host") + 1] = "0.0.0.0"
        assert words == expected
        environment = {k: v for k, v in service["environment"].items() if k != "HF_TOKEN"}
        assert environment == dict(node.env)


def test_compose_leaves_no_dollar_to_replace() -> None:
    nasty = Setting("flag", "--x", "$HOME ${Y} $$", "", "")
    plan = replace(B200, settings=(nasty,), model="/m/$x", variant="")
    (service,) = services(plan)
    assert service["command"][1] == "/m/$$x"
    assert service["command"][-1] == "$$HOME $${Y} $$$$"
    assert service["volumes"][0]["source"] == "/m/$$x"


@pytest.mark.parametrize("name", PLANS)
def test_every_reason_is_a_comment_of_compose(name: str) -> None:
    plan = PLANS[name]
    text = "".join(file.text for file in compose_files(plan, NIC))
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    for setting in plan.settings:
        assert setting.reason in comments


@pytest.mark.parametrize("name", PLANS)
def test_kubernetes_requests_equal_limits(name: str) -> None:
    for pod in pods(PLANS[name]):
        (container,) = pod["containers"]
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert sum(resources["limits"].values()) == make_launch(PLANS[name]).nodes[0].num_devices
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", PLANS)
def test_kubernetes_selectors_find_the_pods(name: str) -> None:
    found = objects(PLANS[name])
    workload = found.get("Deployment") or found["LeaderWorkerSet"]
    spec = workload["spec"]
    template = spec.get("template") or spec["leaderWorkerTemplate"]["leaderTemplate"]
    assert found["Service"]["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    if "template" in spec:
        assert spec["selector"]["matchLabels"] == template["metadata"]["labels"]


def expanded(words: list[str], **variables: str) -> list[str]:
    """As Kubernetes does it: $(NAME) when known, $$ a plain dollar sign."""
    out = []
    for word in words:
        for name, value in variables.items():
            word = word.replace(f"$({name})", value)
        out.append(word.replace("$$", "$"))
    return out


def test_workers_count_their_ranks() -> None:
    leader, worker = (pod["containers"][0] for pod in pods(A2))
    options = LaunchOptions(host="0.0.0.0", node_ips=("1.1.1.1", "1.1.1.2"), nic="eth0")
    first, second = make_launch(A2, options).nodes
    assert expanded(leader["args"], POD_IP="1.1.1.1") == list(first.argv)
    words = expanded(worker["args"], LWS_LEADER_ADDRESS="1.1.1.1")
    assert words[:2] == ["sh", "-c"]
    assert words[2] == 'exec "$@" --data-parallel-start-rank $((LWS_WORKER_INDEX * 1))'
    rest = list(second.argv)
    at = rest.index("--data-parallel-start-rank")
    assert words[4:] == rest[:at] + rest[at + 2 :]
    environment = {entry["name"]: entry.get("value") for entry in worker["env"]}
    assert environment["HCCL_IF_IP"] == "$(POD_IP)"
    assert next(iter(environment)) == "POD_IP"


def test_ranks_that_do_not_follow_from_the_node() -> None:
    ranks = (0, 2, 3)
    settings = [Setting("flag", "--node-rank", str(r), "", "", n) for n, r in enumerate(ranks)]
    cut = Parallelism(tensor=4, data=3)
    plan = replace(B200, settings=tuple(settings), num_nodes=3, parallelism=cut)
    with pytest.raises(UsageError, match="does not follow"):
        kubernetes_files(plan, NIC)


def test_several_nodes_need_the_interface() -> None:
    with pytest.raises(UsageError, match="name the interface"):
        kubernetes_files(A2)


def test_plain_dollars_stay_in_kubernetes() -> None:
    plan = replace(RTX_PRO, settings=(Setting("env", "X", "$(POD_IP) $$ $", "", ""),))
    (pod,) = pods(plan)
    entry = next(one for one in pod["containers"][0]["env"] if one["name"] == "X")
    assert entry["value"] == "$$(POD_IP) $$$$ $$"


def test_an_engine_without_an_image() -> None:
    with pytest.raises(UsageError, match="has no container image"):
        docker_argv(replace(B200, engine="own", image=""))


def test_the_command_of_this_machine_in_a_container() -> None:
    launch = local_launch(engine_argv("vllm", "/m/a", 4321), {"A": "b"})
    cards = (find_accelerator("h200"),) * 2
    inside = container_launch(launch, "vllm", cards, folder="/m/a", name="m2-4321")
    argv = inside.argv
    assert argv[:2] == ("docker", "run")
    assert values(argv, "--network") == ["host"]
    assert values(argv, "--gpus") == ["2"]
    assert values(argv, "--env") == ["A=b"]
    assert values(argv, "--mount") == ["type=bind,source=/m/a,target=/m/a,readonly"]
    assert argv[argv.index(inside.image) + 1 :] == launch.argv[1:]
    assert inside.env == ()
    assert remove_argv("m2-4321")[-1] == "m2-4321"


@pytest.mark.parametrize("cards", [(), (find_accelerator("910b3"),)], ids=["none", "other"])
def test_no_container_for_these_cards(cards) -> None:
    launch = local_launch(engine_argv("vllm", "/m/a", 4321))
    with pytest.raises(UsageError):
        container_launch(launch, "vllm", cards, folder="/m/a", name="x")
