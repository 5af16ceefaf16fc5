"""`m2 doctor`: is this deployment right; what does this log say."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from m2serve.checkpoint.hub import MINIATURE, MINIATURE_NAME
from m2serve.doctor.examination import Examination, examine
from m2serve.doctor.log import LogReport, read_log
from m2serve.doctor.probe import Probe
from m2serve.doctor.prompt_count import PromptCounter
from m2serve.doctor.result import CheckResult, shown
from m2serve.doctor.target import Target, find_target
from m2serve.errors import UsageError
from m2serve.spec.known_issues import KnownIssue

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red", "skipped": "dim"}
_HOST_AND_PORT = re.compile(r"[A-Za-z0-9.-]{1,253}:\d{1,5}")
MAX_LIKELY = 8


def doctor(
    target: Annotated[str, typer.Argument(help="URL of an endpoint, a log file, or - for stdin.")],
    model: Annotated[str | None, typer.Option(help="Served model name; else the first.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the checkpoint's tokenizer, to count prompts.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="M2_API_KEY", help="API key.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="About one minute of checks.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Examine a running endpoint, or say what a log shows. Exit code 1: something is wrong."""
    console = Console(highlight=False, soft_wrap=True)
    url = _url(target)
    if url is None:
        report = _read(target)
        if as_json:
            print(json.dumps(_log_json(target, report), ensure_ascii=False, indent=2))
        else:
            _show_log(report, console)
        raise typer.Exit(int(report.has_failed))
    lines = None if as_json else console
    found = asyncio.run(_examine(url, model, tokenizer, api_key, quick, lines))
    if as_json:
        print(json.dumps(_endpoint_json(url, found), ensure_ascii=False, indent=2))
    else:
        _show_issues(found, console)
    raise typer.Exit(int(found.has_failed))


def _url(target: str) -> str | None:
    """The URL that `target` is, or None for a log."""
    if target.startswith(("http://", "https://")):
        return target
    if target != "-" and not os.path.exists(target) and _HOST_AND_PORT.fullmatch(target):
        return f"http://{target}"
    return None


def _read(target: str) -> LogReport:
    if target == "-":
        return read_log(sys.stdin.buffer)
    path = Path(target)
    if not os.path.isfile(target):
        raise UsageError(f"{target!r} is neither a URL nor a log file; write http://HOST:PORT")
    try:
        with path.open("rb") as stream:
            return read_log(stream)
    except OSError as error:
        raise UsageError(f"{target} cannot be read: {error.strerror}") from error


async def _examine(
    url: str,
    model: str | None,
    tokenizer: Path | None,
    api_key: str | None,
    quick: bool,
    console: Console | None,
) -> Examination:
    async with Probe(url, api_key=api_key) as probe:
        target = await find_target(probe, model)
        target = dataclasses.replace(target, counter=_counter(tokenizer, target), is_quick=quick)
        if console:
            console.print(_heading(probe.base_url, target), markup=False)
        return await examine(probe, target, lambda result: _show_check(result, console))


def _counter(folder: Path | None, target: Target) -> PromptCounter | None:
    if folder is None and target.model == MINIATURE_NAME and MINIATURE.is_dir():
        folder = MINIATURE
    return None if folder is None else PromptCounter.load(folder)


def _heading(url: str, target: Target) -> str:
    facts = target.situation
    engine = shown(f"{facts.engine} {facts.engine_version}".strip())
    context = f"context {target.max_model_len:,}" if target.max_model_len else ""
    return ", ".join(part for part in (f"{shown(target.model)} at {url}", engine, context) if part)


def _show_check(result: CheckResult, console: Console | None) -> None:
    if console:
        console.print(f"{result.verdict:>8}", style=_STYLES[result.verdict], end="")
        console.print(f"  {result.name}: {result.detail}", markup=False)


def _show_issues(found: Examination, console: Console) -> None:
    for check in found.checks:
        if check.verdict not in ("warn", "fail"):
            continue
        console.print(f"\n{check.name}", style="bold")
        console.print(f"  sent      {check.sent}\n  received  {check.received}", markup=False)
        if check.issues:
            console.print(f"  likely    {', '.join(check.issues)}", markup=False)
    if found.certain:
        console.print("\nknown of this deployment:", style="bold")
        for issue in found.certain:
            _show_issue(issue, console)
    if found.likely:
        console.print("\nlikely causes:", style="bold")
        for issue in found.likely[:MAX_LIKELY]:
            _show_issue(issue, console)
    if len(found.likely) > MAX_LIKELY:
        console.print(f"and {len(found.likely) - MAX_LIKELY} more; --json lists them", style="dim")
    verdicts = [check.verdict for check in found.checks]
    failed, warned = verdicts.count("fail"), verdicts.count("warn")
    console.print(f"\n{failed} failed, {warned} warnings, {len(verdicts)} checks")


def _show_log(report: LogReport, console: Console) -> None:
    for match in report.matches:
        often = f", {match.count} times" if match.count > 1 else ""
        console.print(f"line {match.line_number}{often}: {match.line}", markup=False, style="dim")
        _show_issue(match.issue, console)
    if report.certain:
        console.print("\nknown of this deployment:", style="bold")
        for issue in report.certain:
            _show_issue(issue, console)
    lines = f"{report.num_lines:,} lines read" + (", the rest left out" if report.is_cut else "")
    console.print(f"known issues: {len(report.matches) or 'none'}; {lines}")


def _show_issue(issue: KnownIssue, console: Console) -> None:
    console.print(f"  {issue.id}  {issue.title}", markup=False)
    versions = f" ({issue.versions})" if issue.versions else ""
    console.print(f"       {issue.cause}{versions}", markup=False)
    console.print(f"       To do: {issue.fix}", markup=False)
    console.print(
        f"       {issue.reference}; confidence {issue.confidence}", markup=False, style="dim"
    )


def _issue_json(issue: KnownIssue) -> dict[str, Any]:
    names = ("id", "title", "effect", "cause", "fix", "reference", "confidence", "versions")
    return {
        **{name: getattr(issue, name) for name in names},
        "settings": dataclasses.asdict(issue.settings),
    }


def _log_json(target: str, report: LogReport) -> dict[str, Any]:
    facts = report.situation
    return {
        "log": target,
        "engine": facts.engine,
        "engine_version": facts.engine_version,
        "model": facts.model,
        "lines": report.num_lines,
        "is_cut": report.is_cut,
        "failed": report.has_failed,
        "issues": [
            {
                "line_number": match.line_number,
                "line": match.line,
                "count": match.count,
                **_issue_json(match.issue),
            }
            for match in report.matches
        ],
        "known_issues": [_issue_json(issue) for issue in report.certain],
    }


def _endpoint_json(url: str, found: Examination) -> dict[str, Any]:
    facts = found.target.situation
    return {
        "url": url,
        "model": found.target.model,
        "engine": facts.engine,
        "engine_version": facts.engine_version,
        "max_model_len": found.target.max_model_len,
        "failed": found.has_failed,
        "checks": [dataclasses.asdict(check) for check in found.checks],
        "known_issues": [_issue_json(issue) for issue in found.certain],
        "likely_issues": [_issue_json(issue) for issue in found.likely],
    }
