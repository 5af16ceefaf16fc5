"""Published figures: the wrong ones are refused with the right number, the right ones pass."""

import pytest
from typer.testing import CliRunner

from m2serve.cli.main import app
from m2serve.errors import UsageError
from m2serve.plan.candidates import variants_for
from m2serve.plan.claim import judge_claim
from m2serve.plan.claim_figures import claimed_users, read_figures
from m2serve.plan.plan import choose
from m2serve.records import Workload

B200 = ("MiniMaxAI/MiniMax-M2.5", "4xb200")
NVFP4 = ("mconcat/MiniMax-M2.5-NVFP4", "2xb200")
REAP = ("lukealonso/MiniMax-M2.5-REAP-139B-A10B-NVFP4", "1xrtx-pro-6000")


def judge(claim: str, model: str, hardware: str, **workload: object) -> list[tuple[str, str]]:
    users = claimed_users(claim) or 8
    plan, configuration = choose(model, hardware, Workload(concurrency=users, **workload))
    return [
        (v.judgement, v.reason)
        for v in judge_claim(claim, plan, configuration, variants_for(model))
    ]


@pytest.mark.parametrize(
    ("target", "claim", "right_number"),
    [
        (B200, "115 GB", "230.12 GB = 214.32 GiB"),
        (B200, "287 GB", "230.12 GB"),
        (B200, "29 GB per GPU", "53.72 GiB"),
        (B200, "5280 GB KV", "all devices together have for it"),
        (B200, "60 GB per 1M tokens", "253.95 GB"),
        (B200, "456B parameters", "228,689,764,864"),
        (B200, "1M context", "196,608"),
        (NVFP4, "456 billion total", "228,689,764,864"),
        (NVFP4, "67 GB", "134.40 GB"),
        (REAP, "64 users, 3355 tok/s", "44.8 ms"),
    ],
)
def test_wrong_figures_are_refused(target: tuple[str, str], claim: str, right_number: str) -> None:
    [(judgement, reason)] = judge(claim, *target, input_len=1200, output_len=500)
    assert judgement == "impossible"
    assert right_number in reason


@pytest.mark.parametrize(
    ("target", "claim"),
    [
        (B200, "230.12 GB"),
        (B200, "220 GB"),
        (B200, "53.75 GiB/GPU"),
        (B200, "240 GB per 1M tokens"),
        (B200, "229B parameters"),
        (B200, "230B params"),
        (B200, "192K context"),
        (NVFP4, "126 GB"),
        (NVFP4, "134.4 GB"),
        (B200, "64 users, 4100 tok/s"),
    ],
)
def test_right_figures_pass(target: tuple[str, str], claim: str) -> None:
    [(judgement, _)] = judge(claim, *target, input_len=1024, output_len=1024)
    assert judgement == "plausible"


def test_a_slow_run_names_the_issue_that_explains_it() -> None:
    claim = "10 users, TPOT 82.82 ms"
    plan, configuration = choose(
        "MiniMaxAI/MiniMax-M2", "4xh20-3e", Workload(concurrency=10, output_len=1024)
    )
    [verdict] = judge_claim(claim, plan, configuration)
    assert verdict.judgement == "slow"
    assert "K80" in verdict.issues


def test_figures_that_contradict_one_another_are_suspicious() -> None:
    claim = "1024 concurrent, 8838 tok/s, TPOT 43.73 ms, TTFT 687 ms"
    reasons = [reason for judgement, reason in judge(claim, *B200) if judgement == "suspicious"]
    assert any("398 requests in flight, not 1024" in reason for reason in reasons)


def test_every_figure_of_a_text_is_read_once() -> None:
    found = read_figures("c=8: 64 users at 1,057 tok/s, ttft 77 ms; 29 GB per GPU of 115 GB, 9 GB")
    assert found == {
        "users": (64,),
        "rate": (1057,),
        "ttft_ms": (77,),
        "per_device": (29,),
        "bytes": (115, 9),
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pp2048 3342.54 tok/s; tg32 16.71 tok/s", {"prefill": (3342.54,), "rate": (16.71,)}),
        ("prefill 90000 tok/s, out 2591 tok/s", {"prefill": (90_000,), "rate": (2591,)}),
        ("input throughput: 812.5 tok/s", {"prefill": (812.5,)}),
        ("5,000 tokens/s prefill", {"prefill": (5000,)}),
        ("total token throughput 16096 tok/s", {"total_rate": (16096,)}),
        ("total throughput 3355 tok/s", {"rate": (3355,)}),
        ("3355 tok/s total", {"rate": (3355,)}),
        ("TP2 PP2 90000 tok/s", {"rate": (90_000,)}),
        ("pp 1234 t/s", {"prefill": (1234,)}),
        ("90 tok/s/user", {"rate_per_user": (90,)}),
        ("2,600 tok/s/GPU", {"rate_per_device": (2600,)}),
        ("1600 tokens/s per device and 80 t/s", {"rate_per_device": (1600,), "rate": (80,)}),
    ],
)
def test_rates_of_prompts_totals_and_devices_are_told_apart(
    text: str, found: dict[str, tuple[float, ...]]
) -> None:
    assert read_figures(text) == found


@pytest.mark.parametrize(
    ("text", "users"),
    [
        ("pp2048 3342.54 tok/s; tg32 16.71 tok/s", 1),
        ("81 tok/s single stream", 1),
        ("single-stream 81 tok/s", 1),
        ("1 user, 81 tok/s", 1),
        ("8 users, 90 tok/s", 8),
        ("0.4 users, tg32 5 tok/s", 1),
        ("90 tok/s", None),
    ],
)
def test_how_many_users_a_claim_is_about(text: str, users: int | None) -> None:
    assert claimed_users(text) == users


def test_a_rate_of_prompts_is_held_against_arithmetic() -> None:
    assert [v for v, _ in judge("prefill 9000 tok/s", *B200)] == ["plausible"]
    [(judgement, reason)] = judge("prefill 9,000,000 tok/s", *B200)
    assert judgement == "impossible"
    assert "full arithmetic" in reason


def test_a_total_counts_the_prompts() -> None:
    [(alone, _)] = judge("64 users, 24000 tok/s", *B200, input_len=3000, output_len=1000)
    [(together, _)] = judge(
        "64 users, input+output 24000 tok/s", *B200, input_len=3000, output_len=1000
    )
    assert alone == "impossible"
    assert together != "impossible"


@pytest.mark.parametrize(("claim", "name"), [("230 GB", "MiniMaxAI/"), ("134 GB", "134.40 GB")])
def test_a_size_of_a_family_may_be_of_any_of_its_checkpoints(claim: str, name: str) -> None:
    [(judgement, reason)] = judge(claim, "MiniMax-M2.5", "4xb200")
    assert judgement == "plausible"
    assert name in reason


def test_a_wrong_size_of_a_family_is_told_the_releases() -> None:
    [(judgement, reason)] = judge("287 GB", "MiniMax-M2.5", "4xb200")
    assert judgement == "impossible"
    assert "MiniMaxAI/MiniMax-M2.5 has 230.12 GB" in reason


def test_a_slow_run_on_amd_names_its_own_issue_first() -> None:
    plan, configuration = choose(
        "MiniMaxAI/MiniMax-M2.5", "8xmi325x", Workload(concurrency=256), engine="vllm"
    )
    [verdict] = judge_claim("256 users, TPOT 400 ms", plan, configuration)
    assert verdict.judgement == "slow"
    assert "K81" in verdict.issues
    assert verdict.issues[-1] == "K80"


@pytest.mark.parametrize(
    "claim", ["", "fast", "64 users", "x" * 3000, "0 tok/s", "1" * 400 + " users, 5 tok/s"]
)
def test_what_is_no_claim_is_said_to_be_none(claim: str) -> None:
    with pytest.raises(UsageError):
        judge(claim, *B200)


def test_the_command_ends_with_1_for_the_impossible() -> None:
    command = ["plan", B200[0], "--hardware", B200[1], "--claim"]
    wrong = CliRunner().invoke(app, [*command, "115 GB"])
    assert wrong.exit_code == 1
    assert "230.12 GB" in wrong.output
    assert CliRunner().invoke(app, [*command, "230 GB", "--json"]).exit_code == 0
