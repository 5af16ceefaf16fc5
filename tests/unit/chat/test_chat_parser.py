"""Every golden output whole, by character, by id; and every place where it can be cut off."""

import json

import pytest

from m2serve.chat.detokenizer import Detokenizer
from m2serve.chat.events import (
    ContentDelta,
    ParsedOutput,
    ToolArgumentsDelta,
    ToolCallStart,
    fold,
)
from m2serve.chat.parser import OutputParser, ParserOptions, parse_output
from m2serve.chat.tokenizer import Segment, Tokenizer
from m2serve.chat.tools import Tool, parse_tools

ANY_TOOL = ParserOptions(allow_unknown_tools=True, new_call_id=lambda: "id")


def parser_for(case: dict, tools: tuple[Tool, ...], tokenizer: Tokenizer | None) -> OutputParser:
    options = ParserOptions(**case["options"], new_call_id=lambda: "id")
    return OutputParser(tools, options, tokenizer.control if tokenizer else None)


def as_golden(output: ParsedOutput) -> tuple:
    calls = [[call.name, call.arguments] for call in output.tool_calls]
    return output.reasoning, output.content, calls


def pieces_of(tokenizer: Tokenizer, text: str) -> list[tuple[str, int | None]]:
    """The output as its ids would bring it; markers in `text` are control tokens."""
    detokenizer = Detokenizer(tokenizer, skip_special=True)
    ids = tokenizer.encode_segments([Segment(text, trusted=True)])
    return [*((detokenizer.push(id), id) for id in ids), (detokenizer.finish(), None)]


def test_golden_whole(output_case: dict, output_tools: tuple[Tool, ...]) -> None:
    parser = parser_for(output_case, output_tools, None)
    output = parse_output(parser, [(output_case["output"], None)])
    wanted = (output_case["reasoning"], output_case["content"], output_case["tool_calls"])
    assert as_golden(output) == wanted


def test_golden_by_character_and_by_id(
    output_case: dict, output_tools: tuple[Tool, ...], tokenizer: Tokenizer
) -> None:
    text = output_case["output"]
    wanted = (output_case["reasoning"], output_case["content"], output_case["tool_calls"])
    by_char = parser_for(output_case, output_tools, None)
    assert as_golden(parse_output(by_char, [(char, None) for char in text])) == wanted
    by_id = parser_for(output_case, output_tools, tokenizer)
    assert as_golden(parse_output(by_id, pieces_of(tokenizer, text))) == wanted


def test_golden_cut_off_anywhere(
    output_case: dict, output_tools: tuple[Tool, ...], tokenizer: Tokenizer
) -> None:
    """Arguments are always a JSON object, and no call appears whose name is not complete."""
    text = output_case["output"]
    names = {name for name, _ in output_case["tool_calls"]}
    for end in range(len(text)):
        parser = parser_for(output_case, output_tools, None)
        output = parse_output(parser, [(text[:end], None)])
        for call in output.tool_calls:
            assert isinstance(json.loads(call.arguments), dict)
            assert call.name in names
            assert f'{call.name}"' in text[:end] or f"{call.name}'" in text[:end]
    pieces = pieces_of(tokenizer, text)
    for end in range(len(pieces)):
        output = parse_output(parser_for(output_case, output_tools, tokenizer), pieces[:end])
        assert all(isinstance(json.loads(c.arguments), dict) for c in output.tool_calls)


def test_markers_spelled_in_ordinary_tokens_are_text(
    tokenizer: Tokenizer, output_tools: tuple[Tool, ...]
) -> None:
    text = 'a </think> <minimax:tool_call>\n<invoke name="g">\n</invoke>\n</minimax:tool_call>'
    detokenizer = Detokenizer(tokenizer)
    parser = OutputParser(output_tools, control=tokenizer.control)
    pieces = [(detokenizer.push(id), id) for id in tokenizer.encode(text)]
    output = parse_output(parser, pieces)
    assert (output.reasoning, output.content, output.tool_calls) == (text, None, ())


def test_without_tools_everything_is_content(output_tools: tuple[Tool, ...]) -> None:
    text = '<minimax:tool_call>\n<invoke name="g">\n</invoke>\n</minimax:tool_call>'
    output = parse_output(OutputParser(), [(f"r {text} </think>\n\n{text}", None)])
    assert output.reasoning == f"r {text}"
    assert output.content == text


def test_an_incomplete_character_in_front_of_a_marker(tokenizer: Tokenizer) -> None:
    parser = OutputParser(control=tokenizer.control)
    detokenizer = Detokenizer(tokenizer)
    ids = [0xF0, tokenizer.control.think_end, 0x41]
    output = parse_output(parser, [(detokenizer.push(id), id) for id in ids])
    assert (output.reasoning, output.content) == ("\ufffd", "A")


def test_lone_surrogates_are_no_markers() -> None:
    text = "a\udc01b\udc02"
    assert parse_output(OutputParser(), [(text, None)]).reasoning == "a\ufffdb\ufffd"


def test_strings_stream_and_other_types_wait(output_tools: tuple[Tool, ...]) -> None:
    options = ParserOptions(new_call_id=lambda: "id")
    parser = OutputParser(output_tools, options)
    steps = [
        ('r</think><minimax:tool_call>\n<invoke name="f', []),
        ('">\n', [ToolCallStart(0, "id", "f")]),
        ('<parameter name="s">', [ToolArgumentsDelta(0, '{"s": "')]),
        ("hel", [ToolArgumentsDelta(0, "hel")]),
        ('lo "x', [ToolArgumentsDelta(0, 'lo \\"x')]),
        ("</param", []),
        ("eter>\n", []),
        ('<parameter name="n">', [ToolArgumentsDelta(0, '", "n": ')]),
        ("1", []),
        ("2</parameter>\n", []),
        ("</invoke>", [ToolArgumentsDelta(0, "12}")]),
    ]
    parser.push("")
    for text, wanted in steps:
        events = [event for event in parser.push(text) if not hasattr(event, "text")]
        assert events == wanted, text


def test_a_call_without_arguments_is_an_empty_object(output_tools: tuple[Tool, ...]) -> None:
    parser = OutputParser(output_tools, ParserOptions(new_call_id=lambda: "id"))
    events = parser.push('</think><invoke name="g"></invoke>')
    assert events == [ToolCallStart(0, "id", "g"), ToolArgumentsDelta(0, "{}")]


def test_content_never_interrupts_a_call(output_tools: tuple[Tool, ...]) -> None:
    text = '</think><invoke name="f">one <parameter name="s">x</parameter></invoke>two'
    parser = OutputParser(output_tools)
    events = [event for char in text for event in parser.push(char)] + parser.finish()
    kinds = [type(event) for event in events]
    assert ContentDelta not in kinds[: len(kinds) - kinds[::-1].index(ToolArgumentsDelta)]
    assert fold(events).content == "onetwo"


def test_calls_beyond_the_limit_are_content(output_tools: tuple[Tool, ...]) -> None:
    call = '<invoke name="g"></invoke>'
    options = ParserOptions(max_tool_calls=2)
    output = parse_output(OutputParser(output_tools, options), [("</think>" + call * 4, None)])
    assert len(output.tool_calls) == 2
    assert output.content == call * 2


def test_ids_differ() -> None:
    text = '</think><invoke name="g"></invoke>' * 3
    options = ParserOptions(allow_unknown_tools=True)
    calls = parse_output(OutputParser((), options), [(text, None)]).tool_calls
    assert len({call.id for call in calls}) == 3


def test_a_name_has_a_bound() -> None:
    for length, count in ((256, 1), (257, 0)):
        text = f'</think><invoke name="{"x" * length}"></invoke>'
        output = parse_output(OutputParser((), ANY_TOOL), [(text, None)])
        assert len(output.tool_calls) == count
        assert (output.content or "") == ("" if count else text.removeprefix("</think>"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a b c</think>\n\nd", "a b c"),
        ("a b c", "a b c"),
        (
            'a b c<minimax:tool_call>\n<invoke name="g">\n</invoke>\n</minimax:tool_call>[e~[',
            "a b c",
        ),
        ("<think>a b c</think>d</think>e", "a b c"),
        ("a <minimax:tool_call> b</think>c", "a  b"),
        ("</think>d", ""),
    ],
)
def test_reasoning_tokens(tokenizer: Tokenizer, text: str, wanted: str) -> None:
    parser = OutputParser((), ANY_TOOL, tokenizer.control)
    parse_output(parser, pieces_of(tokenizer, text))
    pieces = [tokenizer.encode(part) for part in wanted.split("  ")]
    spaced = [tokenizer.encode("a "), tokenizer.encode(" b")]
    ids = spaced if "  " in wanted else pieces
    assert parser.num_reasoning_tokens == sum(map(len, ids))


def test_schemas_of_the_tools_are_used() -> None:
    tool = {"name": "t", "parameters": {"properties": {"n": {"type": "integer"}}}}
    tools = parse_tools([{"type": "function", "function": tool}])
    text = '</think><invoke name="t"><parameter name="n">5</parameter></invoke>'
    output = parse_output(OutputParser(tools), [(text, None)])
    assert output.tool_calls[0].arguments == '{"n": 5}'
