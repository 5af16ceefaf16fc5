"""`m2 bench`: measure."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from m2serve.bench.engine import EngineBenchResult

app = typer.Typer(help="Measure.", no_args_is_help=True, rich_markup_mode=None)

Shape = Literal["m2.5", "mid"]
Format = Literal["bf16", "fp8", "nvfp4", "mxfp4", "int4-g32", "int4-g128", "int8"]
Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "bfloat16", "float32"]


@app.callback()
def bench() -> None:
    """Measure."""


@app.command()
def engine(
    shape: Annotated[Shape, typer.Option(help="Widths of the dummy model.")] = "mid",
    layers: Annotated[int | None, typer.Option(min=1, help="Default: the shape's own.")] = None,
    format: Annotated[Format, typer.Option(help="Storage format of the experts.")] = "bf16",
    attention_format: Annotated[Format, typer.Option(help="Of q, k, v and o.")] = "bf16",
    batch: Annotated[int, typer.Option(min=1, help="Sequences together.")] = 1,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 512,
    output: Annotated[int, typer.Option(min=2, help="Tokens each sequence generates.")] = 64,
    num_threads: Annotated[int, typer.Option(min=0, help="0: one a physical core.")] = 0,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = "auto",
    dtype: Annotated[DType, typer.Option(help="auto: bfloat16 where it is fast.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Speed of the engine by itself, with random weights and without HTTP."""
    # torch takes a second to import, which the other commands should not pay for.
    from m2serve.bench.engine import EngineBenchConfig, run_engine_bench
    from m2serve.bench.shapes import named_shape
    from m2serve.engine.config import EngineConfig
    from m2serve.engine.placement import DTYPES, choose_device, choose_dtype, choose_num_threads
    from m2serve.environment import this_machine

    machine = this_machine()
    asked = EngineConfig(model_path="", device=device, dtype=dtype, num_threads=num_threads)
    chosen = choose_device(asked)
    config = EngineBenchConfig(
        shape=named_shape(shape, layers),
        format=format,
        attention_format=attention_format,
        batch=batch,
        prompt=prompt,
        output=output,
        num_threads=choose_num_threads(asked, machine),
        device=chosen,
        dtype=DTYPES[choose_dtype(asked, chosen, machine)],
    )
    result = run_engine_bench(config)
    if as_json:
        settings = {
            "shape": shape,
            "layers": config.shape.num_hidden_layers,
            "format": format,
            "attention_format": attention_format,
            "batch": batch,
            "prompt": prompt,
            "output": output,
            "num_threads": config.num_threads,
            "device": str(chosen),
            "dtype": str(config.dtype).removeprefix("torch."),
            "cpu": machine.cpu_name,
        }
        print(json.dumps({**settings, **dataclasses.asdict(result)}, indent=2))
    else:
        _show(result, Console(highlight=False))


def _show(result: EngineBenchResult, console: Console) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column()
    table.add_row("parameters", f"{result.parameters:,}", "")
    table.add_row("prefill", f"{result.prefill_tokens_per_s:,.1f}", "tokens/s")
    table.add_row("decode", f"{result.decode_tokens_per_s:,.1f}", "tokens/s")
    table.add_row("decode step", f"{result.decode_step_s * 1e3:,.2f}", "ms")
    table.add_row("a layer of it", f"{result.decode_layer_s * 1e3:,.3f}", "ms")
    table.add_row("bytes a step", f"{result.decode_bytes / 1e6:,.1f}", "MB")
    table.add_row("read rate", f"{result.decode_gb_per_s:,.2f}", "GB/s")
    share = f"GB/s measured now; share {result.bandwidth_share:.0%}"
    table.add_row("of", f"{result.read_bandwidth_gb_per_s:,.2f}", share)
    for name, seconds in result.operations_s.items():
        table.add_row(f"  {name}", f"{seconds * 1e3:,.3f}", result.implementations.get(name, ""))
    console.print(table)
