from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build_tiny

from m2serve.engine import model_runner, placement
from m2serve.engine.config import EngineConfig, KVCacheDType
from m2serve.engine.model_runner import ModelRunner, run_largest_step
from m2serve.environment import Machine
from m2serve.errors import ResourceError, UsageError
from m2serve.kernels.cpu_library import load_cpu_library


def machine(*flags: str) -> Machine:
    return Machine("a cpu", frozenset(flags), 6, 10**9, 10**9)


def test_the_largest_step_asks_for_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_tiny(tmp_path, hidden_size=48, num_hidden_layers=1)
    config = EngineConfig(
        model_path=str(tmp_path), kv_cache_memory_bytes=10**6, dtype="bfloat16", max_model_len=64
    )
    runner = ModelRunner.load(config, lambda fraction: None)
    assert runner.dtype_name == "bfloat16"
    result = run_largest_step(runner, 40)
    assert result.error is None
    assert result.token_id is not None
    assert [len(row) for row in result.prompt_logprobs] == [21] * 39
    monkeypatch.setattr(model_runner, "PROMPT_LOGITS_AT_ONCE", 7)
    sliced = run_largest_step(runner, 40)
    assert [row[0].token_id for row in sliced.prompt_logprobs] == [0] * 39
    for row, whole in zip(sliced.prompt_logprobs, result.prompt_logprobs, strict=True):
        assert row[0].logprob == pytest.approx(whole[0].logprob, abs=1e-2)


@pytest.mark.parametrize("name", ["auto", "float32", "bfloat16", "int8", "fp8"])
def test_the_cache_has_the_dtype_asked_for(tmp_path: Path, name: KVCacheDType) -> None:
    build_tiny(tmp_path, hidden_size=48, num_hidden_layers=1)
    config = EngineConfig(
        model_path=str(tmp_path),
        kv_cache_memory_bytes=10**6,
        dtype="float32",
        max_model_len=64,
        kv_cache_dtype=name,
    )
    if name in ("int8", "fp8") and load_cpu_library() is None:
        with pytest.raises(UsageError, match="PyTorch computes here"):
            ModelRunner.load(config, lambda fraction: None)
        return
    runner = ModelRunner.load(config, lambda fraction: None)
    assert runner.dtype_name == "float32"
    expected = "float32" if name == "auto" else name
    assert runner.kv_cache.keys.dtype == placement.KV_CACHE_DTYPES[expected]
    assert run_largest_step(runner, 40).error is None


def test_the_tokens_of_a_step_are_asked_for_or_those_of_the_device() -> None:
    asked, auto = (
        EngineConfig(model_path="x", max_num_batched_tokens=7),
        EngineConfig(model_path="x"),
    )
    for name, tokens in (("cpu", 1024), ("cuda", 2048)):
        device = torch.device(name)
        assert placement.choose_max_num_batched_tokens(asked, device) == 7
        assert placement.choose_max_num_batched_tokens(auto, device) == tokens


def test_pytorch_refuses_a_cache_it_cannot_read() -> None:
    config = EngineConfig(model_path="x", kv_cache_dtype="fp8")
    with pytest.raises(UsageError) as caught:
        placement.choose_kv_cache_dtype(config, "bfloat16", has_kernels=False)
    assert str(caught.value) == (
        "--kv-cache-dtype is fp8, which only the compiled CPU kernels read, and PyTorch computes "
        "here; allowed: auto, bfloat16, float32"
    )
    config = EngineConfig(model_path="x", kv_cache_dtype="bfloat16")
    assert placement.choose_kv_cache_dtype(config, "float32", has_kernels=False) == "bfloat16"
    assert (
        placement.choose_kv_cache_dtype(EngineConfig(model_path="x"), "b", has_kernels=False) == "b"
    )


@pytest.mark.parametrize(
    ("dtype", "has_kernels", "chosen"),
    [("auto", True, "bfloat16"), ("float32", True, "float32"), ("auto", False, "float32")],
)
def test_the_native_cache_is_bfloat16_unless_a_dtype_is_asked_for(
    dtype: Any, has_kernels: bool, chosen: str
) -> None:
    config = EngineConfig(model_path="x", dtype=dtype)
    assert placement.choose_kv_cache_dtype(config, "float32", has_kernels) == chosen


def test_the_device_is_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("auto", "cpu"):
        config = EngineConfig(model_path="x", device=device)
        assert placement.choose_device(config) == torch.device("cpu")
    with pytest.raises(ResourceError, match="--device cpu"):
        placement.choose_device(EngineConfig(model_path="x", device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = EngineConfig(model_path="x")
    assert placement.choose_device(config) == torch.device("cuda", 0)
    config = EngineConfig(model_path="x", device="cpu")
    assert placement.choose_device(config) == torch.device("cpu")


def test_the_dtype_is_what_the_hardware_computes() -> None:
    auto = EngineConfig(model_path="x")
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert placement.choose_dtype(auto, cpu, machine("avx2", "fma")) == "float32"
    assert placement.choose_dtype(auto, cpu, machine("avx2", "avx512_bf16")) == "bfloat16"
    assert placement.choose_dtype(auto, cuda, machine()) == "bfloat16"
    asked = EngineConfig(model_path="x", dtype="bfloat16")
    assert placement.choose_dtype(asked, cpu, machine()) == "bfloat16"


def test_threads_are_asked_for_or_one_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(num_threads: int = 0) -> int:
        config = EngineConfig(model_path="x", num_threads=num_threads)
        return placement.choose_num_threads(config, machine(), True)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert chosen() == 6
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert chosen() == 3
    assert chosen(2) == 2
    for odd in ("4,2", "²", ""):
        monkeypatch.setenv("OMP_NUM_THREADS", odd)
        assert chosen() == 6


def test_the_kernels_have_a_most_of_threads(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    auto, asked = EngineConfig(model_path="x"), EngineConfig(model_path="x", num_threads=192)
    many = replace(machine(), num_cores=192)
    assert placement.choose_num_threads(auto, many, False) == 192
    assert placement.choose_num_threads(auto, many, True) == 128
    assert not caplog.records
    assert placement.choose_num_threads(asked, machine(), True) == 128
    assert "192 threads are more than the CPU kernels use: 128" in caplog.text


def test_free_memory_of_the_cpu_is_some() -> None:
    assert placement.free_memory_bytes(torch.device("cpu")) > 0
