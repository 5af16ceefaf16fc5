"""The rules by which published rows are read or left out."""

import pytest

from m2serve.plan.measured_rows import (
    data_centre_rows,
    is_cached,
    is_host_bound,
    num_cards,
    power_cap_w,
    shares_too_much_context,
    suite_rows,
    version_label,
)

CENTRE = {
    "system": "b200_sxm",
    "precision": "fp8",
    "backend_version": "0.19.0",
    "isl": "1024",
    "osl": "1024",
    "tp_size": "4",
    "attention_dp_size": "1",
    "moe_ep_size": "1",
    "conc": "16",
    "silicon_ttft_ms": "85",
    "silicon_tpot_ms": "10.4",
}
SUITE = {
    "file": "benchmark_M2_20260101.csv",
    "gpu": "2x NVIDIA RTX PRO 6000 Blackwell Workstation Edition (192GB)",
    "version": "0.15.1",
    "root": "lukealonso/MiniMax-M2.5-NVFP4",
    "prompt": "5287",
    "conc": "1",
    "tpot_ms": "11.3",
    "prefill_s": "0.24",
    "hit": "48",
    "watts": "1100",
}


def suite(**changes: object) -> dict[str, str]:
    return {**SUITE, **{name: str(value) for name, value in changes.items()}}


def test_repeated_rows_count_once() -> None:
    assert len(data_centre_rows([CENTRE, dict(CENTRE)])) == 1


def test_data_parallel_rows_are_recorded_as_a_product() -> None:
    [row] = data_centre_rows([{**CENTRE, "attention_dp_size": "4", "moe_ep_size": "16"}])
    assert (row.point.num_devices, row.point.tensor, row.point.data) == (4, 1, 4)
    assert row.point.expert_parallel


@pytest.mark.parametrize(
    ("tensor", "said", "precision", "is_whole"),
    [
        ("8", "1", "fp8", True),
        ("4", "1", "fp8", False),
        ("4", "4", "fp8", True),
        ("8", "1", "fp4", False),
    ],
)
def test_a_cut_that_cannot_be_is_one_of_whole_experts(
    tensor: str, said: str, precision: str, is_whole: bool
) -> None:
    row = {**CENTRE, "tp_size": tensor, "moe_ep_size": said, "precision": precision}
    [measured] = data_centre_rows([row])
    assert measured.point.expert_parallel is is_whole


def test_mislabelled_rows_are_left_out() -> None:
    assert data_centre_rows([{**CENTRE, "system": "h100_sxm", "attention_dp_size": "4"}]) == []


def test_a_full_cache_makes_no_first_token_and_fewer_users() -> None:
    full = {**CENTRE, "system": "h100_sxm", "isl": "8192", "conc": "64", "moe_ep_size": "4"}
    [row] = data_centre_rows([full])
    assert row.ttft_ms is None
    assert 20 < row.point.users < 40
    [row] = data_centre_rows([{**full, "conc": "4"}])
    assert row.ttft_ms == 85
    assert row.point.users == 4


def test_a_host_bound_file_is_left_out_whole() -> None:
    flat = [suite(conc=1, tpot_ms=44), suite(conc=16, tpot_ms=45)]
    assert is_host_bound(flat)
    assert suite_rows(flat) == []
    assert not is_host_bound([suite(conc=1, tpot_ms=11), suite(conc=16, tpot_ms=24)])


@pytest.mark.parametrize(
    ("row", "is_left_out"), [(suite(conc=64, prompt=5287), True), (suite(conc=16), False)]
)
def test_much_shared_context_is_left_out(row: dict[str, str], is_left_out: bool) -> None:
    assert shares_too_much_context(row) is is_left_out


@pytest.mark.parametrize(
    ("row", "expected"),
    [(suite(), False), (suite(hit=99), True), (suite(prompt=243, hit=10), True)],
)
def test_cached_prompts_have_no_cold_first_token(row: dict[str, str], expected: bool) -> None:
    assert is_cached(row) is expected
    [measured] = suite_rows([row])
    assert (measured.ttft_ms is None) is expected


@pytest.mark.parametrize(
    ("row", "watts"),
    [
        (suite(file="benchmark_250W_M2_2026.csv"), 250),
        (suite(watts=766), 353),
        (suite(watts=""), 0),
        (suite(gpu="NVIDIA RTX PRO 6000 (+ 2 other GPUs)"), 0),
    ],
)
def test_power_caps(row: dict[str, str], watts: float) -> None:
    assert power_cap_w(row["file"], [row]) == watts


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4x NVIDIA RTX PRO 6000", 4),
        ("NVIDIA RTX PRO 6000 / NVIDIA RTX PRO 6000 / NVIDIA GeForce RTX 5090", 2),
        ("NVIDIA RTX PRO 6000 (+ 2 other GPUs)", 2),
    ],
)
def test_cards_are_counted_however_written(text: str, count: int) -> None:
    assert num_cards(text) == count


def test_nightly_builds_are_one_version() -> None:
    assert version_label("nightly-5b8c30d") == "nightly"
    assert version_label("0.19.0") == "0.19.0"
