"""Ids through detokenizer, stop strings and parser."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2serve.chat.events import ReasoningDelta, fold
from m2serve.chat.parser import OutputParser, ParserOptions
from m2serve.chat.stop import StopMatcher
from m2serve.chat.stream import AnswerStream
from m2serve.chat.tokenizer import Segment, Tokenizer

ANSWER = 'I think.\n</think>\n\nHi 世界 🦊!\n<minimax:tool_call>\n<invoke name="g">\n</invoke>\n'
END = "</minimax:tool_call>[e~["


def run(
    tokenizer: Tokenizer, text: str, sizes: list[int], stop: list[str], include: bool = False
) -> tuple:
    options = ParserOptions(allow_unknown_tools=True, new_call_id=lambda: "id")
    parser = OutputParser((), options, tokenizer.control)
    matcher = StopMatcher(stop, include_stop_str_in_output=include)
    stream = AnswerStream(tokenizer, parser, matcher)
    ids = tokenizer.encode_segments([Segment(text, trusted=True)])
    events = []
    for size in [*sizes, len(ids)]:
        events += stream.push(ids[:size])
        ids = ids[size:]
    output = fold([*events, *stream.finish()])
    return output.reasoning, output.content, len(output.tool_calls), stream.matched_stop


@given(st.lists(st.integers(0, 5), max_size=20), st.sampled_from([[], ["never"], ["</parameter>"]]))
def test_portions_and_stop_strings_that_do_not_match_change_nothing(
    tokenizer: Tokenizer, sizes: list[int], stop: list[str]
) -> None:
    assert run(tokenizer, ANSWER + END, sizes, stop) == ("I think.", "Hi 世界 🦊!", 1, None)


@pytest.mark.parametrize(
    ("stop", "wanted"),
    [
        ("界", ("I think.", "Hi 世", 0, "界")),
        ("think", ("I", None, 0, "think")),
        ("</think>", ("I think.", None, 0, "</think>")),
        ("\n</think>\n", ("I think.", None, 0, "\n</think>\n")),
        ("ink>", ("I think.\n</th", None, 0, "ink>")),
        ("[e~[", ("I think.", "Hi 世界 🦊!", 1, None)),
        ('">', ("I think.", 'Hi 世界 🦊!\n<minimax:tool_call>\n<invoke name="g', 0, '">')),
    ],
)
def test_stop_strings(tokenizer: Tokenizer, stop: str, wanted: tuple) -> None:
    for sizes in ([], [1] * 100):
        assert run(tokenizer, ANSWER + END, sizes, [stop]) == wanted


def test_a_stop_string_may_be_kept(tokenizer: Tokenizer) -> None:
    assert run(tokenizer, ANSWER, [], ["界"], include=True) == ("I think.", "Hi 世界", 0, "界")


def test_nothing_comes_after_a_match(tokenizer: Tokenizer) -> None:
    stream = AnswerStream(tokenizer, OutputParser(control=tokenizer.control), StopMatcher(["b"]))
    assert stream.push(tokenizer.encode("a b c")) == [ReasoningDelta("a")]
    assert stream.push(tokenizer.encode("d")) == []
    assert stream.finish() == []


def test_an_answer_that_ends_inside_a_character(tokenizer: Tokenizer) -> None:
    stream = AnswerStream(tokenizer, OutputParser(control=tokenizer.control), StopMatcher([]))
    assert stream.push([0x41, 0xF0]) == [ReasoningDelta("A")]
    assert stream.finish() == [ReasoningDelta("\ufffd")]
    assert stream.num_reasoning_tokens == 2
