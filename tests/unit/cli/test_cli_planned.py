"""An engine that `m2 serve` starts gets the plan's settings for this machine."""

from pathlib import Path

import pytest
from tiny import build_tiny

from m2serve.chat.tokenizer import Tokenizer
from m2serve.cli import engines, planned
from m2serve.cli.engines import EngineChoice, make_engine
from m2serve.engine.config import EngineConfig
from m2serve.errors import UsageError
from m2serve.spec.engines import find_engine
from m2serve.spec.hardware import Hardware, parse_hardware
from m2serve.spec.shape import ModelShape, load_config


def launch_on(
    hardware: Hardware,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    programs: tuple[str, ...] = ("vllm",),
    max_num_seqs: int = 0,
):
    """The launch that `m2 serve --engine vllm` would start."""
    found = []
    monkeypatch.setattr(planned, "local_hardware", lambda: hardware)
    monkeypatch.setattr(engines.shutil, "which", lambda name: name if name in programs else None)
    monkeypatch.setattr(engines, "launched", lambda launch, *_, **__: found.append(launch))
    given = frozenset({"model", "engine"} | ({"max_num_seqs"} if max_num_seqs else set()))
    choice = EngineChoice("vllm", (), None, (), (), False, None, given)
    config = EngineConfig(model_path=str(folder), max_num_seqs=max_num_seqs or 64)
    make_engine(choice, config, ModelShape.from_config(load_config(folder)), Tokenizer.load(folder))
    return found[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("tiny"), num_hidden_layers=2).folder


def test_accelerators_bring_the_plans_settings(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = launch_on(parse_hardware("1xh200"), folder, monkeypatch)
    assert launch.argv[:3] == ("vllm", "serve", str(folder))
    assert "--gpu-memory-utilization" in launch.argv
    assert "--tool-call-parser" in launch.argv
    assert "--served-model-name" not in launch.argv


def test_what_was_asked_for_replaces_the_plans(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = launch_on(parse_hardware("1xh200"), folder, monkeypatch, max_num_seqs=7)
    assert launch.argv.count("--max-num-seqs") == 1
    assert launch.argv[launch.argv.index("--max-num-seqs") + 1] == "7"


def test_a_cpu_keeps_the_engines_defaults(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = launch_on(parse_hardware("1xepyc-9004"), folder, monkeypatch)
    assert "--gpu-memory-utilization" not in launch.argv
    assert launch.env == ()


@pytest.mark.parametrize(
    ("arguments", "cpus", "bound"),
    [
        (("--tensor-parallel-size", "2"), (0, 1), "0|1"),
        (("--tensor_parallel_size=2",), (0, 1, 2, 3), "0,1|2,3"),
        (("-tp", "2", "-pp", "2"), (0, 2, 4, 6), "0|2|4|6"),
        (("-tp", "2", "-dp", "2"), (0, 2, 4, 6), "0|2|4|6"),
        (("-tp", "4", "--tensor-parallel-size", "2"), (3, 5), "3|5"),
        (("-pp=3",), tuple(range(8)), "0,1|2,3,4|5,6,7"),
        ((), (0, 1), None),
        (("-tp", "1"), (0, 1), None),
        (("-tp", "4"), (0, 1), None),
        (("-tp", "x"), (0, 1), None),
    ],
)
def test_ranks_on_a_cpu_get_cores_of_their_own(
    arguments: tuple[str, ...],
    cpus: tuple[int, ...],
    bound: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    found = planned.cpu_binding(arguments, cpus)
    assert found == ({} if bound is None else {"VLLM_CPU_OMP_THREADS_BIND": bound})
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "all")
    assert planned.cpu_binding(arguments, cpus) == {}


def test_as_many_users_as_the_server_lets_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = launch_on(parse_hardware("1xh200"), folder, monkeypatch)
    assert launch.argv[launch.argv.index("--max-num-seqs") + 1] == "64"


def test_an_older_release_gets_only_what_it_knows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "installed_version", lambda kind, command: "0.11.0")
    launch = launch_on(parse_hardware("1xh200"), folder, monkeypatch)
    said = capsys.readouterr().err
    assert "vllm 0.11.0 is installed" in said
    assert "does not know MiniMaxM2ForCausalLM" in said
    engine = find_engine("vllm")
    flags = [word for word in launch.argv if word.startswith("--")]
    started = {"--host", "--port", "--enable-prompt-tokens-details", "--uvicorn-log-level"}
    unknown = [f for f in flags if f not in started and not engine.knows_flag(f, "0.11.0")]
    assert unknown == []


def test_docker_stands_in_for_an_engine_that_is_not_installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = launch_on(parse_hardware("1xh200"), folder, monkeypatch, programs=("docker",))
    assert launch.argv[:2] == ("docker", "run")
    assert launch.image.startswith("vllm/vllm-openai")
    assert "--gpu-memory-utilization" in launch.argv


def test_neither_engine_nor_docker_is_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planned, "local_hardware", lambda: parse_hardware("1xh200"))
    monkeypatch.setattr(engines.shutil, "which", lambda name: None)
    choice = EngineChoice("vllm", (), None, (), (), False, None, frozenset({"model", "engine"}))
    config = EngineConfig(model_path=str(folder))
    shape = ModelShape.from_config(load_config(folder))
    with pytest.raises(UsageError, match="'vllm' is not a program here"):
        make_engine(choice, config, shape, Tokenizer.load(folder))
