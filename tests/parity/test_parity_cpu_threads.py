"""Any number of threads, on one NUMA node or on made-up ones, changes no bit of a result.

The machine has fewer cores than most of these: threads take turns on them, and nothing is bound.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from stored import FORMATS, make_weight, num_columns
from test_parity_cpu_experts import tamed
from test_parity_cpu_linear import assert_near, rounded_to_int8

from m2serve.bench.dummy import dummy_weights
from m2serve.bench.shapes import MID
from m2serve.checkpoint.weights import Weight
from m2serve.kernels import cpu_library, cpu_step, reference
from m2serve.kernels.cpu_attention import CpuTokenKernels
from m2serve.kernels.cpu_library import CpuLibrary, load_cpu_library
from m2serve.kernels.cpu_linear import CpuMatmul
from m2serve.kernels.cpu_topology import NodeThreads, NumaNode, spread_threads
from m2serve.model import native
from m2serve.model.native import NativeMiniMaxM2, make_model

LIBRARY = load_cpu_library()
if LIBRARY is None:
    pytest.skip("no native kernels here", allow_module_level=True)

THREADS = (1, 2, 3, 7, 64, 96, 128)


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    cpu_library._seats.cache_clear()


@pytest.fixture(params=[1, 2, 8], ids=lambda count: f"{count}-nodes")
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> CpuLibrary:
    """Thinks its threads are on so many nodes."""
    count: int = request.param

    def unbound(nodes: tuple[NumaNode, ...], num_threads: int) -> tuple[NodeThreads, ...]:
        return tuple(NodeThreads(n.num_threads, ()) for n in spread_threads(nodes, num_threads))

    monkeypatch.setattr(cpu_library, "spread_threads", unbound)
    cpu_library._seats.cache_clear()
    nodes = tuple(NumaNode(i, (i,)) for i in range(count))
    assert LIBRARY is not None
    return dataclasses.replace(LIBRARY, nodes=nodes)


def same_with_any_threads(compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    results = []
    for count in THREADS:
        torch.set_num_threads(count)
        results.append(compute())
        assert torch.equal(results[0], results[-1]), count
    return results[0]


@pytest.mark.parametrize("rows", [3072, 256, 40, 3])
def test_a_product_of_the_models_sizes(library: CpuLibrary, rows: int) -> None:
    weight = make_weight("nvfp4", rows, 1536)
    for num_tokens in (1, 6):
        x = torch.randn(num_tokens, 1536, generator=torch.Generator().manual_seed(num_tokens))
        matmul = CpuMatmul(library, "auto")
        y = same_with_any_threads(lambda: matmul.linear(x, weight))  # noqa: B023
        assert_near(y, x, weight)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_and_stacked_matrices(library: CpuLibrary, format: str) -> None:
    weight = make_weight(format, 130, 384, batch=(3, 2))
    for num_tokens in (1, 9):
        x = torch.randn(num_tokens, num_columns(weight))
        matmul = CpuMatmul(library, "auto")
        y = same_with_any_threads(lambda: matmul.linear(x, weight))  # noqa: B023
        assert_near(y, x, weight)


def test_eight_experts_of_the_models_sizes(library: CpuLibrary) -> None:
    """A hidden size of 3072 and experts of 1536, as in MiniMax-M2.5, one token on all of them."""
    w13 = tamed(make_weight("nvfp4", 1536, 3072, batch=(8, 2)))
    w2 = tamed(make_weight("nvfp4", 3072, 1536, batch=(8,), seed=1))
    x, ids = torch.randn(1, 3072), torch.randperm(8)[None]
    weights = torch.rand(ids.shape)
    matmul = CpuMatmul(library, "auto")
    y = same_with_any_threads(lambda: matmul.experts(x, w13, w2, weights, ids))
    expected = reference.experts(x, w13, w2, weights, ids)
    assert float((y - expected).abs().max()) < 3e-6 * float(expected.abs().max())


def test_many_tokens_on_odd_experts(library: CpuLibrary) -> None:
    w13 = tamed(make_weight("int8", 77, 130, batch=(9, 2)))
    w2 = tamed(make_weight("int8", 130, 77, batch=(9,), seed=1))
    x, ids = torch.randn(37, 130), torch.rand(37, 9).topk(3).indices
    weights = torch.rand(ids.shape)
    matmul = CpuMatmul(library, "auto")
    y = same_with_any_threads(lambda: matmul.experts(x, w13, w2, weights, ids))
    expected = reference.experts(x, w13, w2, weights, ids)
    assert float((y - expected).abs().max()) < 3e-6 * float(expected.abs().max())


@pytest.mark.parametrize("format", ["nvfp4", "int4-g128-zero-points", "int8"])
def test_slabs_are_never_cut(library: CpuLibrary, format: str) -> None:
    """Borders between threads and nodes lie between slabs, also where shares are few rows."""
    matmul = CpuMatmul(library, "int8")
    for rows in (16, 48, 256, 1040):
        weight = make_weight(format, rows, 512)
        for num_tokens in (1, 13):  # with AMX more are no int8
            x = torch.randn(num_tokens, 512)
            y = same_with_any_threads(lambda: matmul.linear(x, weight))  # noqa: B023
            rounded = rounded_to_int8(x, 16 if format == "nvfp4" else 32)
            assert_near(y, rounded, weight, offset_codes=True)
    width = 48 if format == "int8" else 128
    w13 = tamed(make_weight(format, width, 128, batch=(9, 2)))
    w2 = tamed(make_weight(format, 128, width, batch=(9,), seed=1))
    x, ids = torch.randn(37, 128), torch.rand(37, 9).topk(3).indices
    weights = torch.rand(ids.shape)
    y = same_with_any_threads(lambda: matmul.experts(x, w13, w2, weights, ids))
    expected = reference.experts(x, w13, w2, weights, ids)
    assert float((y - expected).abs().max()) < 5e-2 * float(expected.abs().max())


def test_routing_and_norms(library: CpuLibrary) -> None:
    kernels = CpuTokenKernels(library)
    x, gate = torch.randn(20, 96), torch.randn(256, 96) / 10
    for output in (0, 1):
        same_with_any_threads(lambda: kernels.route(x, gate, torch.zeros(256), 8)[output])  # noqa: B023
    same_with_any_threads(lambda: kernels.rms_norm(x, torch.ones(96), 1e-6))


def bytes_of(weight: Weight) -> list[torch.Tensor]:
    tensors = [getattr(weight, field.name) for field in dataclasses.fields(weight)]
    return [t.clone().view(torch.uint8) for t in tensors if isinstance(t, torch.Tensor) and t.ndim]


@pytest.mark.parametrize("library", [1, 3], indirect=True)
@pytest.mark.parametrize("format", ["nvfp4", "fp8", "int4-g32", "bf16"])
def test_moved_weights_hold_what_they_held(
    library: CpuLibrary, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they lie afterwards, only a machine of several nodes can tell."""
    monkeypatch.setattr(native, "load_cpu_library", lambda: library)
    shape = dataclasses.replace(
        MID, num_hidden_layers=1, hidden_size=1024, intermediate_size=512, num_local_experts=11
    )
    weights = dummy_weights(shape, format, device=torch.device("cpu"), dtype=torch.float32)
    moe = weights.layers[0].moe
    before = bytes_of(moe.w13), bytes_of(moe.w2)
    moved = []
    place = library.functions.m2_place_weights
    place.restype = ctypes.c_int64

    def counted(model: object) -> int:
        moved.append(place(model))
        return int(moved[-1])

    torch.set_num_threads(8)
    monkeypatch.setattr(library.functions, "m2_place_weights", counted)
    model = make_model(shape, weights)
    assert isinstance(model, NativeMiniMaxM2)
    for ours, theirs in zip(before, (bytes_of(moe.w13), bytes_of(moe.w2)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    if len(library.nodes) == 1:
        assert not moved
    else:
        whole = sum(part.numel() for part in before[0])
        # Small scales and the pages at the ends stay.
        assert moved[0] > 0.5 * whole


@pytest.mark.parametrize("library", [2], indirect=True)
def test_what_happened_to_the_weights_is_said(
    library: CpuLibrary, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    torch.set_num_threads(8)
    model = cpu_step.CpuModel()
    monkeypatch.setattr(library.functions, "m2_place_weights", lambda model: 3 << 30)
    cpu_step.CpuStep(library, model)
    monkeypatch.setattr(library.functions, "m2_place_weights", lambda model: 0)
    cpu_step.CpuStep(library, model)
    moved, stayed = (record.getMessage() for record in caplog.records)
    assert "8 threads on 2 NUMA nodes, each with its share of 3.00 GiB" in moved
    assert "the weights stay where they were loaded" in stayed
