"""`--engine auto` on machines that are not here: what is chosen, and the line that says why."""

from pathlib import Path

import pytest
from tiny import build_tiny

from m2serve.chat.tokenizer import Tokenizer
from m2serve.cli import engine_choice, engines, planned
from m2serve.cli.engine_choice import Here, choose_engine
from m2serve.cli.engines import EngineChoice, make_engine
from m2serve.cli.planned import local_workload
from m2serve.engine.config import EngineConfig
from m2serve.engine.supervisor import SupervisedEngine
from m2serve.errors import ResourceError, UsageError
from m2serve.spec.hardware import parse_hardware
from m2serve.spec.shape import ModelShape, load_config

FP8, NVFP4 = "MiniMaxAI/MiniMax-M2.5", "lukealonso/MiniMax-M2.5-NVFP4"
INT8 = "Eco-Tech/MiniMax-M2.5-w8a8-QuaRot"

WORKLOAD = local_workload(0, 64)


def chosen(
    model: str,
    hardware: str,
    *,
    installed: tuple[str, ...] = (),
    docker: bool = False,
    gpu_torch: bool = True,
    context: int = 0,
) -> tuple[str, str]:
    here = Here(
        hardware=lambda: parse_hardware(hardware),
        is_installed=lambda kind: kind in installed,
        has_docker=lambda: docker,
        has_gpu_torch=lambda: gpu_torch,
    )
    found = choose_engine(model, local_workload(context, 64), (), here)
    assert "\n" not in found.reason
    return found.kind, found.reason


@pytest.mark.parametrize(
    ("hardware", "installed", "docker", "kind", "reason"),
    [
        ("1xepyc-9005", ("vllm",), True, "own", "no accelerator is here"),
        ("1xb200", ("vllm",), False, "vllm", "the best installed engine for 1xb200"),
        ("1xb200", (), False, "own", "PyTorch without kernels of its own"),
        ("1xb200", (), True, "own", "not installed; it fits the"),
        ("8xb200", ("vllm",), False, "vllm", "the best installed engine for 8xb200"),
        ("8xb200", (), True, "vllm", "in a container"),
        ("8xb200", (), False, "own", "it fits one"),
    ],
)
def test_the_machine_decides(
    hardware: str, installed: tuple[str, ...], docker: bool, kind: str, reason: str
) -> None:
    found = chosen(NVFP4, hardware, installed=installed, docker=docker)
    assert found[0] == kind
    assert reason in found[1]


def test_a_second_best_engine_that_is_installed_wins() -> None:
    kind, reason = chosen(FP8, "8xb200", installed=("sglang",))
    assert kind == "sglang"
    assert reason.endswith("vllm would be better, not installed")


def test_ascend_is_for_its_own_engine() -> None:
    assert chosen(INT8, "16xascend-910c", installed=("vllm-ascend",))[0] == "vllm-ascend"
    with pytest.raises(ResourceError, match="needs vllm-ascend on 16xascend-910c") as told:
        chosen(INT8, "16xascend-910c")
    assert "--engine own --device cpu" in str(told.value)


def test_own_is_no_way_out_where_it_does_not_fit_or_finds_no_gpu() -> None:
    with pytest.raises(ResourceError, match="needs vllm on 4xb200, which is neither installed"):
        chosen("MiniMaxAI/MiniMax-M2.5", "4xb200")  # 214 GiB of weights on one card of 179
    with pytest.raises(ResourceError, match="neither installed"):
        chosen(NVFP4, "1xb200", gpu_torch=False)
    assert chosen(NVFP4, "1xb200", gpu_torch=False, docker=True)[0] == "vllm"


def test_what_nothing_can_run_gives_the_reasons() -> None:
    with pytest.raises(ResourceError, match="GiB of weights"):
        chosen(FP8, "1xrtx-5090")


def test_no_model_and_options_of_the_own_engine() -> None:
    def never() -> None:
        raise AssertionError

    here = Here(never, never, never, never)  # type: ignore[arg-type]
    assert choose_engine("", WORKLOAD, (), here).kind == "own"
    found = choose_engine(FP8, WORKLOAD, ("num_threads",), here)
    assert (found.kind, found.reason) == ("own", "no other engine has --num-threads")


def test_an_unknown_accelerator_is_the_own_engines() -> None:
    def hardware() -> None:
        raise ResourceError("accelerator 'X1' is not in hardware.toml; name a machine")

    found = choose_engine(FP8, WORKLOAD, (), Here(hardware=hardware))  # type: ignore[arg-type]
    assert found.kind == "own"
    assert found.reason == "nothing can be planned: accelerator 'X1' is not in hardware.toml"


@pytest.mark.parametrize("context", [1, 2, 100, 2000, 4096, 200_000])
def test_a_short_context_has_a_workload_within_it(context: int) -> None:
    workload = local_workload(context, 64)
    assert workload.concurrency == 64
    assert workload.max_model_len == context
    assert workload.input_len + workload.output_len <= max(2, context)


def test_sglang_counts_as_installed_only_with_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_choice.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(engine_choice, "_succeeds", lambda *command: False)
    assert engine_choice.is_installed("vllm")
    assert not engine_choice.is_installed("sglang")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("tiny"), num_hidden_layers=2).folder


def make(folder: Path, *given: str):
    choice = EngineChoice("auto", (), None, (), (), False, None, frozenset({"model", *given}))
    config = EngineConfig(model_path=str(folder))
    shape = ModelShape.from_config(load_config(folder))
    return make_engine(choice, config, shape, Tokenizer.load(folder))


def test_the_choice_is_said_in_one_line_and_started(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (engine_choice, planned):
        monkeypatch.setattr(module, "local_hardware", lambda: parse_hardware("2xh200"))
    monkeypatch.setattr(engines.shutil, "which", lambda name: name if name == "vllm" else None)
    found = []
    monkeypatch.setattr(engines, "launched", lambda launch, *_, **__: found.append(launch))
    monkeypatch.setattr(engine_choice, "_succeeds", lambda *command: False)
    make(folder)
    assert found[0].argv[:2] == ("vllm", "serve")
    assert "--tensor-parallel-size" in found[0].argv
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Engine: ")]
    assert len(lines) == 1
    assert lines[0].startswith("Engine: vllm, the best installed engine for 2xh200")


def test_a_machine_without_accelerators_keeps_the_own_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine_choice, "local_hardware", lambda: parse_hardware("1xepyc-9005"))
    assert isinstance(make(folder), SupervisedEngine)
    assert "Engine: own, no accelerator is here" in capsys.readouterr().err


def test_options_of_a_started_engine_need_its_name(folder: Path) -> None:
    with pytest.raises(UsageError, match="--engine-args is for one engine; name it"):
        make(folder, "engine_args")
