"""The guide of a recipe: Markdown that says what the plan is, why, and what to watch for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from m2serve.launch.command import flag_words, node_settings, ports_of
from m2serve.launch.options import LaunchOptions
from m2serve.launch.placeholders import shell_word
from m2serve.launch.replicas import front_argv, server_options
from m2serve.launch.shell import engine_rows, one_line
from m2serve.records import Plan, Setting
from m2serve.spec.units import GIB


def guide_text(plan: Plan, options: LaunchOptions) -> str:
    """Sections with a line end at the end."""
    sections: dict[str, Iterable[str]] = {
        "Overview": _overview(plan),
        "Memory": _memory(plan),
        "Launching the server": _commands(plan, options),
        "Settings": _settings(plan),
        "Watch for": [f"- {one_line(text)}" for text in plan.warnings],
        "Known issues": _issues(plan),
    }
    texts = {title: "\n".join(lines) for title, lines in sections.items()}
    return "\n".join(f"## {title}\n\n{text}\n" for title, text in texts.items() if text)


def _overview(plan: Plan) -> Iterator[str]:
    nodes = f" on each of {plan.num_nodes} nodes" if plan.num_nodes > 1 else ""
    yield (
        f"{plan.model} on {plan.hardware}{nodes} with {plan.engine} {plan.engine_version}: "
        f"a context of {plan.max_model_len:,} tokens, a KV cache of {plan.kv_cache_tokens:,}."
    )
    if plan.num_replicas > 1:
        yield (
            f"{plan.num_replicas} servers, each on its own share of the devices, behind one front "
            "that sends requests which begin alike to one of them."
        )
    work, speed = plan.workload, plan.speed
    is_measured = speed.tpot_ms.is_measured
    said = "it took" if is_measured else "the model of speed predicts"
    yield (
        f"For {work.concurrency} users, {work.input_len:,} tokens in and {work.output_len:,} out, "
        f"{said} {speed.tpot_ms.value:.1f} ms a token "
        f"({speed.tpot_ms.low:.1f} to {speed.tpot_ms.high:.1f}) after {speed.ttft_ms.value:.0f} ms "
        f"to the first one. {_basis(speed.tpot_ms.source) if is_measured else 'Not measured.'}"
    )


def _basis(source: str) -> str:
    return f"{source[:1].upper()}{source[1:]}."


def _memory(plan: Plan) -> Iterator[str]:
    yield "| device | weights | overhead | KV cache | budget | (GiB) |"
    yield "|---|---|---|---|---|---|"
    seen = set()
    for rank in plan.ranks:
        terms = [rank.term(name) / GIB for name in ("weights", "overhead", "kv_cache")]
        sizes = " | ".join(f"{size:.2f}" for size in (*terms, rank.budget_bytes / GIB))
        row = f"| {rank.device} | {sizes} | |"
        if row not in seen:
            seen.add(row)
            yield row


def _commands(plan: Plan, options: LaunchOptions) -> Iterator[str]:
    for node in range(plan.num_nodes):
        for number, own in enumerate(server_options(plan, options)):
            if plan.num_nodes > 1 or plan.num_replicas > 1:
                yield f"Node {node}:" if plan.num_nodes > 1 else f"Server {number}:"
                yield ""
            settings = node_settings(plan, own, node)
            rows = [row for row, _ in engine_rows(plan, settings)]
            exports = [s for s in settings if s.kind == "env"]
            yield from _block(exports, rows)
    if front := front_argv(plan, options):
        yield "The front:"
        yield ""
        yield from _block([], [front])
    yield ""
    yield from (f"- port {port}: {purpose}" for port, purpose in ports_of(plan, options))


def _block(exports: Iterable[Setting], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "```bash"
    for setting in exports:
        yield f"export {setting.name}={shell_word(setting.value or '')}"
    yield " \\\n  ".join(" ".join(shell_word(word) for word in row) for row in rows)
    yield "```"


def _settings(plan: Plan) -> Iterator[str]:
    for setting in plan.settings:
        text = f"{setting.name}={setting.value}" if setting.kind == "env" else None
        where = f" (node {setting.node})" if setting.node is not None else ""
        shown = text or " ".join(flag_words(setting))
        yield f"- `{shown}`{where}: {one_line(setting.reason)} ({setting.source})"


def _issues(plan: Plan) -> Iterator[str]:
    for note in plan.issues:
        yield f"- {note.id} {one_line(note.title)}: {one_line(note.action)} ({note.reference})"
