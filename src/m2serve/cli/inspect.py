"""`m2 inspect`: what a checkpoint is, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from m2serve.checkpoint.hub import resolve

if TYPE_CHECKING:
    from m2serve.checkpoint.inspect import InspectReport


def inspect(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, or a hub id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    scan_scales: Annotated[bool, typer.Option(help="Read all scales to find NaN and Inf.")] = True,
    revision: Annotated[str | None, typer.Option(help="Commit or branch of a hub id.")] = None,
) -> None:
    """Show a checkpoint's shape, formats, parameters, bytes, and everything odd about it."""
    # torch takes a second to import, which the other commands should not pay for.
    from m2serve.checkpoint.inspect import inspect as look_at

    report = look_at(resolve(model, revision), scan_scales=scan_scales)
    if as_json:
        print(json.dumps(dataclasses.asdict(report), ensure_ascii=False, indent=2))
    else:
        _show(report, Console(highlight=False, soft_wrap=True))


def _show(report: InspectReport, console: Console) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("checkpoint", report.folder)
    table.add_row("parameters", f"{report.parameters_total:,}")
    table.add_row("active a token", f"{report.parameters_active:,} in the layers")
    table.add_row("layers", str(report.num_hidden_layers))
    table.add_row(
        "experts", f"{report.num_local_experts}, of which {report.num_experts_per_tok} a token"
    )
    table.add_row("context", f"{report.max_position_embeddings:,} tokens")
    table.add_row("KV cache", _bytes_table(report.kv_bytes_per_token, " a token in "))
    table.add_row("vocabulary", f"{report.vocab_size:,}")
    table.add_row("tensors", f"{report.tensor_count:,}, {report.bytes_total:,} bytes")
    table.add_row("by component", _bytes_table(report.bytes_by_component, " "))
    table.add_row("by format", _bytes_table(report.bytes_by_format, " "))
    sampling = ", ".join(f"{name} {value}" for name, value in report.sampling.items())
    table.add_row("sampling", sampling or "none given")
    console.print(table, markup=False)
    if report.oddities:
        console.print("\nodd:", style="bold")
        for oddity in report.oddities:
            console.print(f"- {oddity}", markup=False)


def _bytes_table(sizes: Mapping[str, int], between: str) -> str:
    return "\n".join(f"{size:,}{between}{name}" for name, size in sizes.items() if size)
