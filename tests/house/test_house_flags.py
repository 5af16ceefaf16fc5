"""The command line is frozen here: a new flag, or one that goes, shows in this file's diff."""

import inspect
import typing

import pytest

from m2serve.cli.chat import chat
from m2serve.cli.inspect import inspect as inspect_command
from m2serve.cli.serve import serve
from m2serve.server.config import ServerConfig

FLAGS = {
    serve: [
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
        "--reasoning-parser",
        "--allow-unknown-tools",
        "--scripted",
        "--num-threads",
        "--max-num-queued-reqs",
        "--shutdown-timeout",
        "--revision",
        "--hub",
    ],
    chat: ["url", "--model", "--system", "--api-key", "--temperature", "--max-tokens"],
    inspect_command: ["model", "--json", "--scan-scales", "--revision"],
}


@pytest.mark.parametrize("command", FLAGS, ids=lambda command: command.__name__)
def test_frozen_flags(command: typing.Callable[..., None]) -> None:
    hints = typing.get_type_hints(command, include_extras=True)
    found = []
    for name in inspect.signature(command).parameters:
        [declared] = typing.get_args(hints[name])[1:]
        if type(declared).__name__ == "ArgumentInfo":
            found.append(name)
        else:
            found += declared.param_decls or [f"--{name.replace('_', '-')}"]
    assert found == FLAGS[command]


def test_the_server_listens_on_this_machine_alone_by_default() -> None:
    assert inspect.signature(serve).parameters["host"].default == "127.0.0.1"
    assert ServerConfig(("m",)).host == "127.0.0.1"
