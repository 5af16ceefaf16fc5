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
    ("hardware", "used", "devices"),
    [
        ("2xrtx-pro-6000+1xrtx-4090", "2xrtx-pro-6000", (0, 1)),
        ("1xrtx-4090+2xrtx-pro-6000", "2xrtx-pro-6000", (1, 2)),
        ("1xrtx-pro-6000+1xrtx-4090+1xrtx-pro-6000", "2xrtx-pro-6000", (0, 2)),
    ],
)
def test_one_kind_alone_is_taken_where_it_is_faster(
    hardware: str, used: str, devices: tuple[int, ...]
) -> None:
    plan = make_plan(NVFP4, hardware, engine="vllm")
    assert (plan.hardware, plan.devices) == (used, devices)
    assert plan.parallelism.tensor == 2
    assert env_of(plan)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert any("2 of 3 devices" in warning for warning in plan.warnings)
    assert any("by their numbers" in warning for warning in plan.warnings)
    numbers = ",".join(str(number) for number in devices)
    [script] = launch_files(plan, "shell")
    assert f"export CUDA_VISIBLE_DEVICES={numbers}\n" in script.text.replace("'", "")
    [container] = launch_files(plan, "docker")
    assert f'"device={numbers}"' in container.text
    for form in ("kubernetes", "slurm"):  # whose schedulers hand out devices
        assert "CUDA_VISIBLE_DEVICES" not in "".join(f.text for f in launch_files(plan, form))


def test_one_card_of_another_kind_is_found_by_its_number() -> None:
    model = "lukealonso/MiniMax-M2.5-REAP-139B-A10B-NVFP4"
    plan = make_plan(model, "1xrtx-4090+1xrtx-pro-6000", engine="vllm")
    assert (plan.hardware, plan.devices) == ("1xrtx-pro-6000", (1,))
    assert env_of(plan)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_each_vendor_counts_its_own_devices() -> None:
    plan = make_plan(FP8, "1xmi300x+8xh200", engine="vllm")
    assert (plan.hardware, plan.devices) == ("8xh200", tuple(range(8)))


def test_all_cards_are_taken_where_one_kind_is_too_small() -> None:
    plan = make_plan(NVFP4, "1xrtx-pro-6000+2xrtx-4090", engine="vllm")
    assert plan.parallelism.pipeline == 3
    assert plan.devices == ()
    assert any("by their numbers" in warning for warning in plan.warnings)


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


def test_one_user_keeps_one_node_busy() -> None:
    workload = Workload(concurrency=1, objective="throughput")
    plan = make_plan(FP8, "16xh200", workload, engine="vllm")
    alone = make_plan(FP8, "8xh200", workload, engine="vllm")
    rate = f"{alone.speed.output_tokens_per_s.value:,.0f} tokens/s on all 2 nodes"
    for warning in plan.warnings:
        assert not warning.startswith("One server a node") or rate in warning
