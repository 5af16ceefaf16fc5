"""The settings that a kind of hardware or checkpoint needs, and those it must not have."""

import json

import pytest

from m2serve.plan.plan import make_plan
from m2serve.plan.settings_sglang import static_fraction
from m2serve.records import Plan, Workload

NVFP4 = "lukealonso/MiniMax-M2.5-NVFP4"
FP8 = "MiniMaxAI/MiniMax-M2.5"


def values(plan: Plan) -> dict[str, str | None]:
    return {setting.name: setting.value for setting in plan.settings}


def vllm(model: str, hardware: str, version: str = "", **workload: object) -> dict[str, str | None]:
    return values(
        make_plan(
            model,
            hardware,
            Workload(**workload),  # type: ignore[arg-type]
            engine="vllm",
            engine_version=version,
        )
    )


def sglang(model: str, hardware: str, **workload: object) -> dict[str, str | None]:
    return values(make_plan(model, hardware, Workload(**workload), engine="sglang"))  # type: ignore[arg-type]


def test_hopper_fp8_as_in_the_recipe() -> None:
    found = vllm(FP8, "4xh200")
    assert found["--moe-backend"] == "triton"
    assert found["VLLM_USE_DEEP_GEMM"] == "0"
    assert json.loads(found["--compilation-config"] or "") == {"cudagraph_mode": "PIECEWISE"}
    assert "NCCL_P2P_LEVEL" not in found


def test_hopper_fp8_kv_cache_needs_another_attention() -> None:
    crowd = {"concurrency": 80, "input_len": 2500, "output_len": 500}
    found = vllm(FP8, "2xh200", **crowd)
    assert (found["--kv-cache-dtype"], found["--attention-backend"]) == ("fp8", "FLASHINFER")
    found = sglang(FP8, "2xh200", **crowd)
    assert (found["--kv-cache-dtype"], found["--attention-backend"]) == ("fp8_e4m3", "flashinfer")


def test_amd_gets_its_attention() -> None:
    found = vllm(FP8, "2xmi300x")
    assert found["--attention-backend"] == "ROCM_AITER_FA"
    assert found["VLLM_ROCM_USE_AITER"] == "1"
    assert "--compilation-config" not in found


def test_spark_unpacks_nvfp4_with_marlin() -> None:
    assert vllm(NVFP4, "2xdgx-spark")["--moe-backend"] == "marlin"


def test_two_sparks_run_without_graphs_over_the_network() -> None:
    plan = make_plan(NVFP4, "2xdgx-spark", engine="vllm")
    assert (plan.num_nodes, plan.parallelism.tensor) == (2, 2)
    found = values(plan)
    assert json.loads(found["--compilation-config"] or "") == {"cudagraph_mode": "NONE"}
    assert (found["--nnodes"], found["--master-addr"]) == ("2", "{node0_ip}")
    assert [(s.value, s.node) for s in plan.settings if s.name == "--node-rank"] == [
        ("0", 0),
        ("1", 1),
    ]
    assert [s.node for s in plan.settings if s.name == "--headless"] == [1]


@pytest.mark.parametrize(
    ("version", "name", "value"),
    [
        ("0.20.2", "VLLM_USE_FLASHINFER_MOE_FP4", "0"),
        ("0.24.0", "--moe-backend", "flashinfer_b12x"),
    ],
)
def test_rtx_pro_6000_nvfp4_by_release(version: str, name: str, value: str) -> None:
    assert vllm(NVFP4, "2xrtx-pro-6000", version)[name] == value


def test_the_variable_that_left_becomes_a_flag() -> None:
    """0.28.0 no longer reads VLLM_USE_FLASHINFER_MOE_FP4."""
    tight = vllm(NVFP4, "1xb200", "0.28.0", input_len=100_000, concurrency=1)
    assert "VLLM_USE_FLASHINFER_MOE_FP4" not in tight


def test_parsers_have_the_engines_names() -> None:
    found = vllm(FP8, "4xb200")
    assert (found["--tool-call-parser"], found["--reasoning-parser"]) == ("minimax_m2",) * 2
    assert "--enable-auto-tool-choice" in found
    found = sglang(FP8, "4xb200")
    assert (found["--tool-call-parser"], found["--reasoning-parser"]) == ("minimax-m2", "minimax")


def test_sglang_counts_ranks_its_own_way() -> None:
    """--tp-size is the world, --dp-size divides its attention; the static share leaves activations
    outside.
    """
    plan = make_plan(FP8, "8xrtx-pro-6000", engine="sglang")
    found = values(plan)
    assert (found["--tp-size"], found["--ep-size"]) == ("8", "8")
    assert (found["--fp8-gemm-backend"], found["--moe-runner-backend"]) == ("triton", "triton")
    rank = plan.ranks[0]
    share = float(found["--mem-fraction-static"] or 0)
    static = rank.term("weights") + rank.term("kv_cache")
    assert static / rank.usable_bytes == pytest.approx(share, abs=0.011)


def test_drafts_only_where_one_was_made_for_the_checkpoint() -> None:
    def draft(model: str, hardware: str) -> str | None:
        return values(make_plan(model, hardware)).get("--speculative-config")

    own = json.loads(draft("Eco-Tech/MiniMax-M2.5-w8a8-QuaRot", "16xascend-910c") or "")
    assert own["model"] == "vllm-ascend/MiniMax-M2.5-eagel-model-0318"
    newer = json.loads(draft("Eco-Tech/MiniMax-M2.7-w8a8-QuaRot", "16xascend-910c") or "")
    assert newer["model"] == "Eco-Tech/MiniMax-M2.7-eagle-model-short"
    assert draft("vllm-ascend/MiniMax-M2.7-w8a8-c8-QuaRot", "16xascend-910c") is None
    assert draft(FP8, "2xatlas-800i-a2") is None
    assert draft(FP8, "4xb200") is None


def test_ascend_host_commands_set_what_they_name() -> None:
    plan = make_plan("Eco-Tech/MiniMax-M2.5-w8a8-QuaRot", "16xascend-910c")
    commands = [s.name for s in plan.settings if s.kind == "system"]
    assert all(" -w " in command for command in commands if command.startswith("sysctl"))
    assert any("sched_migration_cost_ns=50000" in command for command in commands)


def test_own_engine_on_a_processor() -> None:
    plan = make_plan(FP8, "1xepyc-9005")
    assert plan.engine == "own"
    found = values(plan)
    assert found["--device"] == "cpu"
    assert found["--kv-cache-memory-bytes"] == str(plan.ranks[0].term("kv_cache"))


def test_static_fraction_is_rounded_down() -> None:
    from m2serve.plan.memory import MemoryPlan
    from m2serve.records import MemoryTerm, RankMemory

    rank = RankMemory(0, "x", 1000, 927, (MemoryTerm("overhead.context", 60),))
    assert static_fraction(MemoryPlan((rank,), 0, 0, 0, 0)) == 0.86
