"""`m2 bench`: measure."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from m2serve.checkpoint.hub import resolve
from m2serve.engine.config import CpuActivation, Device, DType, KVCacheDType
from m2serve.errors import ResourceError, UsageError

if TYPE_CHECKING:
    import torch

    from m2serve.bench.engine import EngineBenchResult, Spread
    from m2serve.model.minimax_m2 import MiniMaxM2
    from m2serve.spec.shape import ModelShape

app = typer.Typer(help="Measure.", no_args_is_help=True, rich_markup_mode=None)

Shape = Literal["m2.5", "mid", "miniature"]
Format = Literal["bf16", "fp8", "nvfp4", "mxfp4", "int4-g32", "int4-g128", "int8"]


@app.callback()
def bench() -> None:
    """Measure."""


@app.command()
def engine(
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint folder. Default: random weights in --shape.")
    ] = None,
    shape: Annotated[
        Shape | None, typer.Option(help="Widths of the random weights. Default: mid.")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Of random weights. Default: the shape's own.")
    ] = None,
    format: Annotated[
        Format | None,
        typer.Option(help="Of random experts. Default: bf16, held as a checkpoint's."),
    ] = None,
    attention_format: Annotated[
        Format | None,
        typer.Option(help="Of q, k, v and o. Default: as stored; random ones bf16."),
    ] = None,
    head_format: Annotated[
        Format | None,
        typer.Option(help="Of the output head. Default: as stored; random ones bf16."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences together.")] = 1,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 512,
    output: Annotated[int, typer.Option(min=2, help="Tokens each sequence generates.")] = 64,
    context: Annotated[
        int, typer.Option(min=0, help="Tokens each sequence has in the KV cache before its prompt.")
    ] = 0,
    repeat: Annotated[int, typer.Option(min=1, help="Runs; medians are printed.")] = 3,
    num_threads: Annotated[
        int,
        typer.Option(min=0, max=4096, help="0: OMP_NUM_THREADS, else one a physical core."),
    ] = 0,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = "auto",
    dtype: Annotated[DType, typer.Option(help="auto: bfloat16 where it is fast.")] = "auto",
    cpu_activation: Annotated[
        CpuActivation,
        typer.Option(
            help="To what the CPU kernels round; int8: faster with NVFP4, MXFP4, INT4 and INT8."
        ),
    ] = "auto",
    kv_cache_dtype: Annotated[
        KVCacheDType, typer.Option(help="As of m2 serve; int8 and fp8 on a CPU.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Speed of the engine by itself: its scheduler, sampler and model, without HTTP."""
    # torch takes a second to import, which the other commands should not pay for.
    import torch

    from m2serve.bench.engine import run_engine_bench
    from m2serve.bench.generation import EngineBenchConfig
    from m2serve.engine.config import EngineConfig
    from m2serve.engine.placement import (
        DTYPES,
        choose_device,
        choose_dtype,
        choose_kv_cache_dtype,
        choose_num_threads,
        has_cpu_kernels,
    )
    from m2serve.environment import ask_for_huge_pages, this_machine
    from m2serve.model.native import NativeMiniMaxM2

    if model is not None and (shape or layers or format):
        raise UsageError("--shape, --layers and --format describe random weights, not MODEL's")
    ask_for_huge_pages()
    machine = this_machine()
    asked = EngineConfig(
        model_path="",
        device=device,
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        num_threads=num_threads,
    )
    chosen = choose_device(asked)
    chosen_dtype = choose_dtype(asked, chosen, machine)
    has_kernels = has_cpu_kernels(chosen)
    threads = choose_num_threads(asked, machine, has_kernels)
    torch.set_num_threads(threads)
    choose_kv_cache_dtype(asked, chosen_dtype, has_kernels)  # refused before loading
    formats = (attention_format or "", head_format or "")
    with Console(stderr=True).status("Loading weights"):
        if model is not None:
            measured = _stored(model, *formats, chosen, DTYPES[chosen_dtype], cpu_activation)
        else:
            measured = _random(
                shape or "mid",
                layers,
                format or "bf16",
                *formats,
                chosen,
                DTYPES[chosen_dtype],
                cpu_activation,
            )
    kv_dtype = choose_kv_cache_dtype(asked, chosen_dtype, isinstance(measured, NativeMiniMaxM2))
    config = EngineBenchConfig(batch, prompt, output, context, repeat, kv_dtype)
    with Console(stderr=True).status("Measuring"):
        result = run_engine_bench(measured, config)
    if as_json:
        settings = {
            "model": model,
            "shape": None if model else shape or "mid",
            "layers": measured.shape.num_hidden_layers,
            "format": None if model else format or "bf16",
            "attention_format": attention_format,
            "head_format": head_format,
            **dataclasses.asdict(config),
            "num_threads": threads,
            "device": str(chosen),
            "dtype": chosen_dtype,
            "cpu_activation": cpu_activation,
            "machine": torch.cuda.get_device_name() if chosen.type == "cuda" else machine.cpu_name,
        }
        print(json.dumps({**settings, **dataclasses.asdict(result)}, indent=2))
    else:
        _show(result, Console(highlight=False))


def _stored(
    model: str,
    attention_format: Any,
    head_format: Any,
    device: torch.device,
    dtype: torch.dtype,
    cpu_activation: CpuActivation,
) -> MiniMaxM2:
    """A checkpoint; raises M2Error, also for a format that weights cannot be requantised to."""
    from m2serve.checkpoint.reader import Checkpoint
    from m2serve.engine.placement import free_memory_bytes
    from m2serve.model.loader import load_model

    with Checkpoint.open(resolve(model)) as checkpoint:
        return load_model(
            checkpoint,
            device,
            dtype,
            attention_format=attention_format,
            head_format=head_format,
            cpu_activation=cpu_activation,
            free_bytes=free_memory_bytes(device),
        )


def _random(
    shape: str,
    layers: int | None,
    format: str,
    attention_format: str,
    head_format: str,
    device: torch.device,
    dtype: torch.dtype,
    cpu_activation: CpuActivation,
) -> MiniMaxM2:
    from m2serve.bench.dummy import dummy_weights
    from m2serve.bench.shapes import named_shape
    from m2serve.model.native import make_model

    widths = named_shape(shape, layers)
    _check_room(widths, format, attention_format, head_format, device, dtype)
    weights = dummy_weights(
        widths,
        format,
        attention_format=attention_format,
        head_format=head_format,
        device=device,
        dtype=dtype,
    )
    return make_model(widths, weights, cpu_activation)


def _check_room(
    shape: ModelShape,
    format: str,
    attention_format: str,
    head_format: str,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Raises ResourceError where random weights of these widths are more than the memory."""
    import torch

    from m2serve.engine.placement import free_memory_bytes
    from m2serve.kernels.dispatch import linear_dtype
    from m2serve.spec.cost import weight_bytes

    names = {torch.float32: "f32", torch.bfloat16: "bf16"}
    stored = names[linear_dtype(device, torch.bfloat16, dtype)]
    needed = weight_bytes(
        shape,
        attention=attention_format or stored,
        experts=stored if format == "bf16" else format,
        embedding=stored,
        head=head_format or stored,
    ).total
    free = free_memory_bytes(device)
    if needed > free:
        raise ResourceError(
            f"weights of {shape.num_hidden_layers} layers take {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free; give fewer --layers or a smaller --format"
        )


def _show(result: EngineBenchResult, console: Console) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column()
    rows = [
        ("parameters", f"{result.parameters:,}", f"{result.weight_bytes / 1e9:,.3f} GB"),
        ("prefill", *_rate(result.prefill_tokens_per_s)),
        ("decode", *_rate(result.decode_tokens_per_s)),
        ("decode step", f"{result.decode_step_s * 1e3:,.2f}", "ms"),
        ("a layer of it", f"{result.decode_layer_s * 1e3:,.3f}", "ms"),
        ("bytes a step", f"{result.decode_bytes / 1e6:,.1f}", "MB"),
        ("bytes a token", f"{result.decode_bytes_per_token / 1e6:,.1f}", "MB"),
        ("read rate", f"{result.decode_gb_per_s:,.2f}", "GB/s"),
        (
            "of",
            f"{result.read_bandwidth_gb_per_s:,.2f}",
            f"GB/s, the better of before and after; share {result.bandwidth_share:.0%}",
        ),
        ("peak memory", f"{result.peak_memory_bytes / 1e9:,.3f}", "GB"),
    ]
    for row in rows:
        table.add_row(*row)
    for name, seconds in result.operations_s.items():
        by = result.implementations.get(name, "")
        table.add_row(f"  {name}", f"{seconds * 1e3:,.3f}", f"ms  {by}")
    console.print(table)


def _rate(spread: Spread) -> tuple[str, str]:
    return f"{spread.median:,.1f}", f"tokens/s ({spread.minimum:,.1f} to {spread.maximum:,.1f})"
