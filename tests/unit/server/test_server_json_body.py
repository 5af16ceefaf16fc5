import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2serve.errors import RequestError
from m2serve.server.json_body import MAX_JSON_DEPTH, MAX_JSON_VALUES, decode_object

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_every_json_object_is_read(document: dict[str, Any]) -> None:
    assert decode_object(json.dumps(document).encode()) == document


@given(st.binary(max_size=200))
def test_any_bytes_give_an_object_or_a_request_error(body: bytes) -> None:
    try:
        document: Any = decode_object(body)
    except RequestError as error:
        document = error.code
    assert isinstance(document, dict) or document == "invalid_json"


@pytest.mark.parametrize(("open_", "close"), [("[", "]"), ('{"a":', "}")])
def test_the_depth_limit_is_exact(open_: str, close: str) -> None:
    def nested(depth: int) -> bytes:
        inner = "1" if open_ != "[" else ""
        return ('{"a":' + open_ * depth + inner + close * depth + "}").encode()

    decode_object(nested(MAX_JSON_DEPTH - 1))
    with pytest.raises(RequestError, match="deeper"):
        decode_object(nested(MAX_JSON_DEPTH))


@pytest.mark.parametrize("value", [b"1", b"[]", b'{"a":1}'])
def test_the_number_of_values_is_bounded(value: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        decode_object(b'{"prompt":[' + (value + b",") * MAX_JSON_VALUES + b"1]}")
    assert caught.value.status == 413


def test_the_last_of_equal_keys_counts() -> None:
    assert decode_object(b'{"a": 1, "a": 2}') == {"a": 2}


@pytest.mark.parametrize("text", [r'"\ud800"', r'"\udfff"', r'"\ud800\u0041"', r'"\udc00\ud800"'])
def test_lone_surrogates_are_refused(text: str) -> None:
    with pytest.raises(RequestError):
        decode_object(b'{"a": ' + text.encode() + b"}")


def test_surrogate_pairs_are_characters() -> None:
    assert decode_object(rb'{"a": "\ud83e\udd84"}') == {"a": "🦄"}
