"""A plan as argv, environment and host commands, and what a launch refuses."""

from dataclasses import replace

import pytest
from launch_plans import A2, A3, B200, RTX_PRO, UNEQUAL

from m2serve.errors import UsageError
from m2serve.launch.command import make_launch, resource_name
from m2serve.launch.options import LaunchOptions
from m2serve.records import Setting


def test_one_node() -> None:
    (node,) = make_launch(B200).nodes
    assert node.argv[:7] == (
        *("vllm", "serve", "MiniMaxAI/MiniMax-M2.5"),
        *("--host", "127.0.0.1", "--port", "8000"),
    )
    assert node.argv[7:9] == ("--tensor-parallel-size", "4")
    assert node.num_devices == 4
    assert not node.is_headless
    assert node.image == "vllm/vllm-openai:v0.20.2"


def test_sglang_takes_the_model_as_a_flag() -> None:
    (node,) = make_launch(RTX_PRO).nodes
    assert node.argv[:5] == (
        *("python3", "-m", "sglang.launch_server"),
        *("--model-path", "lukealonso/MiniMax-M2.5-NVFP4"),
    )
    assert node.env == (("NCCL_P2P_LEVEL", "PHB"),)


def test_two_nodes_without_addresses_keep_placeholders() -> None:
    first, second = make_launch(A2).nodes
    assert not first.is_headless
    assert second.is_headless
    assert "--headless" not in first.argv
    assert "--headless" in second.argv
    assert "--port" in first.argv
    assert "--port" not in second.argv
    assert first.argv[first.argv.index("--data-parallel-start-rank") + 1] == "0"
    assert second.argv[second.argv.index("--data-parallel-start-rank") + 1] == "1"
    assert second.argv[second.argv.index("--data-parallel-address") + 1] == "{node0_ip}"
    assert dict(second.env)["HCCL_IF_IP"] == "{this_ip}"


def test_two_nodes_with_addresses() -> None:
    options = LaunchOptions(node_ips=("10.0.0.1", "10.0.0.2"), nic="eth1")
    first, second = make_launch(A2, options).nodes
    for node in (first, second):
        assert node.argv[node.argv.index("--data-parallel-address") + 1] == "10.0.0.1"
        assert dict(node.env)["HCCL_SOCKET_IFNAME"] == "eth1"
    assert dict(first.env)["HCCL_IF_IP"] == "10.0.0.1"
    assert dict(second.env)["HCCL_IF_IP"] == "10.0.0.2"


def test_host_commands_are_apart() -> None:
    (node,) = make_launch(A3).nodes
    assert node.host_commands[0] == "sysctl -w vm.swappiness=0"
    assert not any("sysctl" in word for word in node.argv)


def test_ports_and_their_purpose() -> None:
    ports = dict(make_launch(A2, LaunchOptions(port=20004)).ports)
    assert list(ports) == [20004, 2347]
    assert ports[20004].startswith("HTTP")


@pytest.mark.parametrize(
    ("name", "value", "port"),
    [("--master-addr", "{node0_ip}", 29501), ("--dist-init-addr", "{node0_ip}:20000", 20000)],
)
def test_the_meeting_point_is_a_port(name: str, value: str, port: int) -> None:
    meeting = Setting("flag", name, value, "", "")
    plan = replace(B200, settings=(*B200.settings, meeting))
    assert port in dict(make_launch(plan).ports)


@pytest.mark.parametrize(
    ("plan", "variable"),
    [(B200, "CUDA_VISIBLE_DEVICES"), (A3, "ASCEND_RT_VISIBLE_DEVICES")],
)
def test_chosen_devices(plan, variable) -> None:
    count = 4 if plan is B200 else 16
    chosen = tuple(range(count))[::-1]
    (node,) = make_launch(plan, LaunchOptions(devices=chosen)).nodes
    assert dict(node.env)[variable] == ",".join(str(device) for device in chosen)


def test_chosen_devices_replace_the_plans() -> None:
    own = Setting("env", "CUDA_VISIBLE_DEVICES", "0,1,2,3", "", "")
    plan = replace(B200, settings=(*B200.settings, own))
    (node,) = make_launch(plan, LaunchOptions(devices=(4, 5, 6, 7))).nodes
    assert node.env == (("CUDA_VISIBLE_DEVICES", "4,5,6,7"),)


def test_modelscope_is_for_uploads_alone() -> None:
    options = LaunchOptions(hub="modelscope")
    assert dict(make_launch(A3, options).nodes[0].env)["VLLM_USE_MODELSCOPE"] == "True"
    assert "VLLM_USE_MODELSCOPE" not in dict(make_launch(UNEQUAL, options).nodes[0].env)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("-rf", "reads as an option"),
        ("", "reads as an option"),
        ("/models/a\nb", "control characters"),
        ("/models/a\0b", "control characters"),
        ("/models/{nic}", "{nic}"),
        ("x" * 5000, "4096"),
    ],
)
def test_models_no_command_can_carry(model: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make_launch(replace(B200, model=model))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (LaunchOptions(port=0), "the port is 0"),
        (LaunchOptions(port=70000), "the port is 70000"),
        (LaunchOptions(host="a b"), "neither a name nor an address"),
        (LaunchOptions(host="$(id)"), "neither a name nor an address"),
        (LaunchOptions(nic="eth0; reboot"), "interface"),
        (LaunchOptions(node_ips=("10.0.0.1", "10.0.0.2")), "2 node addresses for 1 nodes"),
        (LaunchOptions(node_ips=("here",)), "'here' is not an IP address"),
        (LaunchOptions(devices=(0, 1)), "the plan needs 4"),
        (LaunchOptions(devices=(0, 1, 1, 2)), "the plan needs 4 different"),
        (LaunchOptions(devices=(-1, 0, 1, 2)), "the plan needs 4 different"),
        (LaunchOptions(cache_dir="cache"), "must begin with /"),
    ],
)
def test_options_that_cannot_be_meant(options: LaunchOptions, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make_launch(B200, options)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("MiniMaxAI/MiniMax-M2.5", "minimax-m2-5"),
        ("/models/ü 7/", "m2-7"),
        ("/models/日本", "m2"),
        ("/m/" + "x" * 80, "x" * 40),
    ],
)
def test_names_are_dns_labels(model: str, name: str) -> None:
    assert resource_name(replace(B200, model=model, settings=())) == name
