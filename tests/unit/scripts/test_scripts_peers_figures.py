"""What the programs print is read as what it says, and nothing is made up when they fail."""

import json
import sys

import pytest

from scripts.peers.figures import batched_bench, llama_bench, own_bench, result_line, unit
from scripts.peers.processes import ROOT, Failed, Program, shown

LLAMA_BENCH = """[
  {"n_prompt": 512, "n_gen": 0, "avg_ts": 9.0, "samples_ts": [ 10.0, 8.0, 30.0 ]},
  {"n_prompt": 0, "n_gen": 128, "avg_ts": 9.0, "samples_ts": [ 1.0, 3.0, 2.0 ]}
]
"""
BATCHED_BENCH = """
main: n_kv_max = 2048, n_batch = 2048

|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |
|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|
|    16 |      8 |    4 |     96 |    0.051 |  1260.64 |    0.033 |   979.31 |    0.083 |  1150.47 |
"""


def test_llama_bench_gives_the_median_of_its_repeats() -> None:
    printed = "loading [model]\n" + LLAMA_BENCH
    assert llama_bench(printed) == {"prefill_tokens_per_s": 10.0, "decode_tokens_per_s": 2.0}


def test_batched_bench_is_read_by_column() -> None:
    found = batched_bench(BATCHED_BENCH)
    assert found == {"prefill_tokens_per_s": 1260.64, "decode_tokens_per_s": 979.31}


def test_own_bench_keeps_medians_and_the_roof() -> None:
    rate = {"median": 5.0, "minimum": 1.0, "maximum": 9.0}
    printed = json.dumps(
        {
            "decode_tokens_per_s": rate,
            "prefill_tokens_per_s": {**rate, "median": 7.0},
            "read_bandwidth_gb_per_s": 30.0,
            "bandwidth_share": 0.5,
            "decode_gb_per_s": 15.0,
            "machine": "x",
        }
    )
    assert own_bench(printed) == {
        "decode_tokens_per_s": 5.0,
        "prefill_tokens_per_s": 7.0,
        "read_bandwidth_gb_per_s": 30.0,
        "bandwidth_share": 0.5,
        "decode_gb_per_s": 15.0,
    }


def test_the_last_result_line_counts() -> None:
    assert result_line('RESULT {"a": 1}\nnoise\nRESULT {"a": 2}\n') == {"a": 2}


@pytest.mark.parametrize("read", [llama_bench, batched_bench, result_line])
def test_output_without_figures_is_refused(read) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read("error: failed to load model\n")


def test_units_hold_at_any_level_of_load() -> None:
    assert unit("output_tokens_per_s at 32") == unit("output_tokens_per_s") == "tokens/s"


def python(code: str, **options: float) -> Program:
    return Program("python", (sys.executable, "-c", code), result_line, **options)


def test_a_program_gives_its_figures() -> None:
    assert python("print('RESULT {\"a\": 3}')").measure() == {"a": 3}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit('GGML_ASSERT failed')", "exit code 1: GGML_ASSERT failed"),
        ("print('nothing')", "unreadable output"),
        ("import time; time.sleep(60)", "not finished within 0.5 s"),
    ],
)
def test_a_program_without_figures_says_why(code: str, reason: str) -> None:
    with pytest.raises(Failed, match=reason):
        python(code, timeout_s=0.5 if "sleep" in code else 30.0).measure()


def test_a_program_that_is_not_there_is_a_failure() -> None:
    with pytest.raises(Failed, match="cannot be started"):
        Program("x", ("/nonexistent/llama-bench",), llama_bench).measure()


def test_commands_are_shown_without_this_machines_folders() -> None:
    model = f"{ROOT}/build/peers/models/mid"
    command = shown(("/opt/bin/vllm", "serve", model), {"LD_PRELOAD": "/opt/lib/libiomp5.so"})
    assert command == "LD_PRELOAD=libiomp5.so vllm serve build/peers/models/mid"
