"""Rows of the TOML files of this room, checked against frozen dataclasses. No torch.

A field of the dataclass is a key of the row, a field without a default must be there, a key that
is no field is refused. Numbers may not be negative; what must be positive the reader names.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import GenericAlias
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from m2serve.errors import M2Error

Row = TypeVar("Row")


def read_toml(name: str) -> dict[str, Any]:
    """Parse a file that ships beside this one; M2Error when it cannot be read."""
    try:
        return tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise M2Error(f"{name} cannot be read: {error}") from error


def check_tables(document: Mapping[str, Any], known: Collection[str], file: str) -> None:
    """Refuse a top-level table the reader does not know."""
    for name in document:
        if name not in known:
            raise M2Error(f"{file}: table {name!r} is unknown; one of {', '.join(sorted(known))}")


def read_rows(
    row_type: type[Row], rows: Any, where: str, *, key: str = "name", positive: Sequence[str] = ()
) -> tuple[Row, ...]:
    """An array of tables as dataclasses whose `key` fields differ; M2Error names row and key.

    `where` is the file and the table ("hardware.toml, accelerator").
    """
    if not isinstance(rows, list):
        raise M2Error(f"{where}: an array of tables is needed")
    read: dict[Any, Row] = {}
    for number, row in enumerate(rows, start=1):
        name = row.get(key, f"number {number}") if isinstance(row, dict) else f"number {number}"
        place = f"{where} {name!r}"
        if name in read:
            raise M2Error(f"{place} appears twice")
        read[name] = read_row(row_type, row, place, positive=positive)
    return tuple(read.values())


def read_row(row_type: type[Row], row: Any, place: str, *, positive: Sequence[str] = ()) -> Row:
    """One table as a dataclass; M2Error names the place and the key."""
    if not isinstance(row, dict):
        raise M2Error(f"{place}: a table is needed, not {row!r}")
    fields = _fields(row_type)  # type: ignore[arg-type]  # a class is hashable
    for name in row:
        if name not in fields:
            raise M2Error(f"{place}: key {name!r} is unknown")
    values: dict[str, Any] = {}
    for name, (kind, is_required) in fields.items():
        if name in row:
            values[name] = _value(kind, row[name], f"{place}, {name}")
        elif is_required:
            raise M2Error(f"{place}: key {name!r} is missing")
    for name in positive:
        if name in values and values[name] <= 0:
            raise M2Error(f"{place}, {name}: {values[name]!r} is not positive")
    return row_type(**values)


@cache
def _fields(row_type: type) -> dict[str, tuple[Any, bool]]:
    hints = get_type_hints(row_type)
    missing = dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is missing and field.init)
        for field in dataclasses.fields(row_type)
    }


def _value(kind: Any, value: Any, place: str) -> Any:
    if get_origin(kind) is tuple:
        return _sequence(kind, value, place)
    if dataclasses.is_dataclass(kind):
        return read_row(kind, value, place)  # type: ignore[arg-type]
    is_right, wanted = _SCALARS[kind]
    if not is_right(value):
        raise M2Error(f"{place}: {value!r} is not {wanted}")
    return float(value) if kind is float else value


def _sequence(kind: GenericAlias, value: Any, place: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise M2Error(f"{place}: {value!r} is not a list")
    inner = get_args(kind)
    if inner[-1] is Ellipsis:
        return tuple(_value(inner[0], item, f"{place}[{i}]") for i, item in enumerate(value))
    if len(value) != len(inner):
        raise M2Error(f"{place}: {value!r} has {len(value)} entries, not {len(inner)}")
    return tuple(_value(k, v, place) for k, v in zip(inner, value, strict=True))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value) and value >= 0


_SCALARS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    str: (lambda value: isinstance(value, str), "text"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (_is_whole, "a whole number from 0"),
    float: (_is_number, "a number from 0"),
}
