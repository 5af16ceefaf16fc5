"""What a wrong row is told."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from m2serve.errors import M2Error
from m2serve.spec.tables import check_tables, read_rows, read_toml


@dataclass(frozen=True)
class Inner:
    key: str
    value: float = 0.0


@dataclass(frozen=True)
class Outer:
    name: str
    count: int
    share: float = 0.0
    is_on: bool = False
    words: tuple[str, ...] = ()
    pair: tuple[int, float] = (0, 0.0)
    inner: tuple[Inner, ...] = ()
    unused: str = field(default="")


def read(**row: Any) -> Outer:
    return read_rows(Outer, [row], "file.toml, outer", positive=("count",))[0]


def test_every_kind_of_field_is_read() -> None:
    row = read(
        name="a", count=2, share=1, is_on=True, words=["x"], pair=[1, 2], inner=[{"key": "k"}]
    )
    assert row == Outer("a", 2, 1.0, True, ("x",), (1, 2.0), (Inner("k"),))
    assert isinstance(row.share, float)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"name": "a"}, "outer 'a': key 'count' is missing"),
        ({"name": "a", "count": 1, "cuont": 2}, "outer 'a': key 'cuont' is unknown"),
        ({"name": "a", "count": 0}, "outer 'a', count: 0 is not positive"),
        ({"name": "a", "count": True}, "outer 'a', count: True is not a whole number"),
        ({"name": "a", "count": 1.5}, "outer 'a', count: 1.5 is not a whole number"),
        ({"name": "a", "count": -1}, "outer 'a', count: -1 is not a whole number"),
        ({"name": "a", "count": 1, "share": float("nan")}, "share: nan is not a number"),
        ({"name": "a", "count": 1, "share": "1"}, "share: '1' is not a number"),
        ({"name": "a", "count": 1, "is_on": 1}, "is_on: 1 is not true or false"),
        ({"name": "a", "count": 1, "words": "x"}, "words: 'x' is not a list"),
        ({"name": "a", "count": 1, "words": [1]}, r"words\[0\]: 1 is not text"),
        ({"name": "a", "count": 1, "pair": [1]}, "pair: .* has 1 entries, not 2"),
        ({"name": "a", "count": 1, "inner": [{"kye": ""}]}, r"inner\[0\]: key 'kye' is unknown"),
        ({"name": 3, "count": 1}, "name: 3 is not text"),
        ({"count": 1}, "outer 'number 1': key 'name' is missing"),
    ],
)
def test_a_wrong_row_is_named_with_its_key(row: dict[str, Any], message: str) -> None:
    with pytest.raises(M2Error, match=f"^file.toml, .*{message}"):
        read(**row)


def test_rows_must_be_tables_with_names_of_their_own() -> None:
    with pytest.raises(M2Error, match="'a' appears twice"):
        read_rows(Outer, [{"name": "a", "count": 1}, {"name": "a", "count": 2}], "f")
    with pytest.raises(M2Error, match="an array of tables is needed"):
        read_rows(Outer, {"name": "a"}, "f")
    with pytest.raises(M2Error, match="a table is needed, not 'a'"):
        read_rows(Outer, ["a"], "f")


def test_an_unknown_table_and_a_missing_file_are_named() -> None:
    with pytest.raises(M2Error, match="table 'varaint' is unknown"):
        check_tables({"varaint": []}, ("variant",), "variants.toml")
    with pytest.raises(M2Error, match=r"none\.toml cannot be read"):
        read_toml("none.toml")
