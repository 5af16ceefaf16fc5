"""Unequal cards, and several nodes: what is tried, which devices are used, what is said of it."""

from dataclasses import replace

import pytest

from m2serve.launch.forms import launch_files
from m2serve.plan.memory import plan_memory
from m2serve.plan.plan import choose, make_plan
from m2serve.plan.predict import predict
from m2serve.records import Parallelism, Plan, Workload

NVFP4 = "mconcat/MiniMax-M2.5-NVFP4"
FP8 = "MiniMaxAI/MiniMax-M2.5"


def env_of(plan: Plan) -> dict[str, str]:
    return {s.name: s.value or "" for s in plan.settings if s.kind == "env"}


@pytest.mark.parametrize(
    ("hardware", "devices"),
    [("2xrtx-pro-6000+1xrtx-4090", ()), ("1xrtx-4090+2xrtx-pro-6000", (1, 2))],
)
def test_one_kind_alone_is_taken_where_it_is_faster(
    hardware: str, devices: tuple[int, ...]
) -> None:
    plan = make_plan(NVFP4, hardware, engine="vllm")
    assert plan.hardware == "2xrtx-pro-6000"
    assert plan.parallelism.tensor == 2
    assert plan.devices == devices
    assert any("takes 2 of 3 devices" in warning for warning in plan.warnings)
    [script] = launch_files(plan, "shell")
    shown = 'export CUDA_VISIBLE_DEVICES="1,2"' if devices else "CUDA_VISIBLE_DEVICES"
    assert (shown in script.text.replace("=1,2", '="1,2"')) == bool(devices)


def test_all_cards_are_taken_where_one_kind_is_too_small() -> None:
    plan = make_plan(NVFP4, "1xrtx-pro-6000+2xrtx-4090", engine="vllm")
    assert plan.parallelism.pipeline == 3
    assert plan.devices == ()
    assert any("in the order of nvidia-smi" in warning for warning in plan.warnings)


@pytest.mark.parametrize("version", ["0.20.2", "0.24.0"])
def test_no_kernel_is_asked_for_that_one_of_the_cards_lacks(version: str) -> None:
    plan = make_plan(NVFP4, "1xrtx-pro-6000+2xrtx-4090", engine="vllm", engine_version=version)
    assert plan.parallelism.pipeline == 3
    assert "--moe-backend" not in {setting.name for setting in plan.settings}
    ordered = make_plan(NVFP4, "2xrtx-4090+1xrtx-pro-6000", engine="vllm", engine_version=version)
    # The same cards in another order: the same flags and variables, but for the layers of each.
    apart = "VLLM_PP_LAYER_PARTITION"
    assert env_of(plan).keys() == env_of(ordered).keys()
    assert {k: v for k, v in env_of(plan).items() if k != apart} == {
        k: v for k, v in env_of(ordered).items() if k != apart
    }


def test_experts_on_other_nodes_cost_time_and_certainty() -> None:
    workload = Workload(concurrency=64)
    _, c = choose(FP8, "16xh200", workload, engine="vllm")
    assert c.hardware.num_nodes == 2
    apart = c.replace(parallelism=Parallelism(8, data=2, expert_parallel=True))
    [group] = apart.hardware.groups
    in_one = replace(apart.hardware, groups=(replace(group, count=16),), num_nodes=1)
    together = apart.replace(hardware=in_one)
    far = predict(apart, plan_memory(apart), workload).tpot_ms
    near = predict(together, plan_memory(together), workload).tpot_ms
    assert far.value - near.value == pytest.approx(62 * 0.313 * 3072 / 7168)
    assert "nothing like this" in far.source
    assert "on NVIDIA H200" in near.source
    assert far.high / far.value > near.high / near.value


def test_one_server_a_node_is_named_where_it_is_better() -> None:
    plan = make_plan(FP8, "16xh200", Workload(concurrency=64), engine="vllm")
    [advice] = [warning for warning in plan.warnings if warning.startswith("One server a node")]
    assert "2 nodes" in advice
    assert "--upstream" in advice
    alone = make_plan(FP8, "8xh200", Workload(concurrency=32), engine="vllm")
    assert f"{alone.speed.tpot_ms.value:.1f} ms" in advice
    assert not [w for w in alone.warnings if w.startswith("One server a node")]
