"""The command line is frozen here: a new flag, or one that goes, shows in this file's diff."""

import inspect
import typing

import pytest
import typer

from m2serve.cli.main import app
from m2serve.cli.serve import serve
from m2serve.server.config import ServerConfig

FLAGS = {
    "serve": [
        "model",
        "--host",
        "--port",
        "--served-model-name",
        "--api-key",
        "--device",
        "--dtype",
        "--max-model-len",
        "--max-num-seqs",
        "--max-num-batched-tokens",
        "--enable-prefix-caching",
        "--kv-cache-memory-bytes",
        "--kv-cache-dtype",
        "--reasoning-parser",
        "--allow-unknown-tools",
        "--scripted",
        "--num-threads",
        "--attention-format",
        "--head-format",
        "--cpu-activation",
        "--max-num-queued-reqs",
        "--shutdown-timeout",
        "--revision",
        "--hub",
        "--engine",
        "--engine-command",
        "--engine-args",
        "--upstream",
        "--upstream-api-key",
        "--restart-upstream",
    ],
    "chat": ["target", "--model", "--system", "--api-key", "--temperature", "--max-tokens"],
    "inspect": ["model", "--json", "--scan-scales", "--revision"],
    "doctor": ["target", "--model", "--tokenizer", "--api-key", "--quick", "--json"],
    "plan": [
        "model",
        "--hardware",
        "--nodes",
        "--host-memory-gib",
        "--engine",
        "--engine-version",
        "--context",
        "--concurrency",
        "--input-len",
        "--output-len",
        "--prefix-hit",
        "--slo-ttft-ms",
        "--slo-tpot-ms",
        "--objective",
        "--claim",
        "--measured",
        "--form",
        "--output-folder",
        "--host",
        "--port",
        "--node-ip",
        "--nic",
        "--json",
    ],
    "bench engine": [
        "model",
        "--shape",
        "--layers",
        "--format",
        "--attention-format",
        "--head-format",
        "--batch",
        "--prompt",
        "--output",
        "--context",
        "--repeat",
        "--num-threads",
        "--device",
        "--dtype",
        "--cpu-activation",
        "--kv-cache-dtype",
        "--json",
    ],
}


def commands(group: typing.Any, prefix: str = "") -> dict[str, typing.Any]:
    """Every command by the words that call it."""
    found = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found.update(commands(command, f"{prefix}{name} "))
        else:
            found[f"{prefix}{name}"] = command
    return found


COMMANDS = commands(typer.main.get_command(app))


@pytest.mark.parametrize("name", FLAGS)
def test_frozen_flags(name: str) -> None:
    found = [parameter.opts[0] for parameter in COMMANDS[name].params]
    assert found == FLAGS[name]


def test_no_other_commands() -> None:
    assert set(COMMANDS) == set(FLAGS)


def test_the_server_listens_on_this_machine_alone_by_default() -> None:
    assert inspect.signature(serve).parameters["host"].default == "127.0.0.1"
    assert ServerConfig(("m",)).host == "127.0.0.1"
