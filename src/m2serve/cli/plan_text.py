"""A plan as text for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from m2serve.records import Estimate, Parallelism, Plan, RankMemory, Setting
from m2serve.spec.units import GIB

_MAX_REJECTED = 8


def show(plan: Plan, console: Console) -> None:
    """Print everything a plan says, the decision first."""
    console.print(_summary(plan), markup=False)
    several = f", each of {plan.num_replicas} servers" if plan.num_replicas > 1 else ""
    _heading(f"memory of a device, GiB{several}", console)
    console.print(_memory(plan.ranks))
    _heading("settings", console)
    console.print(_settings(plan.settings))
    _list("watch for", plan.warnings, console)
    issues = [f"{note.id} {note.title}: {note.action} ({note.reference})" for note in plan.issues]
    _list("known issues", issues, console)
    departures = [f"{d.document}: {d.setting}: {d.reason}" for d in plan.departures]
    _list("unlike published deployments", departures, console)
    runners_up = [f"{entry.configuration}: {entry.reason}" for entry in plan.runners_up]
    _list("runners-up", runners_up, console)
    rejected = [f"{entry.configuration}: {entry.reason}" for entry in plan.rejected]
    more = len(rejected) - _MAX_REJECTED
    shown = rejected[:_MAX_REJECTED] + ([f"{more} more, in --json"] if more > 0 else [])
    _list("dropped", shown, console)


def _summary(plan: Plan) -> Table:
    table = _table()
    table.add_row("model", plan.model)
    nodes = f" on each of {plan.num_nodes} nodes" if plan.num_nodes > 1 else ""
    table.add_row("hardware", plan.hardware + nodes)
    table.add_row("engine", f"{plan.engine} {plan.engine_version}")
    if plan.image:
        table.add_row("image", plan.image)
    table.add_row("cut", _cut(plan.parallelism))
    if plan.num_replicas > 1:
        table.add_row("servers", f"{plan.num_replicas} of these, independent, behind m2 serve")
    table.add_row("context", f"{plan.max_model_len:,} tokens")
    dtype = "BF16" if plan.kv_cache_dtype == "auto" else plan.kv_cache_dtype.upper()
    table.add_row("KV cache", f"{plan.kv_cache_tokens:,} tokens in {dtype}")
    work = plan.workload
    table.add_row(
        "workload",
        f"{work.concurrency} users, {work.input_len:,} tokens in, {work.output_len:,} out",
    )
    table.add_row("first token", _estimate(plan.speed.ttft_ms, "ms"))
    table.add_row("each further", _estimate(plan.speed.tpot_ms, "ms"))
    table.add_row("output", _estimate(plan.speed.output_tokens_per_s, "tokens/s"))
    table.add_row("", plan.speed.tpot_ms.source)
    return table


def _memory(ranks: tuple[RankMemory, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("rank")
    table.add_column("device")
    columns = {"weights": "weights", "overhead": "overhead", "offloaded": "offloaded"}
    columns = {k: v for k, v in columns.items() if any(rank.term(k) for rank in ranks)}
    for title in (*columns.values(), "KV cache", "free", "budget", "of"):
        table.add_column(title, justify="right")
    for first, last, rank in _grouped(ranks):
        name = str(first) if first == last else f"{first} to {last}"
        free = rank.budget_bytes - rank.used_bytes
        sizes = [rank.term(key) for key in (*columns, "kv_cache")]
        sizes += [free, rank.budget_bytes, rank.usable_bytes]
        table.add_row(name, rank.device, *(f"{size / GIB:.2f}" for size in sizes))
    return table


def _grouped(ranks: tuple[RankMemory, ...]) -> list[tuple[int, int, RankMemory]]:
    """Runs of ranks with the same memory: first, last, one of them."""
    runs: list[tuple[int, int, RankMemory]] = []
    for rank in ranks:
        if runs and (runs[-1][2].terms, runs[-1][2].device) == (rank.terms, rank.device):
            runs[-1] = (runs[-1][0], rank.rank, runs[-1][2])
        else:
            runs.append((rank.rank, rank.rank, rank))
    return runs


def _settings(settings: tuple[Setting, ...]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold", style="dim")
    for setting in settings:
        joint = "=" if setting.kind == "env" else " "
        text = setting.name if setting.value is None else f"{setting.name}{joint}{setting.value}"
        where = f"node {setting.node}: " if setting.node is not None else ""
        table.add_row(_plain(where + text), _plain(f"{setting.reason} [{setting.source}]"))
    return table


def _cut(cut: Parallelism) -> str:
    parts = [("tensor", cut.tensor), ("pipeline", cut.pipeline), ("data", cut.data)]
    parts += [("prefill context", cut.prefill_context), ("decode context", cut.decode_context)]
    words = [f"{name} {size}" for name, size in parts if size > 1] or ["one device"]
    words += ["expert parallel"] if cut.expert_parallel else []
    layers = ", ".join(str(count) for count in cut.pipeline_layers)
    return ", ".join(words) + (f"; layers {layers}" if layers else "")


def _estimate(estimate: Estimate, unit: str) -> str:
    low, high = f"{estimate.low:,.4g}", f"{estimate.high:,.4g}"
    return f"{estimate.value:,.4g} {unit} ({low} to {high})"


def _heading(title: str, console: Console) -> None:
    console.print(f"\n{title}:", style="bold", markup=False)


def _list(title: str, lines: tuple[str, ...] | list[str], console: Console) -> None:
    if not lines:
        return
    _heading(title, console)
    for line in lines:
        console.print(f"- {line}", markup=False)


def _table() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    return table


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
