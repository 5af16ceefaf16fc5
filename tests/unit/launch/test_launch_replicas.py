"""Independent servers: devices, ports and the front, in every form."""

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch_plans import A3, B200, MI300X

from m2serve.errors import UsageError
from m2serve.launch.command import make_launch
from m2serve.launch.compose import compose_files
from m2serve.launch.docker import docker_files
from m2serve.launch.forms import FORMS
from m2serve.launch.kubernetes import kubernetes_files
from m2serve.launch.options import LaunchOptions
from m2serve.launch.recipe import recipe_files
from m2serve.launch.replicas import front_argv
from m2serve.launch.shell import shell_files
from m2serve.launch.slurm import slurm_files
from m2serve.records import Plan

TWO = replace(B200, hardware="8xb200", num_replicas=2)
TWO_A3 = replace(A3, num_replicas=2)
LOG_START = '#!/bin/sh\necho "$(basename "$0")|$CUDA_VISIBLE_DEVICES|$*" >> "$LOG"\n'


def values(argv: tuple[str, ...] | list[str], flag: str) -> list[str]:
    return [argv[at + 1] for at, word in enumerate(argv) if word == flag]


def test_each_server_has_devices_and_a_port_of_its_own() -> None:
    launch = make_launch(TWO, LaunchOptions(host="0.0.0.0", port=9000))
    assert [node.replica for node in launch.nodes] == [0, 1]
    assert [node.num_devices for node in launch.nodes] == [4, 4]
    assert [values(node.argv, "--port") for node in launch.nodes] == [["9001"], ["9002"]]
    assert [values(node.argv, "--host") for node in launch.nodes] == [["127.0.0.1"]] * 2
    visible = [dict(node.env)["CUDA_VISIBLE_DEVICES"] for node in launch.nodes]
    assert visible == ["0,1,2,3", "4,5,6,7"]
    assert [port for port, _ in launch.ports] == [9000, 9001, 9002]


def test_the_front_knows_all_servers() -> None:
    front = front_argv(TWO, LaunchOptions(host="0.0.0.0", port=9000))
    assert front[:3] == ("m2", "serve", B200.model)
    assert values(front, "--upstream") == ["http://127.0.0.1:9001", "http://127.0.0.1:9002"]
    assert (values(front, "--host"), values(front, "--port")) == (["0.0.0.0"], ["9000"])
    assert values(front, "--served-model-name") == ["MiniMax-M2.5"]
    assert front_argv(B200, LaunchOptions()) == make_launch(B200).front == ()


def test_chosen_devices_are_shared_out() -> None:
    chosen = LaunchOptions(devices=(7, 6, 5, 4, 3, 2, 1, 0))
    visible = [dict(node.env)["CUDA_VISIBLE_DEVICES"] for node in make_launch(TWO, chosen).nodes]
    assert visible == ["7,6,5,4", "3,2,1,0"]
    with pytest.raises(UsageError, match="needs 8 different ones"):
        make_launch(TWO, LaunchOptions(devices=(0, 1, 2, 3)))


def test_ports_may_run_out() -> None:
    with pytest.raises(UsageError, match="no room for 2 servers"):
        make_launch(TWO, LaunchOptions(port=65_534))


def test_ascend_devices_replace_the_plans() -> None:
    visible = [dict(node.env)["ASCEND_RT_VISIBLE_DEVICES"] for node in make_launch(TWO_A3).nodes]
    assert visible == [",".join(map(str, range(8))), ",".join(map(str, range(8, 16)))]


def start(script: str, programs: list[str], folder: Path) -> list[str]:
    """Runs a script whose programs log how they were called; sorted lines of the log."""
    for program in programs:
        (folder / program).write_text(LOG_START)
        (folder / program).chmod(0o755)
    log = folder / "log"
    path = f"{folder}:{os.environ['PATH']}"
    env = {"PATH": path, "HOME": str(folder), "LOG": str(log)}
    subprocess.run(["bash", "-c", script], env=env, check=False, timeout=60)
    return sorted(log.read_text().splitlines())


def test_a_script_starts_all_of_them(tmp_path: Path) -> None:
    [file] = shell_files(TWO)
    # The first to end ends all, so that the others must have had their moment.
    script = file.text.replace("wait -n", "wait")
    launch = make_launch(TWO)
    expected = [f"m2||{' '.join(launch.front[1:])}"]
    for node in launch.nodes:
        visible = dict(node.env)["CUDA_VISIBLE_DEVICES"]
        expected.append(f"vllm|{visible}|{' '.join(node.argv[1:])}")
    assert start(script, ["vllm", "m2"], tmp_path) == sorted(expected)


@pytest.mark.parametrize("how", ["one ends", "told to end"])
def test_the_servers_end_together(tmp_path: Path, how: str) -> None:
    (tmp_path / "vllm").write_text('#!/bin/sh\necho $$ >> "$LOG"\nexec sleep 300\n')
    code = "exit 3" if how == "one ends" else "exec sleep 300"
    wait = 'while [ "$(wc -l < "$LOG" 2>/dev/null || echo 0)" -lt 2 ]; do sleep 0.1; done'
    (tmp_path / "m2").write_text(f"#!/bin/sh\n{wait}\n{code}\n")
    for name in ("vllm", "m2"):
        (tmp_path / name).chmod(0o755)
    [file] = shell_files(TWO)
    log = tmp_path / "log"
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)}
    script = subprocess.Popen(["bash", "-c", file.text], env=env)
    if how == "told to end":
        deadline = time.monotonic() + 60
        while not (log.exists() and log.read_text().count("\n") == 2):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        script.send_signal(signal.SIGTERM)
    assert script.wait(timeout=60) == (3 if how == "one ends" else 143)
    for pid in log.read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_containers_get_their_devices_and_count_them_from_0(tmp_path: Path) -> None:
    [file] = docker_files(TWO)
    lines = start(file.text.replace("wait -n", "wait"), ["docker", "m2"], tmp_path)
    runs = [line.split("|")[2].split() for line in lines if line.startswith("docker")]
    assert [values(run, "--gpus") for run in runs] == [['"device=0,1,2,3"'], ['"device=4,5,6,7"']]
    assert [values(run, "--publish") for run in runs] == [
        ["127.0.0.1:8001:8001"],
        ["127.0.0.1:8002:8002"],
    ]
    names = [values(run, "--name")[0] for run in runs]
    assert names == ["minimax-m2-5-0", "minimax-m2-5-1"]
    assert not any("CUDA_VISIBLE_DEVICES" in " ".join(run) for run in runs)
    assert sum(line.startswith("m2|") for line in lines) == 1


def test_amd_containers_see_all_cards_and_use_their_own() -> None:
    [file] = docker_files(replace(MI300X, num_replicas=2))
    assert "HIP_VISIBLE_DEVICES=0\n" in file.text
    assert "HIP_VISIBLE_DEVICES=1\n" in file.text


def loaded(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


def test_compose_has_a_service_for_each_server() -> None:
    [file] = compose_files(TWO)
    services = loaded(file.text)[0]["services"]
    assert list(services) == ["minimax-m2-5-0", "minimax-m2-5-1"]
    devices = [
        service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for service in services.values()
    ]
    assert devices == [["0", "1", "2", "3"], ["4", "5", "6", "7"]]
    published = [service["ports"][0]["published"] for service in services.values()]
    assert published == ["8001", "8002"]
    assert "--upstream http://127.0.0.1:8001 --upstream http://127.0.0.1:8002" in file.text


def test_kubernetes_has_a_pod_for_each_server() -> None:
    [file] = kubernetes_files(TWO)
    workload = next(one for one in loaded(file.text) if one["kind"] == "Deployment")
    assert workload["spec"]["replicas"] == 2
    [container] = workload["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert values(container["args"], "--port") == ["8000"]


def test_slurm_starts_them_in_one_job(tmp_path: Path) -> None:
    [file] = slurm_files(TWO)
    assert "#SBATCH --gres=gpu:8\n" in file.text
    lines = start(file.text.replace("wait -n", "wait"), ["vllm", "m2"], tmp_path)
    assert [line.partition("|")[0] for line in lines] == ["m2", "vllm", "vllm"]


def test_the_recipe_says_how_many() -> None:
    [file] = recipe_files(TWO)
    guide = yaml.safe_load(file.text)["guide"]
    assert "2 servers, each on its own share of the devices" in guide
    assert guide.count("vllm serve") == 2
    assert guide.count("--upstream") == 2


@pytest.mark.parametrize("form", FORMS)
def test_bash_and_yaml_read_every_form(form: str) -> None:
    for file in FORMS[form](TWO, LaunchOptions()):  # type: ignore[index]
        if file.name.endswith(".yaml"):
            assert all(loaded(file.text))
        else:
            subprocess.run(["bash", "-n"], input=file.text.encode(), check=True)


def test_one_server_is_started_as_before() -> None:
    plan: Plan = replace(TWO, num_replicas=1, hardware="4xb200")
    for write in FORMS.values():
        assert write(plan, LaunchOptions()) == write(B200, LaunchOptions())
