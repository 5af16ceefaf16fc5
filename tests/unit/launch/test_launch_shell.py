"""Scripts say to bash exactly what the launch says, whatever a path holds."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launch_plans import A2, A3, B200, PLANS, RTX_PRO, UNEQUAL

from m2serve.launch.command import make_launch
from m2serve.launch.docker import docker_argv, docker_files, mount_text
from m2serve.launch.options import LaunchOptions
from m2serve.launch.placeholders import shell_word
from m2serve.launch.plumbing import Mount
from m2serve.launch.shell import shell_files
from m2serve.launch.slurm import slurm_files
from m2serve.records import Plan, Setting

TEXT = st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", codec="utf-8"))
NASTY = ["a b", "it's", 'say "x"', "$HOME `id` $(id)", "a\\b", "!x", "*?[a]", "#x", "~", "é 日本"]
PRINT_ALL = '#!/bin/sh\nfor word in "$(basename "$0")" "$@"; do printf "%s\\0" "$word"; done\n'


def is_bash(text: str) -> bool:
    return subprocess.run(["bash", "-n"], input=text.encode(), check=False).returncode == 0


def run(script: str, programs: list[str], folder: Path, **variables: str) -> list[str]:
    """What the script starts, its programs replaced by one that prints its argv."""
    for program in programs:
        path = folder / program
        path.write_text(PRINT_ALL)
        path.chmod(0o755)
    env = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder), **variables}
    done = subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, check=True, timeout=30
    )
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("name", PLANS)
def test_bash_reads_every_script(name: str) -> None:
    files = [*shell_files(PLANS[name]), *docker_files(PLANS[name]), *slurm_files(PLANS[name])]
    for file in files:
        assert is_bash(file.text), file.name


@pytest.mark.parametrize("name", NASTY)
@pytest.mark.parametrize("plan", [B200, RTX_PRO], ids=["vllm", "sglang"])
def test_a_script_starts_the_launch(plan: Plan, name: str, tmp_path: Path) -> None:
    extra = (Setting("env", "M2_TEST", name, name, ""), Setting("flag", "--x", name, name, ""))
    plan = replace(plan, model=f"/models/{name}", settings=(*plan.settings, *extra))
    (node,) = make_launch(plan).nodes
    (file,) = shell_files(plan)
    assert run(file.text, [node.argv[0]], tmp_path) == list(node.argv)


@pytest.mark.parametrize("name", NASTY)
def test_a_docker_script_starts_the_docker_argv(name: str, tmp_path: Path) -> None:
    plan = replace(UNEQUAL, model=f"/models/{name}")
    (file,) = docker_files(plan)
    assert run(file.text, ["docker"], tmp_path) == list(docker_argv(plan))


def test_the_environment_arrives(tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text('#!/bin/sh\nprintf %s "$VLLM_PP_LAYER_PARTITION"\n')
    program.chmod(0o755)
    (file,) = shell_files(UNEQUAL)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", file.text], env=env, capture_output=True, check=True)
    assert done.stdout == b"40,11,11"


def test_addresses_come_from_variables(tmp_path: Path) -> None:
    plan = replace(A2, settings=tuple(s for s in A2.settings if s.kind != "system"))
    second = shell_files(plan)[1]
    words = run(
        second.text, ["vllm"], tmp_path, NIC="eth0", THIS_IP="10.0.0.2", NODE0_IP="10.0.0.1"
    )
    assert words[words.index("--data-parallel-address") + 1] == "10.0.0.1"


def test_a_missing_address_is_asked_for() -> None:
    script = shell_files(A2)[1].text
    env = {"PATH": os.environ["PATH"], "NIC": "lo"}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, check=False)
    assert done.returncode != 0
    assert b"the address of node 0" in done.stderr


def test_reasons_are_comments_and_can_be_left_out() -> None:
    (with_reasons,) = shell_files(B200)
    (without,) = shell_files(B200, LaunchOptions(with_reasons=False))
    assert "    # four ranks\n    --tensor-parallel-size 4\n" in with_reasons.text
    assert "four ranks" not in without.text


def test_a_reason_never_leaves_its_comment(tmp_path: Path) -> None:
    setting = Setting("flag", "--x", None, "one\ntouch /nowhere\r\nthree", "")
    plan = replace(B200, settings=(setting,), warnings=("w\nexit 9",))
    (file,) = shell_files(plan)
    assert run(file.text, ["vllm"], tmp_path) == list(make_launch(plan).nodes[0].argv)


def test_host_commands_run_as_root_and_do_not_stop_the_start(tmp_path: Path) -> None:
    failing = Setting("system", "exit 3", None, "never works", "")
    plan = replace(A3, settings=(failing,))
    (file,) = shell_files(plan)
    sudo = tmp_path / "sudo"
    sudo.write_text('#!/bin/sh\nexec "$@"\n')
    sudo.chmod(0o755)
    assert run(file.text, ["vllm"], tmp_path) == list(make_launch(plan).nodes[0].argv)


def test_slurm_runs_a_step_on_each_node() -> None:
    (file,) = slurm_files(A2)
    assert "#SBATCH --nodes=2\n" in file.text
    assert "#SBATCH --gres=npu:8\n" in file.text
    for node in (0, 1):
        assert f'--nodelist="${{hosts[{node}]}}" bash -c node{node} &' in file.text


def test_slurm_gives_each_node_its_own_address(tmp_path: Path) -> None:
    """srun and scontrol are replaced: two hosts, whose addresses are told by their names."""
    plan = replace(A2, settings=tuple(s for s in A2.settings if s.kind != "system"))
    (tmp_path / "scontrol").write_text("#!/bin/sh\nprintf 'h1\\nh2\\n'\n")
    (tmp_path / "srun").write_text(
        "#!/bin/bash\nfor word; do [[ $word == --nodelist=* ]] && host=${word#*=}; done\n"
        "while [[ $1 == --* ]]; do shift; done\nif [[ $1 == ip ]]; then\n"
        'echo "2: eth0 inet 10.0.0.${host#h}/24 brd"; else "$@"; fi\n'
    )
    (tmp_path / "vllm").write_text('#!/bin/sh\necho "$HCCL_IF_IP" "$@" >> "$HOME/started"\n')
    for program in ("scontrol", "srun", "vllm"):
        (tmp_path / program).chmod(0o755)
    (file,) = slurm_files(plan)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    env |= {"NIC": "eth0", "SLURM_JOB_NODELIST": "h[1-2]"}
    subprocess.run(["bash", "-c", file.text + "wait\n"], env=env, check=True, timeout=30)
    started = sorted((tmp_path / "started").read_text().splitlines())
    options = LaunchOptions(node_ips=("10.0.0.1", "10.0.0.2"), nic="eth0")
    expected = make_launch(plan, options).nodes
    assert started == [f"10.0.0.{n.node + 1} {' '.join(n.argv[1:])}" for n in expected]


@settings(max_examples=15, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=20))
def test_words_survive_the_shell(texts: list[str]) -> None:
    texts = [text.replace("{", "(") for text in texts]
    script = "printf '%s\\0' " + " ".join(shell_word(text) for text in texts)
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == texts


def test_placeholders_are_variables_inside_a_word() -> None:
    assert shell_word("{node0_ip}:20000") == '"${NODE0_IP}":20000'
    assert shell_word("a b {nic}") == "'a b '\"${NIC}\""
    assert shell_word('{"nic": 1}') == "'{\"nic\": 1}'"


def test_mounts_are_csv() -> None:
    assert mount_text(Mount("/a", "/b")) == "type=bind,source=/a,target=/b,readonly"
    assert mount_text(Mount('/a,"b"', "/c", False)) == 'type=bind,"source=/a,""b""",target=/c'
