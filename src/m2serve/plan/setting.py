"""Settings that the engine's release knows: what it does not know is never emitted."""

from __future__ import annotations

import json
from typing import Any

from m2serve.plan.configuration import Configuration
from m2serve.records import Setting

Settings = tuple[Setting, ...]


def flag(
    c: Configuration,
    key: str,
    value: str | int | float | None,
    reason: str,
    source: str,
    node: int | None = None,
) -> Settings:
    """The flag of our word `key` in this release, or nothing; `value` None: a switch."""
    name = c.engine.flag(key, c.version)
    if name is None:
        return ()
    text = None if value is None else str(value)
    return (Setting("flag", name, text, reason, source, node),)


def env(
    c: Configuration, name: str, value: str | int, reason: str, source: str, node: int | None = None
) -> Settings:
    """A variable that this release reads, or nothing."""
    if not c.engine.knows_env(name, c.version):
        return ()
    return (Setting("env", name, str(value), reason, source, node),)


def host_command(command: str, reason: str, source: str) -> Settings:
    """A command to run on every node before the engine."""
    return (Setting("system", command, None, reason, source),)


def as_json(**fields: Any) -> str:
    """The value of a flag that takes a JSON object."""
    return json.dumps(fields)
