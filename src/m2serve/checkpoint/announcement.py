"""What a configuration file says about the format of a linear, and the parts all carriers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from m2serve.checkpoint.formats import Dense, StorageFormat
from m2serve.checkpoint.module_patterns import ModulePatterns
from m2serve.errors import CheckpointError


@dataclass(frozen=True)
class Announcement:
    """A linear's announced format; `parameters` are fields of it that the file fixes."""

    kind: type[StorageFormat]
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AnnouncedFormats:
    """`of(module)` is None where the files say nothing; `source` names the file for messages."""

    source: str
    of: Callable[[str], Announcement | None]
    notes: tuple[str, ...] = ()


DENSE = Announcement(Dense)


def unless(excluded: ModulePatterns, announcement: Announcement) -> Callable[[str], Announcement]:
    """Dense for the excluded modules, the announcement for all others."""
    return lambda module: DENSE if excluded.match(module) else announcement


def entries(settings: Mapping[str, Any], key: str) -> list[Any]:
    """A list of module names under `key`, empty when absent."""
    value = settings.get(key) or []
    if not isinstance(value, list):
        raise CheckpointError(
            f"{key} is {str(value)[:80]!r} in the quantization config, not a list"
        )
    return value


def block_size(value: Any, key: str) -> tuple[int, int]:
    """Two whole numbers from 1 to 65536, else CheckpointError naming the key."""
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(type(n) is int and 0 < n <= 1 << 16 for n in value)
    ):
        raise CheckpointError(
            f"{key} is {value!r} in the quantization config; two sizes are needed"
        )
    return value[0], value[1]


def positive(value: Any) -> bool:
    """Whether a group size is stated; null and -1 mean one group a row."""
    return type(value) is int and value > 0
