"""The command of an engine on this machine. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from m2serve.records import NodeLaunch
from m2serve.spec.versions import is_within

LaunchedName = Literal["vllm", "sglang", "vllm-ascend"]

COMMANDS: Mapping[LaunchedName, tuple[str, ...]] = {
    "vllm": ("vllm", "serve"),
    "vllm-ascend": ("vllm", "serve"),
    "sglang": ("python3", "-m", "sglang.launch_server"),
}
_HOST = "127.0.0.1"
# Without these an engine tells nothing of its cache, or sends each answer's ids again and again,
# and writes a line for each look at its health; and without the parser of thinking a grammar binds
# the thinking, too.
_VLLM_NEEDED = ("--enable-prompt-tokens-details", "--uvicorn-log-level", "warning")
_NEEDED: Mapping[LaunchedName, tuple[str, ...]] = {
    "vllm": _VLLM_NEEDED,
    "vllm-ascend": _VLLM_NEEDED,
    "sglang": ("--log-level-http", "warning"),
}
_OLD_STREAMING = "<0.5.10"
_REASONING_PARSERS: Mapping[LaunchedName, str] = {
    "vllm": "minimax_m2",
    "vllm-ascend": "minimax_m2",
    "sglang": "minimax",
}
_SGLANG_NAMES: Mapping[str, str] = {
    "--max-model-len": "--context-length",
    "--max-num-seqs": "--max-running-requests",
    "--max-num-batched-tokens": "--chunked-prefill-size",
}


def engine_argv(
    engine: LaunchedName,
    model: str,
    port: int,
    *,
    settings: Sequence[tuple[str, str | None]] = (),
    command: Sequence[str] = (),
    extra: Sequence[str] = (),
    version: str = "",
) -> tuple[str, ...]:
    """The argv that serves `model` on a port of this machine.

    `settings` are (flag, value or None for a flag alone) by vLLM's names; `command` replaces the
    program; `extra` comes last, so that it wins; `version` "" is the one that is planned for.
    """
    argv = [*(command or COMMANDS[engine])]
    argv += ["--model-path", model] if engine == "sglang" else [model]
    argv += ["--host", _HOST, "--port", str(port), *_NEEDED[engine]]
    if engine == "sglang":
        argv.append(_streaming_flag(version))
    if "--reasoning-parser" not in {flag for flag, _ in settings}:
        argv += ["--reasoning-parser", _REASONING_PARSERS[engine]]
    for flag, value in settings:
        name = _SGLANG_NAMES.get(flag, flag) if engine == "sglang" else flag
        argv += [name] if value is None else [name, value]
    return (*argv, *extra)


def _streaming_flag(version: str) -> str:
    """SGLang's word for: a stream sends new ids alone."""
    is_old = bool(version) and is_within(version, _OLD_STREAMING)
    return "--stream-output" if is_old else "--incremental-streaming-output"


def local_launch(argv: Sequence[str], env: Mapping[str, str] | None = None) -> NodeLaunch:
    """The argv as the record that a planned launch has, too."""
    return NodeLaunch(
        node=0,
        argv=tuple(argv),
        env=tuple((env or {}).items()),
        host_commands=(),
        image="",
        num_devices=1,
    )
