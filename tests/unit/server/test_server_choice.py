import random
from itertools import pairwise

import pytest
from fake_engine import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from m2serve.chat.events import ContentDelta, ToolCallStart, fold
from m2serve.chat.parser import OutputParser, ParserOptions
from m2serve.chat.tools import parse_tools
from m2serve.engine.request import EngineOutput, TokenLogprob
from m2serve.server.choice import Choice, ChoiceUpdate, PlainText, StopRules

TOOLS = parse_tools([{"type": "function", "function": {"name": name}} for name in ("f", "g")])
CALL = '<invoke name="%s">\n<parameter name="a">1</parameter>\n</invoke>\n'
CALLS = f"r</think>c<minimax:tool_call>\n{CALL % 'f'}{CALL % 'g'}</minimax:tool_call>"


def ids_of(text: str) -> list[int]:
    return tiny_tokenizer().encode(text, allow_control=True)


def plain(stop: StopRules | None = None, **options: bool) -> Choice:
    return Choice(tiny_tokenizer(), PlainText(), stop or StopRules(), **options)


def chat(stop: StopRules | None = None, max_tool_calls: int | None = None) -> Choice:
    parser = OutputParser(TOOLS, ParserOptions(), tiny_tokenizer().control)
    return Choice(tiny_tokenizer(), parser, stop or StopRules(), max_tool_calls=max_tool_calls)


def feed(
    choice: Choice, ids: list[int], cuts: list[int], reason: str = "stop"
) -> list[ChoiceUpdate]:
    """Feed the ids cut into portions; stops, as the server does, at the first finish_reason."""
    updates = []
    borders = [0, *sorted(cuts), len(ids)]
    for start, end in pairwise(borders):
        last = end == len(ids) and start != end
        portion = ids[start:end]
        update = choice.update(
            EngineOutput(
                request_id="x",
                token_ids=portion,
                logprobs=[[TokenLogprob(id, -1.0, 1)] for id in portion],
                finish_reason=reason if last else None,
            )
        )
        updates.append(update)
        if update.finish_reason is not None:
            break
    return updates


def text_of(updates: list[ChoiceUpdate]) -> str:
    return "".join(e.text for u in updates for e in u.events if isinstance(e, ContentDelta))


TEXT = st.text(alphabet="abc <>/think日🦄", min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(TEXT, st.lists(st.text("abc 日", min_size=1, max_size=4), max_size=3), st.data())
def test_any_cutting_gives_the_text_up_to_the_first_stop_string(
    text: str, stop: list[str], data: st.DataObject
) -> None:
    ids = ids_of(text)
    cuts = data.draw(st.lists(st.integers(0, len(ids)), max_size=5))
    include = data.draw(st.booleans())
    updates = feed(plain(StopRules(tuple(stop), include)), ids, cuts, "length")
    # The stop string that ends first; of several ending there, the longest.
    ends = [(text.find(s) + len(s), -len(s)) for s in stop if s in text]
    if ends:
        end, negative_length = min(ends)
        assert text_of(updates) == text[: end if include else end + negative_length]
        assert updates[-1].finish_reason == "stop"
        assert updates[-1].stop_reason == text[end + negative_length : end]
    else:
        assert text_of(updates) == tiny_tokenizer().decode(ids, skip_special=True)
        assert updates[-1].finish_reason == "length"
        assert updates[-1].stop_reason is None
    assert all(update.finish_reason is None for update in updates[:-1])


@pytest.mark.parametrize("seed", range(30))
def test_any_cutting_gives_the_same_chat_events(seed: int) -> None:
    rng = random.Random(seed)
    ids = ids_of(CALLS)
    cuts = [rng.randrange(len(ids)) for _ in range(rng.randrange(20))]
    parsed = fold(event for update in feed(chat(), ids, cuts) for event in update.events)
    assert (parsed.reasoning, parsed.content) == ("r", "c")
    assert [(call.name, call.arguments) for call in parsed.tool_calls] == [
        ("f", '{"a": "1"}'),
        ("g", '{"a": "1"}'),
    ]


@pytest.mark.parametrize("stop", ["think>c<min", "</think>", "k>c", "c<minimax:tool_call>\n<inv"])
def test_stop_strings_across_markers(stop: str) -> None:
    for size in (1, 3, 100):
        ids = ids_of(CALLS)
        updates = feed(chat(StopRules((stop,))), ids, list(range(size, len(ids), size)))
        parsed = fold(event for update in updates for event in update.events)
        assert parsed.tool_calls == ()
        assert updates[-1].stop_reason == stop
        if stop == "</think>":
            assert (parsed.reasoning, parsed.content) == ("r", None)


def test_a_stop_string_that_never_comes_changes_nothing() -> None:
    ids = ids_of(CALLS)
    for stop in ("think>zzz", "<minimax:tool_call>\nzzz", "</invoke>zzz"):
        updates = feed(chat(StopRules((stop,))), ids, list(range(len(ids))))
        parsed = fold(event for update in updates for event in update.events)
        assert (parsed.reasoning, parsed.content, len(parsed.tool_calls)) == ("r", "c", 2)
        assert updates[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize("size", [1, 7, 100])
def test_one_call_too_many_ends_the_choice(size: int) -> None:
    ids = ids_of(CALLS)
    updates = feed(chat(max_tool_calls=1), ids, list(range(size, len(ids), size)))
    events = [event for update in updates for event in update.events]
    assert sum(isinstance(event, ToolCallStart) for event in events) == 1
    assert fold(events).tool_calls[0].arguments == '{"a": "1"}'
    assert updates[-1].finish_reason == "tool_calls"


def test_offsets_logprobs_and_counts_go_with_the_ids() -> None:
    ids = ids_of("日本 ab")
    choice = plain()
    updates = feed(choice, ids, [1, 4], "length")
    offsets = [offset for update in updates for offset in update.text_offsets]
    text = text_of(updates)
    assert [id for update in updates for id in update.token_ids] == ids
    assert choice.num_tokens == len(ids)
    for id, offset, following in zip(ids, offsets, [*offsets[1:], len(text)], strict=True):
        piece = tiny_tokenizer().decode([id])
        assert "\ufffd" in piece or text[offset:following] == piece
    logprobs = [at[0].token_id for update in updates for at in update.logprobs or []]
    assert logprobs == ids


def test_ids_behind_a_stop_string_in_one_portion_are_dropped() -> None:
    ids = ids_of("a b c d")
    update = feed(plain(StopRules(("b",))), ids, [])[0]
    assert len(update.token_ids) < len(ids)
    assert update.logprobs is not None
    assert len(update.logprobs) == len(update.token_ids)


def test_the_end_of_turn_is_never_text_but_other_stop_tokens_may_be() -> None:
    eos = tiny_tokenizer().control.turn_end
    (a,) = ids_of("a")
    for stop_token, include, text, stop_reason in (
        (eos, False, "a", None),
        (eos, True, "a", None),
        (a, False, "a", a),
        (a, True, "aa", a),
    ):
        choice = plain(StopRules(include_stop_str_in_output=include))
        output = EngineOutput(
            request_id="x",
            token_ids=[a, stop_token],
            finish_reason="stop",
            stop_token_id=stop_token,
        )
        update = choice.update(output)
        assert text_of([update]) == text
        assert update.stop_reason == stop_reason
        assert choice.num_tokens == 2


def test_what_is_held_comes_with_the_end() -> None:
    choice = plain(StopRules(("abcd",)))
    ids = ids_of("xxab")
    assert text_of(feed(choice, ids, list(range(len(ids))), "length")) == "xxab"
    half = plain()
    byte = ids_of("🦄")[0]
    assert text_of(feed(half, [byte], [], "length")) == "\ufffd"
