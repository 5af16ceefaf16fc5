"""Which engine `m2 serve` puts its server in front of: the own one, a started one, running ones."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer

from m2serve.chat.tokenizer import Tokenizer
from m2serve.cli.engine_choice import choose_engine, is_installed
from m2serve.cli.planned import PlannedEngine, local_workload, planned_engine
from m2serve.cli.private_server import free_port
from m2serve.doctor.log import explain_log
from m2serve.engine.client import EngineClient
from m2serve.engine.config import EngineConfig
from m2serve.engine.scripted import ScriptedEngine, TurnIds
from m2serve.engine.supervisor import SupervisedEngine
from m2serve.engine.upstream import UpstreamEngine, UpstreamModel
from m2serve.errors import UsageError
from m2serve.launch.command import visible_devices
from m2serve.launch.container import container_launch
from m2serve.launch.engine import LaunchedEngine
from m2serve.launch.installed import installed_version
from m2serve.launch.local import LaunchedName, engine_argv, local_launch
from m2serve.launch.process import EngineProcess
from m2serve.records import EngineName, NodeLaunch
from m2serve.spec.shape import ModelShape

_OWN_ONLY = (
    "device",
    "num_threads",
    "scripted",
    "attention_format",
    "head_format",
    "kv_cache_dtype",
    "cpu_activation",
)
_OWN_OR_STARTED = (
    "dtype",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "enable_prefix_caching",
    "kv_cache_memory_bytes",
)
_STARTED_ONLY = ("engine_command", "engine_args", "restart_upstream")


@dataclass(frozen=True)
class EngineChoice:
    """The options that choose an engine; `given` names all options of the command that were set.

    `command` and `arguments` are for an engine that is started; `upstream` are URLs of running
    ones.
    """

    kind: EngineName | Literal["auto"]
    upstream: tuple[str, ...]
    upstream_api_key: str | None
    command: tuple[str, ...]
    arguments: tuple[str, ...]
    restart: bool
    scripted: Path | None
    given: frozenset[str]


def given_options(context: typer.Context) -> frozenset[str]:
    """The parameters that were set on the command line itself."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(name for name, at in sources.items() if at and at.name == "COMMANDLINE")


def make_engine(
    choice: EngineChoice, config: EngineConfig, shape: ModelShape, tokenizer: Tokenizer
) -> EngineClient:
    """Raises UsageError for options that mean nothing with the engine that was chosen."""
    if choice.upstream:
        without = (*_OWN_ONLY, *_OWN_OR_STARTED, *_STARTED_ONLY, "engine")
        _refuse(choice, without, "--upstream, where the engine is already running")
        if "model" not in choice.given:
            raise UsageError("--upstream needs MODEL, the checkpoint whose tokenizer it speaks")
        return _upstream(choice, choice.upstream, config, shape, tokenizer)
    kind = _chosen(choice, config) if choice.kind == "auto" else choice.kind
    if kind == "own":
        _refuse(choice, (*_STARTED_ONLY, "upstream_api_key"), "the own engine")
        engine = SupervisedEngine(config)
        scripted = choice.scripted
        return engine if scripted is None else _scripted(engine, scripted, tokenizer)
    _refuse(choice, (*_OWN_ONLY, "upstream_api_key"), f"--engine {kind}")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    upstream = _upstream(choice, (url,), config, shape, tokenizer)
    launch = _launch(kind, choice, config, port)
    return launched(launch, upstream, kind, restart=choice.restart)


def _chosen(choice: EngineChoice, config: EngineConfig) -> EngineName:
    """For --engine auto, said in one line; raises ResourceError when nothing runs here."""
    for name in ("engine_command", "engine_args"):
        if name in choice.given:
            raise UsageError(f"--{name.replace('_', '-')} is for one engine; name it with --engine")
    model = config.model_path if "model" in choice.given else ""
    own_options = choice.given.intersection(_OWN_ONLY)
    workload = local_workload(config.max_model_len, config.max_num_seqs)
    chosen = choose_engine(model, workload, own_options)
    typer.echo(f"Engine: {chosen.kind}, {chosen.reason}", err=True)
    return chosen.kind


def _launch(
    kind: LaunchedName, choice: EngineChoice, config: EngineConfig, port: int
) -> NodeLaunch:
    """The plan's settings for this machine, then what was asked for; in a container where the
    engine is not installed and docker is."""
    asked = _settings(kind, config, choice.given)
    is_missing = not choice.command and not is_installed(kind)
    version = "" if is_missing else installed_version(kind, choice.command)
    overridden = frozenset(name for name, _ in asked)
    planned = planned_engine(kind, config, overridden, version, choice.arguments)
    if planned.plan is not None:
        typer.echo(f"Planned for {planned.plan.hardware}: {' '.join(_words(planned))}", err=True)
    for command in planned.host_commands:
        typer.echo(f"Faster after, as root: {command}", err=True)
    argv = engine_argv(
        kind,
        config.model_path,
        port,
        settings=[*planned.flags, *asked],
        command=choice.command,
        extra=choice.arguments,
        version=version,
    )
    vendor = planned.accelerators[0].vendor if planned.accelerators else ""
    launch = local_launch(argv, {**planned.env, **visible_devices(vendor, planned.devices)})
    if not (is_missing and planned.accelerators and shutil.which("docker")):
        return launch
    name = f"m2-{kind}-{port}"
    typer.echo(f"{kind} is not installed; it runs in container {name}", err=True)
    # A container has only the chosen devices and counts them from 0, but AMD's has all.
    return container_launch(
        launch if vendor == "amd" else local_launch(argv, planned.env),
        kind,
        planned.accelerators,
        folder=config.model_path,
        name=name,
        devices=planned.devices,
    )


def _words(planned: PlannedEngine) -> list[str]:
    flags = [word for flag in planned.flags for word in flag if word is not None]
    return [*(f"{name}={value}" for name, value in planned.env.items()), *flags]


def launched(
    launch: NodeLaunch, upstream: UpstreamEngine, name: str, *, restart: bool
) -> LaunchedEngine:
    """The command of a launch, and `upstream` as the way to it; raises UsageError."""
    if shutil.which(launch.argv[0]) is None:
        raise UsageError(
            f"{launch.argv[0]!r} is not a program here; install {name}, or say where it is with "
            "--engine-command"
        )
    handle, path = tempfile.mkstemp(prefix=f"m2-{name}-", suffix=".log")
    os.close(handle)
    process = EngineProcess(launch.argv, dict(launch.env), Path(path))
    typer.echo(f"Starting {name}; its log is {path}", err=True)
    return LaunchedEngine(process, upstream, name, restart=restart, explain=explain_log)


def _upstream(
    choice: EngineChoice,
    urls: tuple[str, ...],
    config: EngineConfig,
    shape: ModelShape,
    tokenizer: Tokenizer,
) -> UpstreamEngine:
    model = UpstreamModel(
        path=config.model_path,
        vocab_size=shape.vocab_size,
        used_vocab_size=tokenizer.used_vocab_size,
        max_model_len=shape.max_position_embeddings,
    )
    return UpstreamEngine(urls, model, tokenizer.decode, api_key=choice.upstream_api_key)


def _settings(
    kind: LaunchedName, config: EngineConfig, given: frozenset[str]
) -> list[tuple[str, str | None]]:
    """What was set for the own engine and means the same there; the rest is the engine's choice."""
    settings: list[tuple[str, str | None]] = []
    for name in _OWN_OR_STARTED:
        value = getattr(config, name)
        flag = "--" + name.replace("_", "-")
        if name not in given or (value == 0 and not isinstance(value, bool)):
            continue
        if name == "enable_prefix_caching" and kind == "sglang":
            settings += [] if value else [("--disable-radix-cache", None)]
        elif name == "enable_prefix_caching":
            settings.append((flag if value else f"--no-{flag[2:]}", None))
        elif name == "kv_cache_memory_bytes" and kind == "sglang":
            raise UsageError("SGLang has no --kv-cache-memory-bytes; use --mem-fraction-static")
        else:
            settings.append((flag, str(value)))
    return settings


def _refuse(choice: EngineChoice, names: tuple[str, ...], where: str) -> None:
    for name in names:
        if name in choice.given:
            raise UsageError(f"--{name.replace('_', '-')} means nothing with {where}")


def _scripted(engine: EngineClient, path: Path, tokenizer: Tokenizer) -> ScriptedEngine:
    turn_start = tokenizer.control.turn_start
    turns = TurnIds(
        user_start=(turn_start, *tokenizer.encode("user")),
        tool_start=(turn_start, *tokenizer.encode("tool")),
        end=tokenizer.control.turn_end,
    )
    return ScriptedEngine(
        engine,
        path,
        decode=tokenizer.decode,
        encode=lambda text: tokenizer.encode(text, allow_control=True),
        turns=turns,
    )
