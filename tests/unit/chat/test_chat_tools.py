import json

import pytest

from m2serve.chat.tools import MAX_TOOLS, parse_tools
from m2serve.errors import RequestError


def function(**fields: object) -> dict:
    return {"type": "function", "function": {"name": "f", **fields}}


def test_the_model_sees_the_function_as_it_was_sent() -> None:
    fields = {"strict": False, "description": "<b> & 天气", "parameters": {"z": 1, "a": 2.0}}
    (tool,) = parse_tools([function(**fields)])
    assert tool.definition == (
        '{"name": "f", "strict": false, "description": "<b> & 天气", '
        '"parameters": {"z": 1, "a": 2.0}}'
    )
    assert tool.parameters == {"z": 1, "a": 2.0}


def test_no_tools_and_no_parameters() -> None:
    assert parse_tools(None) == parse_tools([]) == ()
    assert parse_tools([function(parameters=None)])[0].parameters == {}


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ({}, "tools"),
        ([function()] * (MAX_TOOLS + 1), "tools"),
        (["f"], "tools[0]"),
        ([{"type": "web_search"}], "tools[0].type"),
        ([{"type": "function", "name": "f"}], "tools[0].function"),
        ([function(), function()], "tools[1].function.name"),
        *(
            ([function(name=name)], "tools[0].function.name")
            for name in ("", None, 3, "x" * 257, 'a"b', "a>b", "a\nb", "<think>")
        ),
        ([function(parameters=[])], "tools[0].function.parameters"),
        ([function(parameters={"a": float("nan")})], "tools[0].function"),
        ([function(parameters=json.loads('{"a":' * 70 + "1" + "}" * 70))], "tools[0].function"),
    ],
)
def test_refusals_name_the_field(tools: object, param: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_tools(tools)
    assert error.value.param == param
