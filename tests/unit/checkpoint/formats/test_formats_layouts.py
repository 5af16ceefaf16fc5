"""Every storage format: its bytes, its quantiser against an independent reading, its refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_dequantize import from_file, from_weight

from m2serve.checkpoint.formats import FORMATS as KINDS
from m2serve.checkpoint.formats import (
    Dense,
    Fp8Block,
    Int4Awq,
    Int4Packed,
    Int8Ascend,
    Int8Channel,
    Mxfp4,
    Nvfp4CompressedTensors,
    Nvfp4ModelOpt,
    StorageFormat,
    fp8_block,
    int4_awq,
    int4_packed,
    int8,
    mxfp4,
    nvfp4,
)
from m2serve.checkpoint.formats.storage import TORCH_DTYPES, TensorInfo
from m2serve.checkpoint.names import LinearSpec
from m2serve.checkpoint.weights import Int4Weight, Int8Weight, Mxfp4Weight, Nvfp4Weight
from m2serve.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
NAME = "model.layers.0.self_attn.q_proj"


def spec(rows: int, columns: int) -> LinearSpec:
    return LinearSpec(NAME, rows, columns)


def quantize(format: StorageFormat, weight: torch.Tensor) -> Tensors:
    match format:
        case Dense():
            return {"weight": weight.bfloat16()}
        case Fp8Block(block_size=size):
            return fp8_block.quantize(weight, size)
        case Nvfp4ModelOpt():
            return nvfp4.quantize_modelopt(weight, input_amax=4.0)
        case Nvfp4CompressedTensors():
            return nvfp4.quantize_compressed_tensors(weight, input_amax=4.0)
        case Mxfp4(codes=codes):
            return mxfp4.quantize(weight, codes)
        case Int4Packed(group_size=size, symmetric=symmetric):
            return int4_packed.quantize(weight, group_size=size, symmetric=symmetric)
        case Int4Awq(group_size=size):
            return int4_awq.quantize(weight, group_size=size)
        case Int8Channel():
            return int8.quantize(weight)
        case Int8Ascend(static=static):
            return int8.quantize_ascend(weight, input_range=(-4.0, 3.0) if static else None)
    raise TypeError(format)


# Format, and the largest relative mean squared error its quantiser may make on a Gaussian.
CASES: list[tuple[StorageFormat, float]] = [
    (Dense(), 1e-5),
    (Fp8Block(), 1e-3),
    (Nvfp4ModelOpt(), 0.0095),
    (Nvfp4CompressedTensors(), 0.0095),
    (Mxfp4(), 0.015),
    (Mxfp4(codes="weight"), 0.015),
    (Int4Packed(group_size=32, symmetric=True), 0.0102),
    (Int4Packed(group_size=128, symmetric=True), 0.016),
    (Int4Packed(group_size=128, symmetric=False), 0.0125),
    (Int4Awq(group_size=128), 0.0125),
    (Int8Channel(), 1e-4),
    (Int8Ascend(static=False), 1e-4),
    (Int8Ascend(static=True), 1e-4),
]
FORMATS = [format for format, _ in CASES]


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


@pytest.mark.parametrize(("format", "limit"), CASES, ids=str)
def test_memory_holds_exactly_what_the_file_means(format: StorageFormat, limit: float) -> None:
    weight = gaussian(136, 256)
    tensors = quantize(format, weight)
    meant = from_file(format.name, tensors)
    loaded = format.from_tensors(spec(136, 256), tensors)
    np.testing.assert_array_equal(from_weight(loaded), meant)
    error = ((meant - weight.numpy()) ** 2).mean() / (weight.numpy() ** 2).mean()
    assert error < limit


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_a_format_recognises_its_own_tensors_and_their_rules(format: StorageFormat) -> None:
    linear = spec(136, 256)
    tensors = quantize(format, gaussian(136, 256))
    infos = {suffix: info_of(tensor) for suffix, tensor in tensors.items()}
    found = [kind.detect(linear, infos) for kind in KINDS]
    assert [detected for detected in found if detected is not None] == [format]
    rules = format.rules(linear)
    assert set(tensors) <= set(rules)
    for suffix, rule in rules.items():
        if suffix in infos:
            assert infos[suffix].dtype in rule.dtypes
            assert infos[suffix].shape in rule.shapes
        else:
            assert rule.optional


def info_of(tensor: torch.Tensor) -> TensorInfo:
    dtype = next(name for name, kind in TORCH_DTYPES.items() if kind == tensor.dtype)
    return TensorInfo(dtype, tuple(tensor.shape), "f", tensor.nbytes)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 5).map(lambda n: 8 * n),
    groups=st.integers(1, 3),
    kind=st.sampled_from(range(len(FORMATS))),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
)
def test_any_size_and_magnitude_survives(
    rows: int, groups: int, kind: int, seed: int, scale: float
) -> None:
    format = FORMATS[kind]
    weight = gaussian(rows, 128 * groups, seed) * scale
    tensors = quantize(format, weight)
    meant = from_file(format.name, tensors)
    loaded = format.from_tensors(spec(rows, 128 * groups), tensors)
    np.testing.assert_array_equal(from_weight(loaded), meant)
    assert np.abs(meant - weight.numpy()).max() <= 0.34 * float(weight.abs().max())


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_a_zero_matrix_stays_zero(format: StorageFormat) -> None:
    tensors = quantize(format, torch.zeros(16, 128))
    weight = from_weight(format.from_tensors(spec(16, 128), tensors))
    assert not weight.any()


def test_nvfp4_bytes() -> None:
    row = torch.tensor([[1.0, -1.5, 6.0, -0.5] + [0.0] * 12])
    tensors = nvfp4.quantize_modelopt(row, amax=6 * 448.0)
    assert tensors["weight"][0, :2].tolist() == [0xB2, 0x97]
    assert tensors["weight_scale_2"].item() == 1.0
    assert tensors["weight_scale"].view(torch.uint8).tolist() == [[0x38]]


def test_nvfp4_conventions_meet_in_memory() -> None:
    weight = gaussian(16, 64)
    amax = float(weight.abs().max())
    multiplier = nvfp4.quantize_modelopt(weight)
    divisor = nvfp4.quantize_compressed_tensors(weight)
    assert multiplier["weight_scale_2"].shape == ()
    assert multiplier["weight_scale_2"].item() == pytest.approx(amax / 2688)
    assert divisor["weight_global_scale"].shape == (1,)
    assert divisor["weight_global_scale"].item() == pytest.approx(2688 / amax)
    loaded = Nvfp4CompressedTensors().from_tensors(spec(16, 64), divisor)
    assert isinstance(loaded, Nvfp4Weight)
    assert loaded.global_scale == torch.tensor(1.0) / divisor["weight_global_scale"][0]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_global_scales_may_be_scalars_or_vectors_of_one(shape: tuple[int, ...]) -> None:
    tensors = nvfp4.quantize_modelopt(gaussian(8, 32), input_amax=1.0)
    for suffix in ("weight_scale_2", "input_scale"):
        tensors[suffix] = tensors[suffix].reshape(shape)
        assert shape in Nvfp4ModelOpt().rules(spec(8, 32))[suffix].shapes
    loaded = Nvfp4ModelOpt().from_tensors(spec(8, 32), tensors)
    assert isinstance(loaded, Nvfp4Weight)
    assert loaded.global_scale.shape == ()
    assert loaded.input_scale is not None
    assert loaded.input_scale.shape == ()


def test_nvfp4_block_scale_never_underflows_to_zero() -> None:
    weight = torch.zeros(1, 32)
    weight[0, 0], weight[0, 16] = 448.0, 1e-7
    scale = nvfp4.quantize_modelopt(weight)["weight_scale"].view(torch.uint8)
    assert scale.tolist() == [[0x7E, 0x01]]


def test_mxfp4_scale_is_a_power_of_two() -> None:
    weight = torch.zeros(1, 32)
    weight[0, 0] = 6.0 * 2**3
    tensors = mxfp4.quantize(weight)
    assert tensors["weight_scale"].item() == 127 + 3
    loaded = Mxfp4().from_tensors(spec(1, 32), tensors)
    assert isinstance(loaded, Mxfp4Weight)
    assert from_weight(loaded)[0, 0] == 48.0


def test_compressed_tensors_word_is_offset_binary() -> None:
    word = torch.tensor([[0x76543210]], dtype=torch.int32)
    tensors = {
        "weight_packed": word,
        "weight_scale": torch.ones(1, 1),
        "weight_shape": torch.tensor([1, 8]),
    }
    loaded = Int4Packed(group_size=8, symmetric=True).from_tensors(spec(1, 8), tensors)
    assert from_weight(loaded).tolist() == [[-8, -7, -6, -5, -4, -3, -2, -1]]


def test_compressed_tensors_zero_points_pack_along_rows() -> None:
    tensors = {
        "weight_packed": torch.full((8, 1), 0x11111111, dtype=torch.int32),
        "weight_scale": torch.ones(8, 1),
        "weight_shape": torch.tensor([8, 8]),
        "weight_zero_point": torch.tensor([[0x76543210]], dtype=torch.int32),
    }
    loaded = Int4Packed(group_size=8, symmetric=False).from_tensors(spec(8, 8), tensors)
    assert isinstance(loaded, Int4Weight)
    assert loaded.zero_point is not None
    assert loaded.zero_point.tolist() == [[row] for row in range(8)]
    assert from_weight(loaded)[:, 0].tolist() == [1 - row for row in range(8)]


def test_awq_word_interleaves_columns() -> None:
    tensors = {
        "qweight": torch.tensor([[0x75316420]] * 8, dtype=torch.int32),
        "qzeros": torch.zeros(1, 1, dtype=torch.int32),
        "scales": torch.ones(1, 8, dtype=torch.float16),
    }
    loaded = Int4Awq(group_size=8).from_tensors(spec(8, 8), tensors)
    assert from_weight(loaded)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_awq_and_compressed_tensors_mean_the_same() -> None:
    weight = gaussian(16, 256)
    awq = Int4Awq(128).from_tensors(spec(16, 256), int4_awq.quantize(weight, group_size=128))
    packed = int4_packed.quantize(
        weight, group_size=128, symmetric=False, scale_dtype=torch.float16
    )
    other = Int4Packed(128, False).from_tensors(spec(16, 256), packed)
    assert isinstance(awq, Int4Weight)
    assert isinstance(other, Int4Weight)
    assert torch.equal(awq.packed, other.packed)
    assert torch.equal(awq.scale, other.scale)
    assert awq.zero_point is not None
    assert other.zero_point is not None
    assert torch.equal(awq.zero_point, other.zero_point)


def test_packing_keeps_the_files_bytes() -> None:
    tensors = int4_packed.quantize(gaussian(8, 64), group_size=32)
    loaded = Int4Packed(32, True).from_tensors(spec(8, 64), tensors)
    assert isinstance(loaded, Int4Weight)
    assert loaded.packed.numpy().tobytes() == tensors["weight_packed"].numpy().tobytes()
    assert loaded.zero_point is None


def test_trivial_column_order_is_accepted_and_another_refused() -> None:
    tensors = int4_packed.quantize(gaussian(8, 64), group_size=32)
    format = Int4Packed(32, True)
    tensors["weight_g_idx"] = (torch.arange(64) // 32).int()
    format.from_tensors(spec(8, 64), tensors)
    tensors["weight_g_idx"] = tensors["weight_g_idx"].flip(0)
    with pytest.raises(CheckpointError, match=f"{NAME}.weight_g_idx"):
        format.from_tensors(spec(8, 64), tensors)


def test_wrong_weight_shape_is_refused() -> None:
    tensors = int4_packed.quantize(gaussian(8, 64), group_size=32)
    tensors["weight_shape"] = torch.tensor([64, 8])
    with pytest.raises(CheckpointError, match=f"{NAME}.weight_shape"):
        Int4Packed(32, True).from_tensors(spec(8, 64), tensors)


def test_fp8_scale_is_multiplied_and_ragged_edges_have_their_own_block() -> None:
    weight = torch.zeros(130, 129)
    weight[129, 128] = 448.0 * 3
    tensors = fp8_block.quantize(weight)
    assert tensors["weight_scale_inv"].shape == (2, 2)
    assert tensors["weight_scale_inv"][1, 1].item() == 3.0
    assert tensors["weight"].view(torch.uint8)[129, 128].item() == 0x7E


def test_fp8_scales_in_bf16_become_float32() -> None:
    tensors = fp8_block.quantize(gaussian(8, 8))
    tensors["weight_scale"] = tensors.pop("weight_scale_inv").bfloat16()
    loaded = Fp8Block(scale_suffix="weight_scale").from_tensors(spec(8, 8), tensors)
    np.testing.assert_array_equal(from_weight(loaded), from_file("fp8-block", tensors))


def test_ascend_static_parameters_are_kept_and_consistent() -> None:
    weight = gaussian(8, 32)
    tensors = int8.quantize_ascend(weight, input_range=(-4.0, 3.0))
    loaded = Int8Ascend(static=True).from_tensors(spec(8, 32), tensors)
    assert isinstance(loaded, Int8Weight)
    static = loaded.static_input
    assert static is not None
    x = torch.linspace(-3.9, 2.9, 32)
    quantised = (x / static.scale).round() + static.offset
    assert quantised.abs().max() <= 128
    y = (quantised @ loaded.weight.float().T + static.quant_bias) * static.deq_scale
    exact = torch.from_numpy(from_weight(loaded)) @ x
    torch.testing.assert_close(y, exact, rtol=0.02, atol=0.02)


def test_ascend_scales_stored_as_int64_bits() -> None:
    tensors = int8.quantize_ascend(gaussian(8, 32), input_range=(-4.0, 3.0))
    wanted = tensors["deq_scale"].clone()
    tensors["deq_scale"] = wanted.view(torch.int32).long()
    loaded = Int8Ascend(static=True).from_tensors(spec(8, 32), tensors)
    assert isinstance(loaded, Int8Weight)
    assert loaded.static_input is not None
    assert torch.equal(loaded.static_input.deq_scale, wanted)


def test_ascend_offset_must_be_zero() -> None:
    tensors = int8.quantize_ascend(gaussian(8, 32))
    tensors["weight_offset"][3] = 1
    with pytest.raises(CheckpointError, match=f"{NAME}.weight_offset"):
        Int8Ascend(static=False).from_tensors(spec(8, 32), tensors)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_a_poisoned_scale_names_its_tensor(format: StorageFormat) -> None:
    for suffix in format.scale_suffixes:
        tensors = quantize(format, gaussian(16, 128))
        if suffix not in tensors:
            continue
        if tensors[suffix].dtype == torch.uint8:
            tensors[suffix].view(-1)[-1] = 255
        elif tensors[suffix].dtype == torch.float8_e4m3fn:
            tensors[suffix].view(torch.uint8).view(-1)[-1] = 0x7F
        else:
            tensors[suffix].view(-1)[-1] = float("nan")
        with pytest.raises(CheckpointError, match=f"{NAME}.{suffix} holds"):
            format.from_tensors(spec(16, 128), tensors)
