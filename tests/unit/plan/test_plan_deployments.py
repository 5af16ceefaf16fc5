"""Every published deployment, planned on its own hardware: what its command needs is there, or the
plan says why not.
"""

import pytest

from m2serve.plan.configuration import Configuration
from m2serve.plan.departures import departures_from
from m2serve.plan.plan import choose, make_plan
from m2serve.records import Plan
from m2serve.spec.deployments import Deployment, find_deployment, load_deployments
from scripts.make_deployments_page import workload_of

BASE_IDS = [f"D{number}" for number in range(1, 18)]
THROUGHPUT_FROM = 64

# What each plan does unlike its document, by the name of the flag or variable. A plan that departs
# further, or no longer does, shows here.
NO_CODE = "--trust-remote-code"
SPLIT = "--reasoning-parser"
EXPECTED = {
    "D1": {NO_CODE, SPLIT, "SAFETENSORS_FAST_GPU"},
    "D2": {"--mem-fraction-static"},
    "D3": {"uv"},
    "D4": set(),
    "D5": set(),
    "D6": {
        "--nsa-prefill-backend",
        "--nsa-decode-backend",
        "--enable-flashinfer-allreduce-fusion",
    },
    "D7": set(),
    "D8": set(),
    "D9": set(),
    "D10": {
        NO_CODE,
        SPLIT,
        "--quantization",
        "--max-num-seqs",
        "--enforce-eager",
        "--gpu-memory-utilization",
    },
    "D11": {
        NO_CODE,
        SPLIT,
        "--quantization",
        "--cpu-offload-gb",
        "--max-num-seqs",
        "--enforce-eager",
        "VLLM_PP_LAYER_PARTITION",
    },
    "D12": {NO_CODE, "--gpu-memory-utilization"},
    "D13": {NO_CODE, "--gpu-memory-utilization"},
    "D14": {
        NO_CODE,
        "--tensor-parallel-size",
        "--data-parallel-size",
        "--max-num-seqs",
        "LD_PRELOAD",
    },
    "D15": {NO_CODE, "--data-parallel-size", "LD_PRELOAD"},
    "D16": {
        NO_CODE,
        SPLIT,
        "--served-model-name",
        "--max-num-seqs",
        "--mm_processor_cache_type",
        "VLLM_TORCH_PROFILER_WITH_STACK",
        "VLLM_TORCH_PROFILER_DIR",
    },
    "D17": {NO_CODE, SPLIT},
}


def plan_of(deployment: Deployment, hardware: str = "") -> Plan:
    return choice_of(deployment, hardware)[0]


def choice_of(deployment: Deployment, hardware: str = "") -> tuple[Plan, Configuration]:
    return choose(
        deployment.model,
        hardware or deployment.hardware,
        workload_of(deployment),
        engine=deployment.engine,
        num_nodes=deployment.num_nodes,
    )


@pytest.mark.parametrize("deployment", load_deployments(), ids=lambda row: row.id)
def test_every_departure_has_a_reason(deployment: Deployment) -> None:
    plan, c = choice_of(deployment)
    said_anyway = {setting.reason for setting in plan.settings}
    for departure in departures_from(deployment, plan.settings, c, plan.workload):
        assert departure.reason, departure.setting
        if " instead of " in departure.setting:
            assert departure.reason not in said_anyway, departure.setting


@pytest.mark.parametrize("hardware", ["2xrtx-pro-6000", "4xb200", "8xh200", "16xascend-910c"])
def test_no_plan_departs_without_a_word(hardware: str) -> None:
    for departure in make_plan("MiniMax-M2.5", hardware).departures:
        assert departure.reason, departure.setting


def test_another_cut_is_held_against_the_documents() -> None:
    deployment = find_deployment("D14")
    plan, c = choice_of(deployment)
    found = departures_from(deployment, plan.settings, c, plan.workload)
    [reason] = {d.reason for d in found if d.setting.startswith("--tensor-parallel-size")}
    assert "TP4 DP4 EP has" in reason
    assert "TP8 DP2 EP has" in reason
    assert f"{plan.speed.tpot_ms.value:.1f} ms a token" in reason
    assert f"{plan.kv_cache_tokens:,} tokens" in reason


@pytest.mark.parametrize("name", BASE_IDS)
def test_departures_are_the_known_ones(name: str) -> None:
    deployment = find_deployment(name)
    plan, c = choice_of(deployment)
    found = departures_from(deployment, plan.settings, c, plan.workload)
    assert {departure.setting.partition(" ")[0] for departure in found} == EXPECTED[name]


@pytest.mark.parametrize("name", [name for name in BASE_IDS if name != "D15"])
def test_the_plan_records_them_itself(name: str) -> None:
    """D15 is a change of D14, which alone is compared."""
    plan = plan_of(find_deployment(name))
    documents = {departure.document for departure in plan.departures}
    assert not EXPECTED[name] or name in documents


@pytest.mark.parametrize("name", BASE_IDS)
def test_same_cut_but_where_said(name: str) -> None:
    """The documents' cuts are found again; D14's TP4 DP4 becomes TP8 DP2, which holds more."""
    deployment = find_deployment(name)
    cut = plan_of(deployment).parallelism
    expected = (deployment.tensor, deployment.pipeline, deployment.data, deployment.expert_parallel)
    if name == "D14":
        expected = (8, 1, 2, True)
    assert (cut.tensor, cut.pipeline, cut.data, cut.expert_parallel) == expected
    assert cut.prefill_context == deployment.prefill_context


@pytest.mark.parametrize("hardware", find_deployment("D17").also_on)
def test_the_other_machines_of_d17(hardware: str) -> None:
    plan = plan_of(find_deployment("D17"), hardware)
    assert plan.parallelism.tensor == 4
    assert not plan.parallelism.expert_parallel
    warned = any("unpacked in the kernel (marlin)" in text for text in plan.warnings)
    assert warned == (hardware in ("4xa100", "4xa800"))


def test_b200_with_an_old_release_gets_the_workaround() -> None:
    """0.16.0 is below the recipes' floor for M2.5, so only M2 is planned with it."""
    plan = make_plan("MiniMaxAI/MiniMax-M2", "4xb200", engine="vllm", engine_version="0.16.0")
    values = {setting.name: setting.value for setting in plan.settings}
    assert values["VLLM_USE_FLASHINFER_MOE_FP8"] == "0"


def test_two_nodes_of_a2_have_what_each_needs() -> None:
    plan = plan_of(find_deployment("D16"))
    by_node = {
        node: {s.name: s.value for s in plan.settings if s.node in (None, node)} for node in (0, 1)
    }
    assert "--headless" not in by_node[0]
    assert "--headless" in by_node[1]
    assert [by_node[node]["--data-parallel-start-rank"] for node in (0, 1)] == ["0", "1"]
    assert by_node[1]["--data-parallel-address"] == "{node0_ip}"
    assert by_node[1]["HCCL_IF_IP"] == "{this_ip}"
    assert by_node[0]["--data-parallel-size-local"] == "1"
