"""What the search tries, and how a document's setting is compared with the plan's."""

import pytest

from m2serve.engine.config import DEFAULT_BATCHED_TOKENS
from m2serve.errors import UsageError
from m2serve.plan.candidates import cuts, good_version, machines, memory_profiles, variants_for
from m2serve.plan.departures import departures_from, is_same_value
from m2serve.plan.plan import choose
from m2serve.records import Setting, Workload
from m2serve.spec.deployments import Deployment
from m2serve.spec.engines import find_engine
from m2serve.spec.hardware import parse_hardware
from m2serve.spec.variants import find_variant


@pytest.mark.parametrize(("arch", "device"), [("cpu", "cpu"), ("sm_90", "cuda")])
def test_our_own_engine_is_planned_with_the_steps_it_takes(arch: str, device: str) -> None:
    profiles = memory_profiles(find_engine("own"), "", arch, Workload())
    assert [tokens for _, tokens in profiles] == [DEFAULT_BATCHED_TOKENS[device]]


@pytest.mark.parametrize("name", ["MiniMax-M2.5", "M2.5", "m2.5", "minimax-m2.5"])
def test_a_family_is_all_its_checkpoints(name: str) -> None:
    found = variants_for(name)
    assert {variant.base for variant in found} == {"M2.5"}
    assert found[0].name == "MiniMaxAI/MiniMax-M2.5"


def test_uploads_that_differ_only_in_their_author_count_once() -> None:
    names = {variant.name for variant in variants_for("M2.5")}
    assert "lukealonso/MiniMax-M2.5-NVFP4" in names
    assert "mconcat/MiniMax-M2.5-NVFP4" not in names
    assert "nvidia/MiniMax-M2.5-NVFP4" in names  # it has KV scales


def test_an_exact_name_is_one_checkpoint() -> None:
    assert [v.name for v in variants_for("mconcat/minimax-m2.5-nvfp4")] == [
        "mconcat/MiniMax-M2.5-NVFP4"
    ]
    with pytest.raises(UsageError, match="neither known nor a folder"):
        variants_for("nobody/MiniMax-M2.5")


@pytest.mark.parametrize("hardware", ["1xb200", "6xh200", "8xh200", "16x910c", "16xh200"])
@pytest.mark.parametrize("engine", ["vllm", "vllm-ascend"])
def test_every_cut_uses_every_device_once(hardware: str, engine: str) -> None:
    machine = parse_hardware(hardware)
    found = list(cuts(machine, engine, 100_000))
    assert all(cut.world_size == len(machine.devices) for cut in found)
    assert len(set(found)) == len(found)


def test_unequal_cards_are_stages() -> None:
    machine = parse_hardware("1xrtx-pro-6000+2xrtx-4090")
    assert [(cut.tensor, cut.pipeline) for cut in cuts(machine, "vllm", 2048)] == [(1, 3)]


def test_prefill_context_is_for_long_prompts() -> None:
    machine = parse_hardware("16x910c")

    def widest(input_len: int) -> int:
        return max(cut.prefill_context for cut in cuts(machine, "vllm-ascend", input_len))

    assert (widest(3584), widest(131_072)) == (1, 2)


def test_the_lowest_cost_looks_at_fewer_devices() -> None:
    machine = parse_hardware("16xh200")
    counts = [len(part.devices) for part in machines(machine, "cost")]
    assert counts == [16, 1, 2, 4, 8]
    assert machines(machine, "latency") == (machine,)


@pytest.mark.parametrize(
    ("engine", "variant", "hardware", "version"),
    [
        ("vllm", "MiniMaxAI/MiniMax-M2.5", "4xb200", "0.20.2"),
        ("sglang", "MiniMaxAI/MiniMax-M2.5", "4xb200", "0.5.10.post1"),
        ("sglang", "MiniMaxAI/MiniMax-M2.5", "4xa100", "0.5.15"),  # Marlin for FP8
    ],
)
def test_the_release_meets_every_floor(
    engine: str, variant: str, hardware: str, version: str
) -> None:
    row, machine = find_engine(engine), parse_hardware(hardware)
    assert good_version(row, find_variant(variant), machine) == version


@pytest.mark.parametrize(
    ("theirs", "mine", "is_same"),
    [
        ("0.90", "0.9", True),
        ("0.90", "0.92", False),
        ('{"a":true}', '{"a": true}', True),
        ('{"a":true}', '{"a": false}', False),
        ('{"model": "/path/x", "n": 3}', '{"n": 3, "model": "org/draft"}', True),
        ('{"model": "/path/x", "n": 3}', '{"n": 1, "model": "org/draft"}', False),
        ("{NIC}", "{nic}", True),
        ("minimax_m2_append_think", "minimax_m2", False),
        (None, None, True),
        (None, "1", False),
    ],
)
def test_values_are_compared_by_meaning(
    theirs: str | None, mine: str | None, is_same: bool
) -> None:
    assert is_same_value(theirs, mine) is is_same


def test_a_flag_without_a_reason_is_seen() -> None:
    deployment = Deployment("X", "x", "card", "1xb200", "vllm", "0.16.0", "m", flags=("--new 1",))
    plan, c = choose("MiniMaxAI/MiniMax-M2.5", "4xb200", Workload(), engine="vllm")
    rest = (c, plan.workload)
    assert [d.reason for d in departures_from(deployment, (), *rest)] == [""]
    mine = (Setting("flag", "--new", "2", "because", "here"),)
    found = list(departures_from(deployment, mine, *rest))
    assert [(d.setting, d.reason) for d in found] == [("--new 2 instead of 1", "because")]
