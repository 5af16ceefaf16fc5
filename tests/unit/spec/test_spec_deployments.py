"""The documented deployments: complete, readable, and consistent with the other tables."""

import copy
import json
import math
from typing import Any

import pytest

from m2serve.errors import M2Error, UsageError
from m2serve.spec.deployments import (
    contradictions_of,
    find_deployment,
    load_contradictions,
    load_deployments,
    load_documents,
    read_deployments,
    split_flags,
)
from m2serve.spec.hardware import parse_hardware
from m2serve.spec.tables import read_toml
from m2serve.spec.variants import find_draft, find_variant
from m2serve.spec.versions import Version

PARALLEL = {
    "tensor": ("--tensor-parallel-size", "--tp-size"),
    "pipeline": ("--pipeline-parallel-size",),
    "data": ("--data-parallel-size",),
    "decode_context": ("--decode-context-parallel-size",),
    "prefill_context": ("--prefill-context-parallel-size",),
    "max_model_len": ("--max-model-len",),
}


def document() -> dict[str, Any]:
    return copy.deepcopy(read_toml("deployments.toml"))


def test_all_are_there() -> None:
    ids = [deployment.id for deployment in load_deployments()]
    assert [id for id in ids if "-" not in id] == [f"D{i}" for i in range(1, 18)]
    assert [c.id for c in load_contradictions()] == [f"C{i}" for i in range(1, 23)]
    used = {deployment.document for deployment in load_deployments()}
    assert used == {entry.name for entry in load_documents()}
    assert len(used) == 5


def test_names_exist_in_the_other_tables() -> None:
    for row in load_deployments():
        for text in (row.hardware, *row.also_on):
            assert parse_hardware(text, row.num_nodes).num_nodes == row.num_nodes, row.id
        find_variant(row.model)
        if row.draft:
            find_draft(row.draft)
        Version.parse(row.engine_version)


def test_parallelism_repeats_the_flags_and_fits_the_machine() -> None:
    for row in load_deployments():
        settings = dict(row.settings)
        for field, names in PARALLEL.items():
            given = [settings[name] for name in names if name in settings]
            if given:
                assert int(given[0] or 0) == getattr(row, field), (row.id, field)
        is_parallel = "--enable-expert-parallel" in settings or "--ep-size" in settings
        assert is_parallel == row.expert_parallel, row.id
        world = row.tensor * row.pipeline * row.data * row.prefill_context
        assert world == len(parse_hardware(row.hardware, row.num_nodes).devices), row.id
        assert sum(row.pipeline_layers) in (0, 62), row.id


def test_json_values_are_json() -> None:
    for row in load_deployments():
        for name, value in row.settings:
            if value and value.startswith("{") and not value.endswith("IP}"):
                assert json.loads(value), (row.id, name)


@pytest.mark.parametrize(
    ("id", "metric", "concurrency", "value"),
    [
        ("D1", "weights_gib_per_gpu", 0, 53.75),
        ("D12", "output_tokens_per_s", 64, 2591),
        ("D12", "tpot_ms", 256, 34.05),
        ("D14", "output_tokens_per_s", 217, 4803.81),
        ("D15", "tpot_ms", 4, 105.54),
        ("D16", "ttft_ms", 4, 3305.25),
        ("D17", "tpot_ms", 10, 82.82),
    ],
)
def test_published_figures(id: str, metric: str, concurrency: int, value: float) -> None:
    found = [
        result.value
        for result in find_deployment(id).results
        if (result.metric, result.concurrency) == (metric, concurrency)
    ]
    assert found == [value]


def test_trusted_figures_obey_littles_law() -> None:
    """concurrency * output_len / (TTFT + (output_len - 1) * TPOT) is the output rate."""
    checked = 0
    for row in load_deployments():
        rates = {(r.metric, r.concurrency): r for r in row.results if r.is_trusted}
        for (metric, concurrency), rate in rates.items():
            ttft = rates.get(("ttft_ms", concurrency))
            tpot = rates.get(("tpot_ms", concurrency))
            if metric != "output_tokens_per_s" or not (ttft and tpot and rate.output_len):
                continue
            seconds = (ttft.value + (rate.output_len - 1) * tpot.value) / 1000
            ratio = rate.value / (concurrency * rate.output_len / seconds)
            assert 0.75 < ratio < 1.06, (row.id, concurrency, ratio)
            checked += 1
    assert checked >= 9


def test_the_ascend_run_had_1536_tokens_of_output() -> None:
    row = find_deployment("d14")
    rate = {r.metric: r.value for r in row.results}
    lengths = rate["total_tokens_per_s"] / rate["output_tokens_per_s"] - 1
    assert math.isclose(lengths, row.input_len / row.output_len, rel_tol=0.02)


def test_nodes_of_the_two_node_deployment() -> None:
    row = find_deployment("D16")
    assert len(row.node_flags) == row.num_nodes == 2
    assert ("--headless", None) not in split_flags(row.node_flags[0])
    assert ("--headless", None) in split_flags(row.node_flags[1])
    assert dict(row.environment)["HCCL_IF_IP"] == "{PrimaryNodeIP}"


def test_settings_are_split_at_the_first_blank() -> None:
    assert split_flags(("--a", '--b {"c": 1}')) == (("--a", None), ("--b", '{"c": 1}'))
    assert dict(find_deployment("D11").environment)["VLLM_PP_LAYER_PARTITION"] == "40,11,11"


def test_contradictions_name_their_deployments() -> None:
    topics = {c.id for c in contradictions_of(find_deployment("D12"))}
    assert {"C2", "C3", "C4", "C6", "C8"} <= topics
    for contradiction in load_contradictions():
        assert len(contradiction.says) >= 2
        assert contradiction.verdict
        assert contradiction.evidence


def test_an_unknown_id_is_refused() -> None:
    with pytest.raises(UsageError, match="one of D1, D2"):
        find_deployment("D99")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("document", "forum", "document: 'forum' is not a document"),
        ("variant_of", "D99", "variant_of: 'D99' is not a deployment"),
        ("node_flags", [["--a"], ["--b"]], "node_flags: 1 lists are needed"),
        ("flags", ["-tp 4"], "flags: '-tp 4' does not begin"),
        ("env", ["A B=1"], "env: 'A B=1' is not NAME=value"),
        ("env", ["AB"], "env: 'AB' is not NAME=value"),
        ("tensor", 0, "tensor: 0 is not positive"),
        ("results", [{"metric": "speed", "value": 1}], "results: metric 'speed' is unknown"),
        ("results", [{"metric": "tpot_ms", "value": 1, "is_trusted": False}], "needs a note"),
    ],
)
def test_broken_rows_are_refused(key: str, value: Any, message: str) -> None:
    broken = document()
    broken["deployment"][0][key] = value
    with pytest.raises(M2Error, match=rf"deployments\.toml, deployment 'D1'.*{message}"):
        read_deployments(broken)
