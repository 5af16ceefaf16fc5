"""make_plan from end to end: records, refusals, no torch."""

import json
import subprocess
import sys

import pytest

from m2serve.errors import ResourceError, UsageError
from m2serve.plan.plan import make_plan
from m2serve.records import Workload, to_json

FP8 = "MiniMaxAI/MiniMax-M2.5"


def test_a_plan_is_json() -> None:
    read = json.loads(to_json(make_plan(FP8, "4xb200")))
    assert read["parallelism"]["tensor"] == 4
    assert {term["name"] for term in read["ranks"][0]["terms"]} >= {"kv_cache", "weights.experts"}
    assert read["engine_version"] in read["image"]


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys; from m2serve.plan.plan import make_plan; "
        "make_plan('MiniMax-M2.5', '2xrtx-pro-6000'); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_licences_are_said() -> None:
    assert any("attribution" in text for text in make_plan(FP8, "4xb200").warnings)
    newer = make_plan("MiniMaxAI/MiniMax-M2.7", "4xb200")
    assert any("non-commercial" in text for text in newer.warnings)


def test_context_is_the_checkpoints_own() -> None:
    assert make_plan(FP8, "4xb200").max_model_len == 196_608
    assert make_plan("MiniMaxAI/MiniMax-M2.7", "4xb200").max_model_len == 204_800
    assert make_plan("nvidia/MiniMax-M2.7-NVFP4", "4xb200").max_model_len == 196_608


def test_issues_name_what_was_done() -> None:
    notes = {note.id: note for note in make_plan(FP8, "8xrtx-pro-6000", engine="sglang").issues}
    assert notes["K33"].action == "avoided by --moe-runner-backend"
    assert notes["K68"].action.startswith("open: ")


def test_remedies_of_known_issues_become_settings() -> None:
    """A release of the range K52 names, without the recipe's graphs, would get them from there."""
    from m2serve.plan.issues import open_issues, with_remedies
    from m2serve.plan.plan import search
    from m2serve.spec.engines import find_engine
    from m2serve.spec.hardware import parse_hardware
    from m2serve.spec.variants import find_variant

    workload = Workload()
    found = search(
        [(find_engine("vllm"), "0.16.0")],
        [find_variant("MiniMaxAI/MiniMax-M2")],
        parse_hardware("4xb200"),
        workload,
    ).found
    c = found[0].configuration
    ids = {issue.id for issue in open_issues(c, (), workload)}
    assert "K06" in ids
    remedied = with_remedies(c, (), workload)
    assert ("VLLM_USE_FLASHINFER_MOE_FP8", "0") in {(s.name, s.value) for s in remedied}
    assert "K06" not in {issue.id for issue in open_issues(c, remedied, workload)}


def test_runners_up_say_why_they_lost() -> None:
    plan = make_plan("MiniMax-M2.5", "4xb200")
    assert plan.runners_up
    assert all(" against " in entry.reason or entry.reason for entry in plan.runners_up)
    assert plan.model not in {entry.configuration for entry in plan.runners_up}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("MiniMax-M3", "4xb200"), "neither known nor a folder"),
        ((FP8, "4xb2000"), "did you mean"),
        ((FP8, "4xb200", Workload(max_model_len=1000)), "more than the context of 1,000"),
        ((FP8, "4xb200", Workload(concurrency=0)), "concurrency is 0"),
        ((FP8, "4xb200", Workload(prefix_hit=1.5)), "prefix_hit is 1.5"),
        ((FP8, "4xb200", Workload(slo_ttft_ms=-1.0)), "SLO of -1.0"),
    ],
)
def test_refused_in_one_sentence(arguments: tuple[object, ...], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        make_plan(*arguments)  # type: ignore[arg-type]


def test_an_engine_version_needs_an_engine() -> None:
    with pytest.raises(UsageError, match="name it with --engine"):
        make_plan(FP8, "4xb200", engine_version="0.20.2")
    with pytest.raises(UsageError, match="version 'newest' is none"):
        make_plan(FP8, "4xb200", engine="vllm", engine_version="newest")


@pytest.mark.parametrize(
    ("model", "hardware", "sentence"),
    [
        (FP8, "1xrtx-pro-6000", "GiB of weights"),
        (FP8, "4xm3-ultra", "does not run on m3-ultra"),
        ("MiniMax-M2.5-GGUF:Q8_0", "8xb200", "does not load gguf"),
    ],
)
def test_nothing_that_runs_gives_the_reasons(model: str, hardware: str, sentence: str) -> None:
    with pytest.raises((ResourceError, UsageError), match=sentence):
        make_plan(model, hardware, host_memory_bytes=1 << 30)


def test_a_folder_is_planned_for_as_it_is(tmp_path: object) -> None:
    """A miniature of a few layers fits anything; its base is not told by its config."""
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    config = {
        "model_type": "minimax_m2",
        "hidden_size": 3072,
        "num_hidden_layers": 62,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rotary_dim": 64,
        "intermediate_size": 1536,
        "num_local_experts": 256,
        "num_experts_per_tok": 8,
        "vocab_size": 200_064,
        "max_position_embeddings": 196_608,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = make_plan(str(tmp_path), "4xb200")
    assert (plan.model, plan.variant) == (str(tmp_path), "")
    assert plan.parallelism.tensor == 4
