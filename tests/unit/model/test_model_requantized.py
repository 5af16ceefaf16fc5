"""A model whose attention and head were requantised while loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build_tiny

from m2serve.checkpoint.reader import Checkpoint
from m2serve.checkpoint.weights import DenseWeight, Fp8BlockWeight, Int8Weight
from m2serve.engine.engine import Engine
from m2serve.engine.request import SamplingParams
from m2serve.errors import CheckpointError, ResourceError, UsageError
from m2serve.kernels.dequantize import dequantize
from m2serve.model.loader import load_model
from m2serve.model.minimax_m2 import MiniMaxM2
from m2serve.spec.cost import weight_bytes

SMALL: dict[str, Any] = {"num_hidden_layers": 2, "num_local_experts": 3}
CPU = torch.device("cpu")
GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)


def load(folder: Path, dtype: torch.dtype = torch.bfloat16, **formats: Any) -> MiniMaxM2:
    with Checkpoint.open(folder) as checkpoint:
        return load_model(checkpoint, CPU, dtype, **formats)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model as FP8, as the BF16 somebody made of it, and with NVFP4 experts."""
    root = tmp_path_factory.mktemp("requantized")
    fp8 = build_tiny(root / "fp8", format="fp8", **SMALL)
    build_tiny(root / "bf16", format="bf16", state=fp8.state, **SMALL)
    build_tiny(root / "nvfp4", format="nvfp4-modelopt", **SMALL)
    build_tiny(root / "int8", format="int8-ct", **SMALL)
    build_tiny(root / "awq", format="int4-awq", **SMALL)
    return {name: root / name for name in ("fp8", "bf16", "nvfp4", "int8", "awq")}


def test_attention_made_of_the_bf16_copy_is_the_original_fp8(folders: dict[str, Path]) -> None:
    original = load(folders["fp8"]).weights
    made = load(folders["bf16"], attention_format="fp8").weights
    for ours, theirs in zip(made.layers, original.layers, strict=True):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            a, b = getattr(ours.attention, name), getattr(theirs.attention, name)
            assert isinstance(a, Fp8BlockWeight)
            assert isinstance(b, Fp8BlockWeight)
            assert torch.equal(a.weight.view(torch.uint8), b.weight.view(torch.uint8))
            assert torch.equal(dequantize(a).bfloat16(), dequantize(b).bfloat16())
        assert isinstance(ours.moe.w13, DenseWeight)
    assert isinstance(made.lm_head, DenseWeight)


def test_each_option_changes_its_own_part(folders: dict[str, Path]) -> None:
    weights = load(folders["bf16"], attention_format="int8", head_format="fp8").weights
    assert isinstance(weights.layers[1].attention.o_proj, Int8Weight)
    assert isinstance(weights.lm_head, Fp8BlockWeight)
    assert weights.embedding.dtype == torch.bfloat16


def test_what_is_in_the_format_already_stays_bit_for_bit(folders: dict[str, Path]) -> None:
    for name, wanted in (("fp8", "fp8"), ("int8", "int8")):
        before = load(folders[name]).weights
        after = load(folders[name], attention_format=wanted).weights
        assert after.bytes_saved == 0
        a, b = before.layers[0].attention.q_proj, after.layers[0].attention.q_proj
        assert isinstance(a, Fp8BlockWeight | Int8Weight)
        assert isinstance(b, Fp8BlockWeight | Int8Weight)
        assert torch.equal(a.weight.view(torch.uint8), b.weight.view(torch.uint8))
        assert torch.equal(a.scale, b.scale)


def test_bf16_is_bf16_in_memory_whatever_is_computed_in(folders: dict[str, Path]) -> None:
    plain = load(folders["bf16"], torch.float32).weights
    half = load(folders["bf16"], torch.float32, attention_format="bf16", head_format="bf16").weights
    assert isinstance(half.lm_head, DenseWeight)
    assert isinstance(plain.lm_head, DenseWeight)
    assert half.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(half.lm_head.weight.float(), plain.lm_head.weight.float())
    assert half.bytes_saved == plain.nbytes - half.nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_the_bytes_saved_are_those_that_are_gone(
    folders: dict[str, Path], format: str, dtype: torch.dtype
) -> None:
    before = load(folders["nvfp4"], dtype)
    after = load(folders["nvfp4"], dtype, attention_format=format, head_format=format)
    assert after.weights.bytes_saved == before.weights.nbytes - after.weights.nbytes
    if dtype == torch.bfloat16:
        dense = weight_bytes(before.shape, attention="bf16", experts="nvfp4")
        small = weight_bytes(before.shape, attention=format, experts="nvfp4", head=format)
        assert after.weights.bytes_saved == dense.total - small.total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["fp8", "bf16", "nvfp4", "int8", "awq"])
def test_weights_that_do_not_fit_are_refused_by_their_exact_size(
    folders: dict[str, Path], name: str, dtype: torch.dtype
) -> None:
    formats = {"head_format": "fp8"} if name in ("bf16", "nvfp4") else {}
    size = load(folders[name], dtype, **formats).weights.nbytes
    fractions: list[float] = []
    with pytest.raises(ResourceError, match=r"the weights take .* are free on cpu"):
        load(folders[name], dtype, progress=fractions.append, free_bytes=size - 1, **formats)
    assert fractions == []
    load(folders[name], dtype, free_bytes=size, **formats)


def test_a_format_that_is_no_source_is_refused_before_reading(folders: dict[str, Path]) -> None:
    fractions: list[float] = []
    with Checkpoint.open(folders["fp8"]) as checkpoint, pytest.raises(UsageError) as caught:
        load_model(checkpoint, CPU, torch.float32, fractions.append, attention_format="int8")
    assert "--attention-format is int8" in str(caught.value)
    assert "model.layers.0.self_attn.q_proj is stored as fp8-block" in str(caught.value)
    assert fractions == []
    with pytest.raises(UsageError, match="--head-format is 'nvfp4'"):
        load(folders["bf16"], head_format="nvfp4")


def test_a_poisoned_head_is_named(tmp_path: Path) -> None:
    state = build_tiny(tmp_path / "good", **SMALL).state
    state["lm_head.weight"][7, 7] = float("nan")
    build_tiny(tmp_path / "bad", state=state, **SMALL)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight holds NaN or Inf .*\[7, 7\]"):
        load(tmp_path / "bad", head_format="fp8")


def test_the_engine_generates_and_tells_what_was_saved(folders: dict[str, Path]) -> None:
    formats_of_each: list[dict[str, Any]] = [{}, {"attention_format": "fp8"}]
    formats_of_each.append({"head_format": "int8"})
    engines = [
        Engine.load(folders["bf16"], device="cpu", dtype="float32", max_model_len=64, **formats)
        for formats in formats_of_each
    ]
    texts = [engine.generate([[5, 6, 7]], GREEDY)[0].token_ids for engine in engines]
    assert len(texts[2]) == 24
    # The same values up to a rounding of BF16's last bit, so the same first tokens.
    assert texts[0][:4] == texts[1][:4]
    plain, attention, head = (engine.info for engine in engines)
    assert plain.weight_bytes_saved == 0
    for info in (attention, head):
        assert info.weight_bytes + info.weight_bytes_saved == plain.weight_bytes


def test_rounded_activations_need_the_native_kernels(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m2serve.model.native.load_cpu_library", lambda: None)
    with (
        Checkpoint.open(folders["nvfp4"]) as checkpoint,
        pytest.raises(UsageError, match="--cpu-activation int8 is for the native CPU kernels"),
    ):
        load_model(checkpoint, torch.device("cpu"), torch.float32, cpu_activation="int8")
