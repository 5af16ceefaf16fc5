"""A plan as bash scripts, one for each node. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from m2serve.launch.command import flag_words, make_launch, node_settings, ports_of, program_of
from m2serve.launch.files import LaunchFile, script_files
from m2serve.launch.options import DEFAULTS, LaunchOptions
from m2serve.launch.placeholders import placeholders_in, shell_word
from m2serve.launch.replicas import front_argv, function_lines, server_options, together_lines
from m2serve.records import Plan, Setting

Row = tuple[Sequence[str], str]

_AS_ROOT = """\
# Settings of the host; the engine starts without them, slower.
as_root() {
    if [ "$(id -u)" = 0 ]; then sh -c "$1"; else sudo sh -c "$1"; fi || echo "not done: $1" >&2
}"""
_THIS_IP = (
    'THIS_IP=${THIS_IP:-$(ip -4 -o addr show dev "$NIC" | '
    'awk \'{sub("/.*", "", $4); print $4; exit}\')}'
)


def shell_files(plan: Plan, options: LaunchOptions = DEFAULTS) -> tuple[LaunchFile, ...]:
    """serve.sh, or node0.sh and on: run on each node, in this order."""
    make_launch(plan, options)  # which refuses what a command cannot carry
    return script_files(
        plan,
        "serve",
        "node",
        lambda node: _script(plan, options, node),
        lambda: _script_of_several(plan, options),
    )


def head_comments(plan: Plan, options: LaunchOptions, *, is_one_job: bool = False) -> list[str]:
    """What is run, the ports and what to watch for, as lines without a comment sign; one job
    starts all nodes by itself."""
    nodes = f" on each of {plan.num_nodes} nodes" if plan.num_nodes > 1 else ""
    lines = [f"{plan.model} on {plan.hardware}{nodes}: {plan.engine} {plan.engine_version}"]
    if plan.num_replicas > 1:
        lines.append(
            f"{plan.num_replicas} servers, each on its own share of the devices, behind one front"
        )
    if plan.num_nodes > 1 and not is_one_job:
        lines.append("Start node 0 first: the others look for it, and it waits for them")
    lines += [f"Port {port}: {purpose}" for port, purpose in ports_of(plan, options)]
    lines += plan.warnings
    if plan.engine != "own" and plan.num_replicas == 1:
        front = f"m2 serve {shlex.quote(plan.model)} --upstream {_url(options)}"
        lines.append(f"In front of it: {front} --port {options.port % 65535 + 1}")
    return [one_line(line) for line in lines]


def one_line(text: str) -> str:
    """Comments end where a line ends."""
    return " ".join(text.split())


def nic_line(options: LaunchOptions) -> str:
    if options.nic:
        return f"NIC={shlex.quote(options.nic)}"
    return ': "${NIC:?the interface that joins the nodes, as ip addr names it}"'


def address_lines(used: set[str], options: LaunchOptions) -> list[str]:
    """The variables that the node's words need, asked for where nothing can tell them."""
    lines = []
    if "nic" in used or "this_ip" in used:
        lines.append(nic_line(options))
    if "this_ip" in used:
        lines.append(_THIS_IP)
    if "node0_ip" in used:
        lines.append(': "${NODE0_IP:?the address of node 0}"')
    return lines


def export_lines(settings: Iterable[Setting], with_reasons: bool) -> list[str]:
    lines: list[str] = []
    for setting in settings:
        if setting.kind == "env":
            lines += [f"# {one_line(setting.reason)}"] if with_reasons else []
            lines.append(f"export {setting.name}={shell_word(setting.value or '')}")
    return lines


def host_lines(settings: Iterable[Setting], with_reasons: bool) -> list[str]:
    """Commands that need root, through sudo for others."""
    lines: list[str] = []
    for setting in settings:
        if setting.kind == "system":
            lines += [f"# {one_line(setting.reason)}"] if with_reasons else []
            lines.append(f"as_root {shlex.quote(setting.name)}")
    return [_AS_ROOT, *lines] if lines else []


def engine_rows(plan: Plan, settings: Iterable[Setting], model: str = "") -> list[Row]:
    """The engine's command: its program, then flag by flag with the reason."""
    rows: list[Row] = [(program_of(plan, model), "")]
    return rows + [(flag_words(s), s.reason) for s in settings if s.kind == "flag"]


def array_lines(rows: Iterable[Row], with_reasons: bool) -> list[str]:
    """A bash array named `command`: unlike continued lines it can hold comments."""
    lines = ["command=("]
    for words, reason in rows:
        lines += [f"    # {one_line(reason)}"] if reason and with_reasons else []
        lines.append("    " + " ".join(shell_word(word) for word in words))
    return [*lines, ")"]


def blocks_text(blocks: Iterable[Sequence[str]]) -> str:
    """Blocks of lines with an empty line between them."""
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def script_start(comments: Iterable[str]) -> list[str]:
    return ["#!/usr/bin/env bash", *(f"# {line}" for line in comments), "set -euo pipefail"]


def setting_values(settings: Iterable[Setting]) -> list[str]:
    """Values of flags and variables, where placeholders may stand."""
    return [s.value for s in settings if s.value is not None]


def server_lines(plan: Plan, options: LaunchOptions) -> list[list[str]]:
    """Bash functions for every replica and the front, and lines that run them together."""
    functions = {}
    for number, own in enumerate(server_options(plan, options)):
        settings = node_settings(plan, own, 0)
        reasons = options.with_reasons and number == 0  # the same for all
        functions[f"server{number}"] = [
            *export_lines(settings, reasons),
            *array_lines(engine_rows(plan, settings), reasons),
            'exec "${command[@]}"',
        ]
    functions["front"] = front_lines(plan, options)
    blocks = [function_lines(name, body) for name, body in functions.items()]
    return [*blocks, together_lines(functions)]


def front_lines(plan: Plan, options: LaunchOptions) -> list[str]:
    why = "requests that begin alike go to one server, for its prefix cache"
    rows: list[Row] = [(front_argv(plan, options), why)]
    return [*array_lines(rows, options.with_reasons), 'exec "${command[@]}"']


def _script_of_several(plan: Plan, options: LaunchOptions) -> str:
    settings = node_settings(plan, options, 0)
    return blocks_text(
        [
            script_start(head_comments(plan, options)),
            host_lines(settings, options.with_reasons),
            *server_lines(plan, options),
        ]
    )


def _script(plan: Plan, options: LaunchOptions, node: int) -> str:
    settings = node_settings(plan, options, node)
    reasons = options.with_reasons
    return blocks_text(
        [
            script_start(head_comments(plan, options)),
            address_lines(placeholders_in(setting_values(settings)), options),
            host_lines(settings, reasons),
            export_lines(settings, reasons),
            array_lines(engine_rows(plan, settings), reasons),
            ['exec "${command[@]}"'],
        ]
    )


def _url(options: LaunchOptions) -> str:
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host
    return f"http://[{host}]:{options.port}" if ":" in host else f"http://{host}:{options.port}"
