"""What goes wrong on a first try gives one clear sentence and an exit code, never a traceback."""

import json
import socket
import subprocess
from pathlib import Path

import pytest
from serving import run_m2, serving
from tiny import build_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny(folder)
    return folder


def sentence(done: subprocess.CompletedProcess[str], exit_code: int = 1) -> str:
    """The last line of stderr; the rest may be notes, but no traceback."""
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("m2: ")
    return line


def test_a_wrong_path(tmp_path: Path) -> None:
    for command in ("serve", "inspect"):
        said = sentence(run_m2(command, str(tmp_path / "no-such-model")), exit_code=2)
        assert "no-such-model" in said


def test_a_folder_without_config(tmp_path: Path) -> None:
    for command in ("serve", "inspect"):
        said = sentence(run_m2(command, str(tmp_path)))
        assert "config.json" in said
        assert str(tmp_path) in said


def test_a_llama_checkpoint(tmp_path: Path) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for command in ("serve", "inspect"):
        said = sentence(run_m2(command, str(tmp_path)))
        assert "llama" in said
        assert "minimax_m2" in said


def test_a_truncated_shard(tmp_path: Path) -> None:
    build_tiny(tmp_path)
    shard = sorted(tmp_path.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1000])
    for command in ("serve", "inspect"):
        assert shard.name in sentence(run_m2(command, str(tmp_path)))


def test_a_port_in_use(tiny: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in sentence(run_m2("serve", str(tiny), "--port", port))


def test_no_memory_for_the_kv_cache(tiny: Path) -> None:
    options = ("--kv-cache-memory-bytes", "1000", "--max-model-len", "4096")
    said = sentence(run_m2("serve", str(tiny), *options))
    assert "--kv-cache-memory-bytes" in said
    assert "4096" in said


def test_an_unknown_option_value() -> None:
    done = run_m2("serve", "x", "--device", "tpu")
    assert done.returncode == 2
    assert "tpu" in done.stderr


def test_a_prompt_far_too_long(tiny: Path) -> None:
    with serving(str(tiny), "--served-model-name", "m") as server:
        for path, body in (
            ("/v1/completions", {"prompt": [7] * 200_000}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a b " * 100_000}]}),
        ):
            answer = server.post(path, {"model": "m", "max_tokens": 8, **body})
            error = answer.json()["error"]
            assert answer.status_code == 400
            assert error["code"] == "context_length_exceeded"
            assert "4096" in error["message"]
            assert "00" in error["message"]


def test_inspect_prints_json(tiny: Path) -> None:
    done = run_m2("inspect", str(tiny), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters_total"] > 0
