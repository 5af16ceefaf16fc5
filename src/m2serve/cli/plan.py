"""`m2 plan`: how to run a checkpoint on given hardware, why, how fast, and what to watch for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from m2serve.errors import UsageError
from m2serve.records import Objective, Workload, to_json

if TYPE_CHECKING:
    from m2serve.launch.files import LaunchFile
    from m2serve.plan.claim import Verdict

Form = Literal["text", "json", "shell", "docker", "compose", "kubernetes", "slurm", "recipe"]
EngineOption = Literal["auto", "own", "vllm", "sglang", "vllm-ascend"]


def plan(
    model: Annotated[str, typer.Argument(help="Hub id, folder, or a family: MiniMax-M2.5.")],
    hardware: Annotated[
        str,
        typer.Option(help="Devices of a node: 2xrtx-pro-6000, 1xrtx-pro-6000+2xrtx-4090, local."),
    ],
    nodes: Annotated[int, typer.Option(min=1, help="Equal nodes.")] = 1,
    host_memory_gib: Annotated[int, typer.Option(min=0, help="Of a node; 0: unknown.")] = 0,
    engine: Annotated[EngineOption, typer.Option(help="auto compares all.")] = "auto",
    engine_version: Annotated[str, typer.Option(help="A release; else a known good one.")] = "",
    context: Annotated[int, typer.Option(min=0, help="Tokens; 0: what fits.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Users at once.")] = 8,
    input_len: Annotated[int, typer.Option(min=1, help="Prompt tokens.")] = 2048,
    output_len: Annotated[int, typer.Option(min=1, help="Answer tokens.")] = 512,
    prefix_hit: Annotated[float, typer.Option(min=0, max=1, help="Cached share.")] = 0.0,
    slo_ttft_ms: Annotated[float | None, typer.Option(help="First token within.")] = None,
    slo_tpot_ms: Annotated[float | None, typer.Option(help="Every further one within.")] = None,
    objective: Annotated[Objective, typer.Option(help="What to rank by.")] = "latency",
    claim: Annotated[
        str | None, typer.Option(help="A figure to judge: '64 users, 3355 tok/s', '115 GB'.")
    ] = None,
    measured: Annotated[
        list[Path] | None,
        typer.Option(help="Runs that were measured, a file or a folder; they beat the forecast."),
    ] = None,
    form: Annotated[Form, typer.Option(help="What to print; the last six are ready to use.")] = (
        "text"
    ),
    output_folder: Annotated[
        Path | None, typer.Option(help="Write the form's files here instead of printing them.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address a form's server listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of a form's server.")] = 8000,
    node_ip: Annotated[
        list[str] | None, typer.Option(help="Address of a node, in order; repeat for each.")
    ] = None,
    nic: Annotated[str, typer.Option(help="Interface that joins the nodes.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Choose engine, checkpoint and settings for a machine; with exact memory and a forecast."""
    # numpy and the tables take a while to import, which the other commands should not pay for.
    from m2serve.plan.candidates import variants_for
    from m2serve.plan.claim import judge_claim
    from m2serve.plan.claim_figures import claimed_users
    from m2serve.plan.plan import choose
    from m2serve.plan.run_records import read_runs

    users = concurrency if claim is None else claimed_users(claim) or concurrency
    workload = Workload(
        max_model_len=context,
        concurrency=users,
        input_len=input_len,
        output_len=output_len,
        prefix_hit=prefix_hit,
        slo_ttft_ms=slo_ttft_ms,
        slo_tpot_ms=slo_tpot_ms,
        objective=objective,
    )
    if hardware == "local":
        hardware, host_memory_bytes = _local()
        host_memory_gib = host_memory_gib or host_memory_bytes >> 30
    runs = tuple(run for path in measured or () for run in read_runs(path))
    made, configuration = choose(
        model, hardware, workload, engine, engine_version, nodes, host_memory_gib << 30, runs
    )
    if claim is not None:
        verdicts = judge_claim(claim, made, configuration, variants_for(model))
        _show_verdicts(verdicts, as_json)
    elif as_json or form == "json":
        print(to_json(made))
    elif form != "text":
        from m2serve.launch.forms import launch_files
        from m2serve.launch.options import LaunchOptions

        options = LaunchOptions(host=host, port=port, node_ips=tuple(node_ip or ()), nic=nic)
        _deliver(launch_files(made, form, options), output_folder)
    else:
        from rich.console import Console

        from m2serve.cli.plan_text import show

        show(made, Console(highlight=False, soft_wrap=True))


def _local() -> tuple[str, int]:
    """This machine as text, and its memory in bytes; raises UsageError without accelerators."""
    from m2serve.devices import local_hardware
    from m2serve.spec.hardware import hardware_text

    machine = local_hardware()
    if machine.groups[0].accelerator.bandwidth_gb_per_s == 0:
        raise UsageError(
            f"{machine.groups[0].accelerator.title}: no accelerator is here, and the memory "
            "bandwidth of this processor is unknown; name a machine such as epyc-9005"
        )
    return hardware_text(machine), machine.host_memory_bytes


def _deliver(files: Sequence[LaunchFile], folder: Path | None) -> None:
    """Into the folder, or one after the other with its name in a comment."""
    for file in files:
        if folder is not None:
            _write(folder / file.name, file.text)
            print(folder / file.name)
        elif len(files) == 1:
            print(file.text, end="")
        else:
            print(f"# ---- {file.name}\n{file.text}")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def _show_verdicts(verdicts: tuple[Verdict, ...], as_json: bool) -> None:
    """Ends with status 1 when a figure is impossible, so that scripts can ask."""
    if as_json:
        print(json.dumps([dataclasses.asdict(verdict) for verdict in verdicts], indent=2))
    else:
        for verdict in verdicts:
            issues = f" [{', '.join(verdict.issues)}]" if verdict.issues else ""
            print(f"{verdict.judgement}: {verdict.figure}: {verdict.reason}{issues}")
    if any(verdict.judgement == "impossible" for verdict in verdicts):
        raise typer.Exit(1)
