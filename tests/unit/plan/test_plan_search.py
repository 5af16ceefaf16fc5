"""Properties of every plan: it fits, it uses the devices, more devices never lose it."""

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from m2serve.errors import ResourceError
from m2serve.plan.candidates import variants_for
from m2serve.plan.plan import make_plan
from m2serve.plan.ranking import workload_tokens
from m2serve.plan.search import search
from m2serve.records import Plan, Workload
from m2serve.spec.engines import find_engine, load_engines
from m2serve.spec.hardware import parse_hardware

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MODELS = st.sampled_from(
    [
        "MiniMaxAI/MiniMax-M2.5",
        "MiniMaxAI/MiniMax-M2.7",
        "lukealonso/MiniMax-M2.5-NVFP4",
        "mratsim/MiniMax-M2.5-BF16-INT4-AWQ",
        "lukealonso/MiniMax-M2.5-REAP-139B-A10B-NVFP4",
        "Eco-Tech/MiniMax-M2.5-w8a8-QuaRot",
    ]
)
CARDS = st.sampled_from(
    ["rtx-pro-6000", "h100", "h200", "b200", "a100", "mi300x", "ascend-910c", "ascend-910b3"]
)
COUNTS = st.sampled_from([1, 2, 3, 4, 5, 6, 8])
WORKLOADS = st.builds(
    Workload,
    concurrency=st.sampled_from([1, 7, 64, 500]),
    input_len=st.sampled_from([100, 2048, 60_000, 100_000]),
    output_len=st.sampled_from([100, 1024]),
    prefix_hit=st.sampled_from([0.0, 0.9]),
    objective=st.sampled_from(["latency", "throughput", "cost"]),
)


def plan_or_none(model: str, hardware: str, workload: Workload) -> Plan | None:
    try:
        return make_plan(model, hardware, workload)
    except ResourceError:
        return None


@FEW
@given(MODELS, CARDS, COUNTS, WORKLOADS)
def test_no_plan_exceeds_its_devices(model: str, card: str, count: int, workload: Workload) -> None:
    plan = plan_or_none(model, f"{count}x{card}", workload)
    assume(plan is not None)
    assert plan is not None
    machine = parse_hardware(plan.hardware, plan.num_nodes)
    assert plan.parallelism.world_size == len(plan.ranks)
    assert plan.num_replicas * len(plan.ranks) == len(machine.devices)
    if workload.objective != "cost":
        assert len(machine.devices) == count
    for rank in plan.ranks:
        assert rank.used_bytes <= rank.budget_bytes < rank.usable_bytes
        assert rank.term("kv_cache") > 0
        assert rank.term("weights") > 0
    assert plan.kv_cache_tokens >= plan.max_model_len * plan.parallelism.data
    assert plan.max_model_len >= workload.input_len + workload.output_len


@FEW
@given(MODELS, CARDS, COUNTS, st.integers(1, 3), WORKLOADS)
def test_more_devices_never_lose_all_plans(
    model: str, card: str, count: int, more: int, workload: Workload
) -> None:
    """On machines whose engine can cut by layers; Ascend is planned without pipeline stages, where
    the count must suit the heads.
    """
    assume(not card.startswith("ascend"))
    few = plan_or_none(model, f"{count}x{card}", workload)
    assume(few is not None and few.engine == "vllm")
    assert plan_or_none(model, f"{min(8, count + more)}x{card}", workload) is not None


@FEW
@given(MODELS, CARDS, COUNTS, WORKLOADS)
def test_settings_are_known_to_the_release(
    model: str, card: str, count: int, workload: Workload
) -> None:
    plan = plan_or_none(model, f"{count}x{card}", workload)
    assume(plan is not None)
    assert plan is not None
    engine = find_engine(plan.engine)
    names = [(setting.name, setting.node) for setting in plan.settings]
    assert len(set(names)) == len(names)
    for setting in plan.settings:
        assert setting.reason
        assert setting.source
        if setting.kind == "flag":
            assert engine.knows_flag(setting.name, plan.engine_version), setting.name
        if setting.kind == "env":
            assert engine.knows_env(setting.name, plan.engine_version), setting.name


@pytest.mark.parametrize("engine", [row for row in load_engines() if row.name != "own"])
def test_no_release_gets_a_flag_it_does_not_know(engine: object) -> None:
    from m2serve.spec.engines import Engine

    assert isinstance(engine, Engine)
    hardware, model = {
        "vllm": ("2xb200", "RedHatAI/MiniMax-M2-NVFP4"),
        "sglang": ("4xh200", "MiniMaxAI/MiniMax-M2"),
        "vllm-ascend": ("16xascend-910c", "Eco-Tech/MiniMax-M2.5-w8a8-QuaRot"),
    }[engine.name]
    planned = 0
    for release in engine.releases:
        try:
            plan = make_plan(model, hardware, engine=engine.name, engine_version=release.version)
        except ResourceError:
            continue
        planned += 1
        for setting in plan.settings:
            known = {"flag": engine.knows_flag, "env": engine.knows_env}.get(setting.kind)
            assert known is None or known(setting.name, release.version), setting.name
    assert planned >= len(engine.releases) - 3


def test_best_first_and_everything_accounted_for() -> None:
    workload = Workload(concurrency=16)
    engines = tuple((engine, "") for engine in load_engines())
    result = search(engines, variants_for("MiniMax-M2.5"), parse_hardware("4xb200"), workload)
    full = [c for c in result.found if c.holds_workload]
    assert result.found[0] in full
    assert result.rejected
    assert all(rejection.reason for rejection in result.rejected)


def test_unpruned_checkpoints_before_pruned_ones() -> None:
    two = make_plan("MiniMax-M2.5", "2xrtx-pro-6000")
    assert "REAP" not in two.model
    one = make_plan("MiniMax-M2.5", "1xrtx-pro-6000")
    assert "REAP" in one.model
    assert any("pruned" in text for text in one.warnings)


def test_an_exact_checkpoint_is_kept() -> None:
    plan = make_plan("amd/MiniMax-M2.5-MXFP4", "8xmi355x")
    assert plan.model == plan.variant == "amd/MiniMax-M2.5-MXFP4"


def test_unequal_cards_take_layers_by_their_memory() -> None:
    plan = make_plan("mconcat/MiniMax-M2.5-NVFP4", "1xrtx-pro-6000+2xrtx-5090")
    layers = plan.parallelism.pipeline_layers
    assert sum(layers) == 62
    assert layers[0] > 2 * max(layers[1:])
    assert {s.name: s.value for s in plan.settings}["VLLM_PP_LAYER_PARTITION"] == ",".join(
        str(count) for count in layers
    )


def test_weights_go_to_the_host_where_cards_are_too_small() -> None:
    plan = make_plan("mconcat/MiniMax-M2.5-NVFP4", "1xrtx-pro-6000+1xrtx-4090")
    settings_by_name = {s.name: s.value for s in plan.settings}
    assert int(settings_by_name["--cpu-offload-gb"] or 0) > 0
    assert all(rank.term("offloaded") < 0 for rank in plan.ranks)
    assert any("host memory" in text for text in plan.warnings)


def test_fp8_kv_cache_only_where_bf16_does_not_hold_the_workload() -> None:
    small = make_plan("MiniMaxAI/MiniMax-M2.5", "2xh200", Workload(concurrency=8))
    assert small.kv_cache_dtype == "auto"
    crowd = Workload(concurrency=80, input_len=2500, output_len=500)
    large = make_plan("MiniMaxAI/MiniMax-M2.5", "2xh200", crowd)
    assert large.kv_cache_dtype == "fp8"
    assert large.kv_cache_tokens >= workload_tokens(crowd)


def test_slos_that_cannot_be_met_are_said() -> None:
    plan = make_plan("MiniMaxAI/MiniMax-M2.5", "4xh200", Workload(slo_tpot_ms=0.5))
    assert any("TPOT is predicted above the SLO of 0.5 ms" in text for text in plan.warnings)


def test_the_lowest_cost_takes_the_devices_the_workload_needs() -> None:
    workload = Workload(concurrency=8, objective="cost")
    cheap = make_plan("MiniMax-M2.5", "8xb200", workload)
    assert len(cheap.ranks) == 1
    assert any("takes 1 of 8 devices" in text for text in cheap.warnings)
    crowd = Workload(concurrency=400, input_len=2500, output_len=500, objective="cost")
    assert len(make_plan("MiniMax-M2.5", "8xb200", crowd).ranks) > 1
