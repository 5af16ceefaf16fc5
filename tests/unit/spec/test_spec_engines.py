"""What each release of each engine knows."""

import copy
from typing import Any, get_args

import pytest

from m2serve.errors import M2Error, UsageError
from m2serve.records import EngineName
from m2serve.spec.deployments import load_deployments
from m2serve.spec.engines import find_engine, load_engines, read_engines
from m2serve.spec.hardware import load_accelerators
from m2serve.spec.tables import read_toml
from m2serve.spec.variants import load_variants
from m2serve.spec.versions import Version


def document() -> dict[str, Any]:
    return copy.deepcopy(read_toml("engines.toml"))


def moe(engine: str, format: str, arch: str, version: str) -> list[str]:
    kernels = find_engine(engine).kernels_for("moe", format, arch, version)
    return [kernel.name for kernel in kernels if not kernel.is_broken]


def test_the_four_engines() -> None:
    assert {engine.name for engine in load_engines()} == set(get_args(EngineName))
    for engine in load_engines():
        assert engine.source, engine.name
        first, default = Version.parse(engine.first_version), Version.parse(engine.default_version)
        assert first <= default
        assert engine.command[-1] == "{model}"
        assert all(floor.reason and floor.source for floor in engine.floors)
        assert all(kernel.source for kernel in engine.kernels)


def test_architectures_are_those_of_the_hardware_table() -> None:
    known = {row.arch for row in load_accelerators()}
    words = {variant.quantization for variant in load_variants()}
    bases = {variant.base for variant in load_variants()}
    for engine in load_engines():
        assert set(engine.archs) <= known, engine.name
        assert set(engine.quantizations) <= words, engine.name
        for row in (*engine.kernels, *engine.images):
            assert set(row.archs) <= set(engine.archs), row
        for floor in engine.floors:
            assert floor.arch in {"", *engine.archs}
            assert floor.quantization in {"", *engine.quantizations}
            assert floor.base in {"", *bases}


@pytest.mark.parametrize("operation", ["moe", "linear", "attention"])
def test_every_architecture_has_a_kernel_for_bf16(operation: str) -> None:
    for engine in load_engines():
        for arch in engine.archs:
            found = engine.kernels_for(operation, "bf16", arch, engine.default_version)
            assert found, (engine.name, arch)


@pytest.mark.parametrize(
    ("engine", "key", "version", "flag"),
    [
        ("vllm", "moe_backend", "0.16.0", None),
        ("vllm", "moe_backend", "0.17.0", "--moe-backend"),
        ("vllm", "attention_backend", "0.12.0", None),
        ("vllm", "attention_backend", "0.13.0", "--attention-backend"),
        ("vllm", "swap_space", "0.20.2", None),
        ("vllm", "max_num_seqs", "nightly", "--max-num-seqs"),
        ("sglang", "max_num_seqs", "0.5.9", "--max-running-requests"),
        ("sglang", "tensor_parallel_size", "0.5.9", "--tp-size"),
        ("sglang", "linear_backend", "0.5.5", None),
        ("sglang", "nsa_prefill_backend", "0.5.23", None),
        ("vllm-ascend", "moe_backend", "0.20.2rc1", None),
        ("own", "max_model_len", "0.1.0", "--max-model-len"),
        ("own", "tensor_parallel_size", "0.1.0", None),
    ],
)
def test_flags_by_version(engine: str, key: str, version: str, flag: str | None) -> None:
    assert find_engine(engine).flag(key, version) == flag


def test_variables_that_went_away() -> None:
    vllm = find_engine("vllm")
    for name in ("VLLM_USE_FLASHINFER_MOE_FP8", "VLLM_USE_FLASHINFER_MOE_FP4"):
        assert vllm.knows_env(name, "0.24.0")
        assert not vllm.knows_env(name, "0.25.0")
    assert vllm.knows_env("VLLM_ATTENTION_BACKEND", "0.14.0")
    assert not vllm.knows_env("VLLM_ATTENTION_BACKEND", "0.15.0")
    assert not vllm.knows_env("VLLM_NO_SUCH_THING", "0.20.2")


def test_kernels_by_architecture() -> None:
    assert moe("vllm", "fp8", "sm_80", "0.20.2") == ["marlin"]
    assert moe("vllm", "nvfp4", "sm_90", "0.20.2") == ["marlin"]
    assert moe("vllm", "nvfp4", "sm_90", "0.22.0") == ["humming", "marlin"]
    assert moe("vllm", "nvfp4", "sm_121", "0.33.0") == ["marlin"]
    assert "b12x" in moe("vllm", "nvfp4", "sm_120", "0.22.0")
    assert "b12x" not in moe("vllm", "nvfp4", "sm_120", "0.20.2")
    assert moe("vllm", "fp8", "sm_100", "0.20.2")[0] == "flashinfer-trtllm"
    assert "flashinfer-trtllm" not in moe("vllm", "fp8", "sm_120", "0.20.2")
    assert "deep-gemm" not in moe("vllm", "fp8", "sm_120", "0.20.2")
    assert moe("vllm", "fp8", "gfx942", "0.20.2")[0] == "aiter"
    assert moe("vllm", "int4-g128-zp", "sm_90", "0.15.1") == ["marlin"]
    assert moe("sglang", "fp8", "sm_80", "0.5.9") == []
    assert moe("vllm-ascend", "fp8", "ascend-910b", "0.18.0") == []
    assert moe("vllm-ascend", "int8", "ascend-910c", "0.18.0") == ["npu-grouped-matmul"]


def test_floors() -> None:
    vllm = find_engine("vllm")
    assert vllm.floors_for("M2.5", "fp8", "sm_90")[0].version == "0.20.2"
    assert vllm.floors_for("M2.7", "nvfp4", "sm_120")[0].version == "0.20.1"
    assert vllm.floors_for("M2", "nvfp4", "sm_100")[0].version == "0.15.1"
    assert vllm.floors_for("M2", "fp8", "sm_90")[-1].version == "0.11.1"
    assert (
        find_engine("vllm-ascend").floors_for("M2.5", "fp8", "ascend-910b")[0].version == "0.18.0"
    )
    assert find_engine("own").floors_for("M2.5", "fp8", "cpu") == ()


def test_defaults_depend_on_release_and_device() -> None:
    vllm = find_engine("vllm")
    assert vllm.default("gpu_memory_utilization", "0.19.0") == "0.9"
    assert vllm.default("gpu_memory_utilization", "0.20.0") == "0.92"
    big = vllm.default("max_num_batched_tokens", "0.20.2", arch="sm_90", device_gib=140)
    a100 = vllm.default("max_num_batched_tokens", "0.20.2", arch="sm_80", device_gib=80)
    assert (big, a100) == ("8192", "2048")
    assert vllm.default("no_such_key", "0.20.2") is None


def test_images() -> None:
    vllm = find_engine("vllm")
    assert vllm.image_for("0.16.0") == "vllm/vllm-openai:v0.16.0"
    assert vllm.image_for("v0.16.0") == "vllm/vllm-openai:v0.16.0"
    assert vllm.image_for("nightly") == "vllm/vllm-openai:nightly"
    assert vllm.image_for("0.20.2", "gfx950") == "vllm/vllm-openai-rocm:v0.20.2"
    assert find_engine("vllm-ascend").image_for("0.18.0", "ascend-910c").endswith(":v0.18.0-a3")
    assert find_engine("own").image_for("0.1.0") == ""


def test_parsers() -> None:
    names = {
        e.name: (e.reasoning_parser, e.append_think_parser, e.tool_parser) for e in load_engines()
    }
    assert names["vllm"] == ("minimax_m2", "minimax_m2_append_think", "minimax_m2")
    assert names["sglang"] == ("minimax", "minimax-append-think", "minimax-m2")


def test_flags_of_the_documents_are_known_to_the_releases_they_name() -> None:
    for deployment in load_deployments():
        engine = find_engine(deployment.engine)
        for name, _ in deployment.settings:
            plain = name.replace("_", "-")
            assert engine.knows_flag(plain, deployment.engine_version), (deployment.id, name)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="one of vllm"):
        find_engine("vlmm")
    with pytest.raises(UsageError, match="version"):
        find_engine("vllm").flag("max_num_seqs", "cf3eacfe")


def test_broken_tables_are_refused() -> None:
    broken = document()
    broken["engine"][0]["flags"][0]["since"] = "soon"
    with pytest.raises(M2Error, match="engine 'vllm': version 'soon'"):
        read_engines(broken)
    broken = document()
    broken["engine"][0]["flags"][0].update(since="0.2", until="0.1")
    with pytest.raises(M2Error, match="ends before it begins"):
        read_engines(broken)
    broken = document()
    broken["engine"][0]["kernels"][0]["operation"] = "norm"
    with pytest.raises(M2Error, match="kernel 'aiter': operation 'norm'"):
        read_engines(broken)
    broken = document()
    broken["engine"][1]["kernels"][0]["choice_key"] = "moe"
    with pytest.raises(M2Error, match="no flag 'moe'"):
        read_engines(broken)
    broken = document()
    broken["engine"][0]["flags"][0]["nmae"] = "x"
    with pytest.raises(M2Error, match=r"engines\.toml, engine 'vllm', flags\[0\]: key 'nmae'"):
        read_engines(broken)
