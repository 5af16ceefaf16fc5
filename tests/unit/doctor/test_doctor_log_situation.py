"""What an engine's own start-up lines tell of its deployment."""

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2serve.doctor.log import read_log
from m2serve.doctor.log_situation import MAX_LINES, SituationFinder, model_base
from m2serve.spec.situation import Situation

HEALTHY = Path(__file__).resolve().parents[2] / "data" / "healthy_logs"


def situation(*lines: str) -> Situation:
    finder = SituationFinder()
    for line in lines:
        finder.look(line)
    return finder.situation


def of_log(name: str) -> Situation:
    return situation(*(HEALTHY / f"{name}.log").read_text().splitlines())


def test_vllm() -> None:
    facts = of_log("vllm_h200_fp8")
    assert (facts.engine, facts.engine_version) == ("vllm", "0.33.0")
    assert (facts.model, facts.model_base) == ("MiniMaxAI/MiniMax-M2.5", "M2.5")
    assert (facts.tensor_parallel, facts.expert_parallel, facts.quantization) == (4, False, "fp8")
    assert facts.flags is not None
    assert '--compilation-config={"cudagraph_mode": "PIECEWISE"}' in facts.flags
    assert {"--tool-call-parser=minimax_m2", "--enable-auto-tool-choice"} <= facts.flags
    assert (facts.env, facts.arch, facts.vendor) == (None, "", "")


def test_vllm_nvfp4_and_ascend() -> None:
    assert of_log("vllm_rtx_pro_6000_nvfp4").quantization == "nvfp4"
    facts = of_log("vllm_ascend_a3_w8a8")
    assert (facts.engine, facts.engine_version) == ("vllm-ascend", "0.18.0")
    assert (facts.vendor, facts.data_parallel, facts.expert_parallel) == ("ascend", 4, True)


def test_sglang() -> None:
    facts = of_log("sglang_b200_fp8")
    assert (facts.engine, facts.model_base) == ("sglang", "M2.5")
    assert (facts.tensor_parallel, facts.expert_parallel) == (8, True)
    assert facts.flags == {"--sampling-defaults=model"}
    cut = situation("server_args=ServerArgs(model_path='x', tp_size=4, reasoning_parser='mi")
    assert (cut.tensor_parallel, cut.expert_parallel, cut.flags) == (4, None, None)


def test_a_log_of_ours_tells_nothing() -> None:
    assert of_log("m2serve_cpu") == Situation()


@pytest.mark.parametrize(
    "text", ["{'a': ", "[1, 2]", "__import__('os')", "{" * 2000, "{'model': 3, 5: None}", ""]
)
def test_arguments_that_are_none(text: str) -> None:
    assert situation(f"INFO non-default args: {text}").engine == "vllm"


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_line(text: str) -> None:
    situation(f"non-default args: {text}", f"server_args=ServerArgs({text}", text)


def test_settings_far_down_a_log_are_no_start() -> None:
    finder = SituationFinder()
    for _ in range(MAX_LINES):
        finder.look("fine")
    finder.look("non-default args: {'model': 'x'}")
    assert finder.situation == Situation()


def test_issues_follow_from_the_settings_before_they_show() -> None:
    log = (
        "(APIServer) INFO non-default args: {'model': 'MiniMaxAI/MiniMax-M2.5', "
        "'tensor_parallel_size': 8}\n"
        "(EngineCore) INFO Initializing a V1 LLM engine (v0.20.2) with config: quantization=fp8\n"
    )
    report = read_log(io.BytesIO(log.encode()))
    assert [issue.id for issue in report.certain] == ["K03"]
    assert not report.has_failed
    error = "ValueError: weight = 192 is not divisible by weight quantization block_n = 128."
    report = read_log(io.BytesIO(log.encode() + error.encode()))
    assert ([m.issue.id for m in report.matches], report.certain) == (["K03"], ())


@pytest.mark.parametrize("path", sorted(HEALTHY.glob("*.log")), ids=lambda path: path.stem)
def test_nothing_follows_from_a_healthy_log(path: Path) -> None:
    assert read_log(io.BytesIO(path.read_bytes())).certain == ()


def test_bases() -> None:
    names = ("MiniMaxAI/MiniMax-M2", "nvidia/MiniMax-M2.7-NVFP4", "/x/minimax-m2.1-awq", "m")
    assert [model_base(name) for name in names] == ["M2", "M2.7", "M2.1", ""]
