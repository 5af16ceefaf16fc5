"""Writes docs/deployments.md: every published deployment beside the plan for the same machine.

python scripts/make_deployments_page.py            write the page
python scripts/make_deployments_page.py --check    exit with 1 where it is not up to date
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from m2serve.launch.command import make_launch
from m2serve.plan.configuration import Configuration, describe_cut, describe_replicas
from m2serve.plan.departures import LAUNCH_FLAGS, canonical, cut_of, departures_from
from m2serve.plan.plan import choose
from m2serve.records import Estimate, Plan, Workload
from m2serve.spec.deployments import (
    Deployment,
    Document,
    Published,
    contradictions_of,
    load_contradictions,
    load_deployments,
    load_documents,
    split_flags,
)

PAGE = Path(__file__).resolve().parents[1] / "docs" / "deployments.md"
# With at least this many users a document is after tokens a second, below after a quick answer.
THROUGHPUT_FROM = 64
_ROOM_FOR_ANSWER = 512
_UNSTATED = "not stated"
_HEAD = """\
# Published deployments and their plans

Written by `python scripts/make_deployments_page.py` from `spec/deployments.toml` and `m2 plan`.
Figures of the plan are predicted, with the interval that should hold four measurements of five.
What the documents say stands as they say it; where they contradict each other or the arithmetic,
the verdict is named with each deployment, and the whole case in the last section."""


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


def page() -> str:
    """The whole page."""
    documents = {document.name: document for document in load_documents()}
    chosen = [row for row in load_deployments() if row.id[1:].isdecimal()]
    sections = [_HEAD, *(_section(row, documents[row.document]) for row in chosen)]
    return "\n\n".join([*sections, _contradictions()]) + "\n"


def workload_of(deployment: Deployment) -> Workload:
    """As published; what a document does not say is the plan's default, within its context."""
    room = (deployment.max_model_len or 4096) - _ROOM_FOR_ANSWER
    return Workload(
        max_model_len=deployment.max_model_len,
        concurrency=deployment.concurrency or 8,
        input_len=deployment.input_len or min(2048, room),
        output_len=deployment.output_len or _ROOM_FOR_ANSWER,
        prefix_hit=deployment.prefix_hit,
        objective="throughput" if deployment.concurrency >= THROUGHPUT_FROM else "latency",
    )


def _section(row: Deployment, document: Document) -> str:
    plan, configuration = choose(
        row.model,
        row.hardware,
        workload_of(row),
        engine=row.engine,
        num_nodes=row.num_nodes,
    )
    parts = [
        f"## {row.id}: {row.title}",
        f"{document.title}, {document.period}.",
        _table(("", "document", "plan"), _facts(row, plan)),
        _table(("setting", "document", "plan", "why"), _settings(row, plan, configuration)),
    ]
    if host := list(_host_commands(row, plan)):
        parts.append(_table(("on the host", "document", "plan"), host))
    if figures := list(_figures(row, plan)):
        work = plan.workload
        users = f"{work.concurrency} user{'s' if work.concurrency > 1 else ''}"
        what = f"{users}, {work.input_len:,} tokens in, {work.output_len:,} out"
        parts.append(_table((what, "published", "predicted"), figures))
    parts += [
        _bullets("Resolved", (f"{c.id}, {c.topic}: {c.verdict}" for c in contradictions_of(row)))
    ]
    parts += [_bullets("Of the document", row.notes), _bullets("Of the plan", plan.warnings)]
    return "\n\n".join(part for part in parts if part)


def _facts(row: Deployment, plan: Plan) -> Iterator[tuple[str, ...]]:
    nodes = f", {row.num_nodes} nodes" if row.num_nodes > 1 else ""
    yield "engine", f"{row.engine} {row.engine_version}", f"{plan.engine} {plan.engine_version}"
    yield "image", row.image or _UNSTATED, plan.image or "none"
    yield "checkpoint", row.model, plan.model
    yield "hardware", row.hardware + nodes, plan.hardware + nodes
    planned = describe_replicas(plan.num_replicas, plan.parallelism)
    yield "cut", describe_cut(cut_of(row)), planned
    length = f"{row.max_model_len:,}" if row.max_model_len else _UNSTATED
    yield "context", length, f"{plan.max_model_len:,}"
    yield "KV cache, tokens", _UNSTATED, f"{plan.kv_cache_tokens:,}"
    weights = sum(rank.term("weights") for rank in plan.ranks) / len(plan.ranks) / 2**30
    stated = (r.value for r in row.results if r.metric == "weights_gib_per_gpu")
    yield "weights, GiB a device", f"{next(stated, _UNSTATED)}", f"{weights:.2f}"


def _settings(row: Deployment, plan: Plan, c: Configuration) -> Iterator[tuple[str, ...]]:
    """The document's settings in its order, then what the plan adds."""
    left_out = {
        canonical(d.setting.partition(" ")[0]): d.reason
        for d in departures_from(row, plan.settings, c, plan.workload)
    }
    mine = {(canonical(s.name), s.node): s for s in plan.settings if s.kind != "system"}
    seen = set()
    for name, value, node in _documented(row):
        key = (canonical(name), node)
        if key[0] in LAUNCH_FLAGS:
            continue
        seen.add(key)
        own = mine.get(key)
        why = left_out.get(key[0], "" if own is None else own.reason)
        planned = "left out" if own is None else _shown(own.value)
        yield _name(name, node), _shown(value), planned, why
    for key, own in mine.items():
        if key not in seen:
            yield _name(own.name, own.node), "", _shown(own.value), own.reason


def _documented(row: Deployment) -> Iterator[tuple[str, str | None, int | None]]:
    """Flag or variable, value, and the only node it is for."""
    yield from ((name, value, None) for name, value in row.settings)
    for node, flags in enumerate(row.node_flags):
        yield from ((name, value, node) for name, value in split_flags(flags))
    yield from ((name, value, None) for name, value in row.environment)


def _host_commands(row: Deployment, plan: Plan) -> Iterator[tuple[str, ...]]:
    planned = make_launch(plan).nodes[0].host_commands
    for command in dict.fromkeys([*row.host_commands, *planned]):
        said = "yes" if command in row.host_commands else ""
        yield _code(command), said, "yes" if command in planned else ""


def _figures(row: Deployment, plan: Plan) -> Iterator[tuple[str, ...]]:
    """Published at the workload the plan is for; what the arithmetic speaks against is marked."""
    speed = plan.speed
    predicted = {
        "ttft_ms": speed.ttft_ms,
        "tpot_ms": speed.tpot_ms,
        "output_tokens_per_s": speed.output_tokens_per_s,
    }
    for metric, estimate in predicted.items():
        fits = [r for r in row.results if r.metric == metric and _is_for(r, plan.workload, row)]
        if fits:
            published = "; ".join(_published(result, plan.workload) for result in fits)
            yield f"{metric.partition('_')[0]}, {fits[0].unit}", published, _estimate(estimate)


def _is_for(result: Published, workload: Workload, row: Deployment) -> bool:
    """Another machine's or another length's figures are not the plan's."""
    is_own = result.hardware in ("", row.hardware) and result.model in ("", row.model)
    lengths = (result.input_len or workload.input_len, result.output_len or workload.output_len)
    same = lengths == (workload.input_len, workload.output_len)
    return is_own and same and result.concurrency == workload.concurrency


def _published(result: Published, workload: Workload) -> str:
    context = ""
    if result.context_len:
        context = f" at {result.context_len:,} tokens"
        if result.context_len > 2 * workload.input_len:
            context += " of context, more than is predicted for"
    note = "" if result.is_trusted else f" (not trusted: {result.note})"
    return f"{result.value:,.6g}{context}{note}"


def _estimate(estimate: Estimate) -> str:
    value, low, high = (
        f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} ({low} to {high})"


def _contradictions() -> str:
    rows = (
        (c.id, c.topic, "; ".join(c.says), c.verdict, c.evidence) for c in load_contradictions()
    )
    head = ("", "topic", "said", "verdict", "evidence")
    return "## Contradictions\n\n" + _table(head, rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [_row(head), "|" + "---|" * len(head), *(_row(row) for row in rows)]
    return "\n".join(lines)


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _bullets(title: str, lines: Iterable[str]) -> str:
    items = [f"- {' '.join(line.split())}" for line in lines]
    return f"{title}:\n\n" + "\n".join(items) if items else ""


def _name(name: str, node: int | None) -> str:
    return _code(name) if node is None else f"{_code(name)}, node {node}"


def _shown(value: str | None) -> str:
    return "set" if value is None else _code(value)


def _code(text: str) -> str:
    return f"`{text}`"


if __name__ == "__main__":
    sys.exit(main())
