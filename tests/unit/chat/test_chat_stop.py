import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2serve.chat.stop import MAX_STOP_CHARS, MAX_STOP_STRINGS, StopMatcher
from m2serve.errors import RequestError


def cut(text: str, stop: list[str]) -> tuple[str, str | None]:
    """The definition: the match that ends first, the longest of those."""
    for end in range(1, len(text) + 1):
        matches = [string for string in stop if text[:end].endswith(string)]
        if matches:
            longest = max(matches, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    st.text("ab", max_size=40),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=4),
    st.lists(st.integers(1, 5), min_size=40, max_size=40),
    st.booleans(),
)
def test_any_chunking_gives_the_definition(
    text: str, stop: list[str], sizes: list[int], include: bool
) -> None:
    matcher = StopMatcher(stop, include_stop_str_in_output=include)
    wanted, matched = cut(text, stop)
    shown, rest = "", text
    for size in sizes:
        shown += matcher.push(rest[:size])
        rest = rest[size:]
        if matcher.matched is None:
            assert wanted.startswith(shown)
    shown += matcher.finish()
    assert matcher.matched == matched
    assert shown == wanted + (matched or "") * include


def test_only_what_may_become_a_stop_string_is_held() -> None:
    matcher = StopMatcher(["\n\nHuman:"])
    assert matcher.push("Hi\n") == "Hi"
    assert matcher.push("you") == "\nyou"
    assert matcher.push("\n\nHum") == ""
    assert matcher.finish() == "\n\nHum"


def test_nothing_is_shown_behind_a_match() -> None:
    matcher = StopMatcher(["x"])
    assert matcher.push("axb") == "a"
    assert matcher.push("c") == ""
    assert matcher.finish() == ""


def test_work_is_linear_where_prefixes_repeat() -> None:
    steps = 0

    class Counting(list):
        def __getitem__(self, index: int) -> int:
            nonlocal steps
            steps += 1
            return super().__getitem__(index)

    matcher = StopMatcher(["a" * 1000 + "b", "a" * 500 + "c"])
    matcher._fail = Counting(matcher._fail)
    for _ in range(200):
        matcher.push("a" * 99)
    matcher.push("d")
    assert steps <= 2 * 20_000


@pytest.mark.parametrize(
    "stop", [[""], ["a", ""], ["x" * (MAX_STOP_CHARS + 1)], ["a"] * (MAX_STOP_STRINGS + 1)]
)
def test_bounds(stop: list[str]) -> None:
    with pytest.raises(RequestError) as error:
        StopMatcher(stop)
    assert error.value.param.startswith("stop")
