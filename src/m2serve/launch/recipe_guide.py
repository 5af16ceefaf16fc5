"""The guide of a recipe: Markdown that says what the plan is, why, and what to watch for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from m2serve.launch.command import flag_words, node_settings, ports_of
from m2serve.launch.options import LaunchOptions
from m2serve.launch.placeholders import shell_word
from m2serve.launch.shell import engine_rows, one_line
from m2serve.records import Plan

_GIB = 1 << 30


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
    work, speed = plan.workload, plan.speed
    yield (
        f"For {work.concurrency} users, {work.input_len:,} tokens in and {work.output_len:,} out, "
        f"the model of speed predicts {speed.tpot_ms.value:.1f} ms a token "
        f"({speed.tpot_ms.low:.1f} to {speed.tpot_ms.high:.1f}) after {speed.ttft_ms.value:.0f} ms "
        "to the first one. Not measured."
    )


def _memory(plan: Plan) -> Iterator[str]:
    yield "| device | weights | overhead | KV cache | budget | (GiB) |"
    yield "|---|---|---|---|---|---|"
    seen = set()
    for rank in plan.ranks:
        terms = [rank.term(name) / _GIB for name in ("weights", "overhead", "kv_cache")]
        sizes = " | ".join(f"{size:.2f}" for size in (*terms, rank.budget_bytes / _GIB))
        row = f"| {rank.device} | {sizes} | |"
        if row not in seen:
            seen.add(row)
            yield row


def _commands(plan: Plan, options: LaunchOptions) -> Iterator[str]:
    for node in range(plan.num_nodes):
        settings = node_settings(plan, options, node)
        if plan.num_nodes > 1:
            yield f"Node {node}:"
            yield ""
        yield "```bash"
        for setting in settings:
            if setting.kind == "env":
                yield f"export {setting.name}={shell_word(setting.value or '')}"
        rows = [
            " ".join(shell_word(word) for word in row) for row, _ in engine_rows(plan, settings)
        ]
        yield " \\\n  ".join(rows)
        yield "```"
    yield ""
    yield from (f"- port {port}: {purpose}" for port, purpose in ports_of(plan, options))


def _settings(plan: Plan) -> Iterator[str]:
    for setting in plan.settings:
        text = f"{setting.name}={setting.value}" if setting.kind == "env" else None
        where = f" (node {setting.node})" if setting.node is not None else ""
        shown = text or " ".join(flag_words(setting))
        yield f"- `{shown}`{where}: {one_line(setting.reason)} ({setting.source})"


def _issues(plan: Plan) -> Iterator[str]:
    for note in plan.issues:
        yield f"- {note.id} {one_line(note.title)}: {one_line(note.action)} ({note.reference})"
