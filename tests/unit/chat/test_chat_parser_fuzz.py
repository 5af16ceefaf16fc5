"""Near misses of the format: chunking changes nothing, nothing is lost, work stays linear."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2serve.chat.detokenizer import Detokenizer
from m2serve.chat.events import ParsedOutput, fold
from m2serve.chat.parser import OutputParser, ParserOptions, parse_output
from m2serve.chat.reader import OutputReader
from m2serve.chat.tokenizer import Segment, Tokenizer
from m2serve.chat.tools import Tool

FRAGMENTS = (
    *("<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>"),
    *('<invoke name="f">', "<invoke name='g'>", '<invoke name="h">', "</invoke>", "</invoke >"),
    *('<parameter name="s">', '<parameter name="n">', '<parameter name="o">', "</parameter>"),
    *('<parameter name="x">', "<parameter name=b>", "</parameter >\n", '<parameter name="'),
    *("<", "</", "<invoke", "<invoke name=", '">', "<minimax:tool", "</para", "</inv", "<par"),
    *("\n", "\n\n", " ", " " * 70, '"', "\\", "{", "}", '{"a": [1]}', "3", "null", "true", "中"),
)
WELL_FORMED = (
    '</think>\n\n<minimax:tool_call>\n<invoke name="f">\n<parameter name="s">',
    "</parameter>\n</invoke>\n</minimax:tool_call>",
    '</parameter>\n<parameter name="n">',
    '</parameter>\n<parameter name="s">',
    '</invoke>\n<invoke name="f">\n<parameter name="o">',
    '<invoke name="g">\n</invoke>\n',
)


@st.composite
def outputs(draw: st.DrawFn) -> str:
    """Fragments with numbered words between them, so that every word can be looked for."""
    pieces = draw(st.lists(st.sampled_from(FRAGMENTS + WELL_FORMED + ("WORD",) * 15), max_size=25))
    return "".join(f"w{i}w" if piece == "WORD" else piece for i, piece in enumerate(pieces))


options = st.builds(
    ParserOptions,
    starts_in_reasoning=st.booleans(),
    allow_tool_calls=st.sampled_from((True, True, True, False)),
    allow_unknown_tools=st.booleans(),
    keep_think=st.booleans(),
    max_tool_calls=st.sampled_from((1, 128)),
    new_call_id=st.just(lambda: "id"),
)


def chunked(text: str, sizes: list[int]) -> list[tuple[str, None]]:
    pieces = []
    for size in sizes:
        pieces.append((text[:size], None))
        text = text[size:]
    return [*pieces, (text, None)]


def object_without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict:
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def check_calls(output: ParsedOutput) -> None:
    for call in output.tool_calls:
        arguments = json.loads(call.arguments, object_pairs_hook=object_without_repeated_keys)
        assert isinstance(arguments, dict)


@settings(max_examples=400)
@given(outputs(), options, st.lists(st.integers(0, 9), max_size=30))
def test_chunking_changes_nothing(
    output_tools: tuple[Tool, ...],
    tokenizer: Tokenizer,
    text: str,
    options: ParserOptions,
    sizes: list[int],
) -> None:
    whole = parse_output(OutputParser(output_tools, options), [(text, None)])
    check_calls(whole)
    by_char = [(char, None) for char in text]
    assert parse_output(OutputParser(output_tools, options), by_char) == whole
    assert parse_output(OutputParser(output_tools, options), chunked(text, sizes)) == whole
    detokenizer = Detokenizer(tokenizer)
    ids = tokenizer.encode_segments([Segment(text, trusted=True)])
    by_id = [(detokenizer.push(id), id) for id in ids]
    assert parse_output(OutputParser(output_tools, options, tokenizer.control), by_id) == whole


@settings(max_examples=400)
@given(outputs(), options)
def test_nothing_is_lost(output_tools: tuple[Tool, ...], text: str, options: ParserOptions) -> None:
    """Every word is somewhere; a line behind it keeps the last tag from being cut off."""
    output = parse_output(OutputParser(output_tools, options), [(text + "\n.", None)])
    said = "\0".join([output.reasoning or "", output.content or ""])
    said += "\0".join(f"{call.name}\0{call.arguments}" for call in output.tool_calls)
    assert [w for w in re.findall(r"w\d+w", text) if w not in said] == []


@settings(max_examples=200)
@given(outputs(), options)
def test_every_character_of_an_answer_without_calls_stays(
    text: str, options: ParserOptions
) -> None:
    output = parse_output(OutputParser((), options), [(text, None)])
    if not output.tool_calls:
        said = (output.reasoning or "") + (output.content or "")
        assert _letters(said) == _letters(text)


def _letters(text: str) -> str:
    return re.sub(r"</?think>|\s", "", text)


@settings(max_examples=200)
@given(st.text(max_size=40))
def test_any_string_value_survives(output_tools: tuple[Tool, ...], value: str) -> None:
    text = f'</think><invoke name="f"><parameter name="s">{value}</parameter></invoke>'
    output = parse_output(OutputParser(output_tools, ParserOptions()), [(text, None)])
    assert json.loads(output.tool_calls[0].arguments) == {"s": value}


HOSTILE = {
    "open angles": "<" * 4_000,
    "markers": "<minimax:tool_call>" * 300,
    "blocks without a name": '<minimax:tool_call>\n<invoke name="' * 150,
    "long names": ('<invoke name="' + "x" * 300) * 20,
    "ends of values": "</parameter>" * 400,
    "ends and blanks": ("</parameter>" + " " * 63) * 80,
    "ends and keys": ('</parameter>\n<parameter name="' + "k" * 250) * 20,
    "new keys": "".join(f'<parameter name="k{i}">v</parameter>\n' for i in range(150)),
    "the same key": '<parameter name="s">v</parameter>\n' * 150,
    "calls": '</parameter></invoke>\n<invoke name="f"><parameter name="s">' * 140,
    "blanks": " \n" * 3_000,
    "deep JSON": '<parameter name="o">' + "[" * 6_000,
}


@pytest.mark.parametrize("by_char", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_work_is_linear_and_little_is_held(
    output_tools: tuple[Tool, ...], name: str, by_char: bool
) -> None:
    """Counted: steps taken and looks ahead, each of which reads less than a kilobyte."""
    count = 0

    class Counting(OutputReader):
        def take(self, end: int) -> str:
            nonlocal count
            count += 1
            return super().take(end)

        def _look(self, read: Any) -> Any:
            nonlocal count
            count += 1
            return super()._look(read)

    for start in (
        "",
        "</think>",
        '</think><invoke name="f">',
        '</think><invoke name="f"><parameter name="s">',
    ):
        text = start + HOSTILE[name]
        parser = OutputParser(output_tools, ParserOptions(new_call_id=lambda: "id"))
        parser._reader = Counting()
        count, events = 0, []
        for piece in text if by_char else [text]:
            events += parser.push(piece)
            assert len(parser._reader.text) - parser._reader.at < 1000
        events += parser.finish()
        assert count <= 8 * len(text) + 100
        check_calls(fold(events))
