import pytest

from m2serve.chat.messages import (
    MAX_MESSAGES,
    MAX_TOOL_CALLS,
    Assistant,
    System,
    ToolCall,
    ToolResult,
    User,
    normalize,
)
from m2serve.errors import RequestError


def user(text: object = "Q") -> dict:
    return {"role": "user", "content": text}


def system(text: object) -> dict:
    return {"role": "system", "content": text}


def calls(*ids: str | None, arguments: object = "{}") -> dict:
    made = [{"id": id, "function": {"name": "f", "arguments": arguments}} for id in ids]
    return {"role": "assistant", "content": None, "tool_calls": made}


def result(id: str | None, text: object) -> dict:
    return {"role": "tool", "tool_call_id": id, "content": text}


def texts(messages: list[dict]) -> list[str]:
    turns = normalize(messages).turns
    return [t.content if isinstance(t, Assistant) else t.text for t in turns]


REMINDER = "<system-reminder>\nS\n</system-reminder>"


@pytest.mark.parametrize(
    ("messages", "wanted"),
    [
        ([user(), system("S")], [f"Q\n\n{REMINDER}"]),
        ([user(""), system("S")], [REMINDER]),
        ([user(), system("S"), system("S")], [f"Q\n\n{REMINDER}\n\n{REMINDER}"]),
        ([user(), {"role": "developer", "content": "S"}, user()], [f"Q\n\n{REMINDER}", "Q"]),
        (
            [user(), {"role": "assistant", "content": "A"}, system("S"), user()],
            ["Q", "A", f"{REMINDER}\n\nQ"],
        ),
        ([user(), {"role": "assistant", "content": "A"}, system("S")], ["Q", "A", REMINDER]),
        (
            [user(), calls("a"), result("a", "R"), system("S")],
            ["Q", "", f"R\n\n{REMINDER}"],
        ),
        (
            [user(), calls("a"), system("S"), result("a", "R"), user()],
            ["Q", "", f"R\n\n{REMINDER}", "Q"],
        ),
        (
            [user(), calls("a", "b"), result("b", "B"), system("S"), result("a", "A")],
            ["Q", "", "A", f"B\n\n{REMINDER}"],
        ),
        ([user(), system(f" {REMINDER}\n")], [f"Q\n\n{REMINDER}"]),
        ([user(), system("")], ["Q"]),
    ],
)
def test_a_later_system_message_is_folded_in(messages: list[dict], wanted: list[str]) -> None:
    assert texts(messages) == wanted


def test_folding_does_not_change_when_the_conversation_goes_on() -> None:
    start = [user(), calls("a"), result("a", "R"), system("S")]
    turns = normalize(start).turns
    assert normalize([*start, user("next")]).turns[: len(turns)] == turns


def test_leading_system_messages_are_merged() -> None:
    messages = [
        {**system("One."), "current_date": "2026-01-02"},
        system(""),
        {"role": "developer", "content": [{"type": "text", "text": "Two."}]},
        user(),
    ]
    assert normalize(messages).system == System("One.\n\nTwo.", "2026-01-02")


def test_string_and_list_content_are_one() -> None:
    part = {"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}
    for role in ("system", "user", "assistant"):
        as_string = normalize([user(), {"role": role, "content": "S"}])
        assert normalize([user(), {"role": role, "content": [part]}]) == as_string
    as_string = normalize([user(), calls("a"), result("a", "S")])
    assert normalize([user(), calls("a"), result("a", [part])]) == as_string
    assert texts([user(["a", {"type": "text", "text": "b"}])]) == ["ab"]


@pytest.mark.parametrize(
    ("message", "reasoning", "content"),
    [
        ({"content": "A", "reasoning_content": " R\n"}, " R\n", "A"),
        ({"content": "A", "reasoning": "R"}, "R", "A"),
        ({"content": "A", "reasoning_content": "", "reasoning": "R"}, "R", "A"),
        ({"content": "A", "reasoning_content": "R", "reasoning": "R"}, "R", "A"),
        ({"content": "A", "reasoning_details": [{"text": "R"}, {"text": "S"}, {}]}, "RS", "A"),
        ({"content": "<think>\nR\n</think>\n\nA"}, "R", "A"),
        ({"content": "\n<think>R</think>A </think>"}, "R", "A </think>"),
        ({"content": "a <think>R</think>A"}, "", "a <think>R</think>A"),
        ({"content": "<think>R"}, "", "<think>R"),
        ({"content": "A </think> B"}, "", "A </think> B"),
        ({"content": None}, "", ""),
        ({}, "", ""),
    ],
)
def test_reasoning_under_any_name(message: dict, reasoning: str, content: str) -> None:
    turn = normalize([{"role": "assistant", **message}]).turns[0]
    assert turn == Assistant(content, reasoning)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ('{ "a":1,\n"b": "x" }', {"a": 1, "b": "x"}),
        ({"a": 1, "b": "x"}, {"a": 1, "b": "x"}),
        ("", {}),
        (None, {}),
        ("{}", {}),
    ],
)
def test_arguments_are_an_object(arguments: object, wanted: dict) -> None:
    turn = normalize([user(), calls("a", arguments=arguments)]).turns[1]
    assert turn == Assistant("", "", (ToolCall("a", "f", wanted),))


def test_a_flat_call_is_read_too() -> None:
    message = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}
    assert normalize([message]).turns[0].tool_calls == (ToolCall("", "f", {"a": 1}),)


@pytest.mark.parametrize(
    ("ids", "results", "wanted"),
    [
        (("a", "b"), [("b", "B"), ("a", "A")], ["A", "B"]),
        (("a", "a"), [("a", "1"), ("a", "2")], ["1", "2"]),
        ((None, None), [(None, "1"), (None, "2")], ["1", "2"]),
        (("a", "b", "a"), [("a", "1"), ("a", "3"), ("b", "2")], ["1", "2", "3"]),
    ],
)
def test_results_take_the_order_of_the_calls(
    ids: tuple, results: list[tuple], wanted: list[str]
) -> None:
    messages = [user(), calls(*ids), *(result(id, text) for id, text in results)]
    turns = normalize(messages).turns[2:]
    assert [turn.text for turn in turns if isinstance(turn, ToolResult)] == wanted


def test_ids_may_come_again_in_the_next_round() -> None:
    messages = [user(), calls("a"), result("a", "1"), calls("a"), result("a", "2")]
    assert texts(messages) == ["Q", "", "1", "", "2"]


def test_calls_at_the_very_end_need_no_result() -> None:
    assert len(normalize([user(), calls("a", "b")]).turns) == 2


def nested(depth: int) -> dict:
    value: dict = {}
    for _ in range(depth):
        value = {"a": value}
    return value


CALL = {"id": "a", "function": {"name": "f", "arguments": "{}"}}
REFUSED = [
    ("x", "messages", "list"),
    ([], "messages", "0 messages"),
    ([user()] * (MAX_MESSAGES + 1), "messages", str(MAX_MESSAGES)),
    ([user(), "x"], "messages[1]", "str"),
    ([{"content": "x"}], "messages[0].role", "None"),
    ([{"role": "function", "name": "f", "content": ""}], "messages[0].role", "'tool'"),
    ([user(), {"role": "robot"}], "messages[1].role", "robot"),
    ([user(3)], "messages[0].content", "int"),
    ([user([{"type": "text"}])], "messages[0].content[0].text", "missing"),
    ([user(["a", {"type": "image_url"}])], "messages[0].content[1]", "image_url"),
    ([user([1])], "messages[0].content[0]", "int"),
    (
        [user(), calls("a"), result("a", [{"type": "image", "source": {}}])],
        "messages[2].content[0]",
        "image",
    ),
    ([{"role": "assistant", "reasoning": 1}], "messages[0].reasoning", "int"),
    ([{"role": "assistant", "reasoning_details": "x"}], "messages[0].reasoning_details", "list"),
    (
        [{"role": "assistant", "reasoning_details": [{"text": 1}]}],
        "messages[0].reasoning_details[0].text",
        "string",
    ),
    ([{"role": "assistant", "function_call": {}}], "messages[0].function_call", "tool_calls"),
    ([{"role": "assistant", "tool_calls": "x"}], "messages[0].tool_calls", "str"),
    ([{"role": "assistant", "tool_calls": ["x"]}], "messages[0].tool_calls[0]", "object"),
    (
        [{"role": "assistant", "tool_calls": [CALL] * (MAX_TOOL_CALLS + 1)}],
        "messages[0].tool_calls",
        str(MAX_TOOL_CALLS),
    ),
    (
        [{"role": "assistant", "tool_calls": [CALL, {"function": {}}]}],
        "messages[0].tool_calls[1].function.name",
        "None",
    ),
    (
        [{"role": "assistant", "tool_calls": [{**CALL, "id": 3}]}],
        "messages[0].tool_calls[0].id",
        "int",
    ),
    *(
        (
            [user(), calls("a", arguments=arguments)],
            "messages[1].tool_calls[0].function.arguments",
            word,
        )
        for arguments, word in (
            ("{", "JSON"),
            ('{"a": NaN}', "NaN"),
            ('{"a": 1e999}', "inf"),
            ("[1]", "object"),
            ("3", "object"),
            (3, "object"),
            ({"a": float("inf")}, "inf"),
            ({"a": {1}}, "set"),
            ({"a": {1: 2}}, "string"),
            (nested(70), "64"),
            ("[" * 100_000, "JSON"),
            ("1" * 5_000, "JSON"),
        )
    ),
    ([result("a", "x")], "messages[0]", "'a'"),
    ([user(), calls("a"), result("b", "x")], "messages[2]", "'b'"),
    ([user(), calls("a"), result("a", "x"), result("a", "y")], "messages[3]", "second"),
    ([user(), calls("a"), result("a", "x"), user(), result("a", "y")], "messages[4]", "'a'"),
    ([user(), calls("a"), result(3, "x")], "messages[2].tool_call_id", "int"),
    ([user(), calls("a", "b"), result("a", "x")], "messages[1].tool_calls[1]", "'b'"),
    ([user(), calls("a"), user()], "messages[1].tool_calls[0]", "'a'"),
    ([user(), calls("a"), system("S")], "messages[1].tool_calls[0]", "'a'"),
    ([{**system("x"), "current_date": 3}], "messages[0].current_date", "int"),
]


@pytest.mark.parametrize(("messages", "param", "word"), REFUSED)
def test_refusals_name_the_field(messages: list, param: str, word: str) -> None:
    with pytest.raises(RequestError) as error:
        normalize(messages)
    assert error.value.param == param
    assert word in str(error.value)
    assert error.value.status == 400


def test_many_reminders_cost_no_more_than_their_length() -> None:
    messages = [user(), *(system("x" * 1000) for _ in range(10_000))]
    turn = normalize(messages).turns[0]
    assert isinstance(turn, User)
    assert turn.text.count("<system-reminder>") == 10_000
