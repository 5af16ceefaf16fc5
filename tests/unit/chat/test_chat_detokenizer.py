from hypothesis import given
from hypothesis import strategies as st

from m2serve.chat.detokenizer import Detokenizer
from m2serve.chat.tokenizer import Tokenizer


@given(st.lists(st.one_of(st.integers(0, 1199), st.integers(128, 255)), max_size=40))
def test_deltas_join_to_the_decoding(tokenizer: Tokenizer, ids: list[int]) -> None:
    for skip_special in (False, True):
        detokenizer = Detokenizer(tokenizer, skip_special=skip_special)
        spans, text = [], ""
        for id in ids:
            start = detokenizer.num_chars
            delta = detokenizer.push(id)
            spans.append((start, detokenizer.num_chars, delta))
            text += delta
        whole = text + detokenizer.finish()
        assert whole == tokenizer.decode(ids, skip_special=skip_special)
        assert all(whole[start:end] == delta for start, end, delta in spans)


@given(st.text(max_size=60))
def test_no_half_character_is_shown(tokenizer: Tokenizer, text: str) -> None:
    detokenizer = Detokenizer(tokenizer)
    shown = ""
    for id in tokenizer.encode(text):
        shown += detokenizer.push(id)
        assert text.startswith(shown)
    assert shown + detokenizer.finish() == text


def test_a_character_of_four_ids(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(byte) for byte in "🦊".encode()] == ["", "", "", "🦊"]
    assert detokenizer.num_chars == 1
    assert detokenizer.finish() == ""


def test_bytes_that_never_complete(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(0xF0) == ""
    assert detokenizer.push(tokenizer.control.think_end) == "\ufffd</think>"
    assert detokenizer.push(0xE4) + detokenizer.push(0xBD) == ""
    assert detokenizer.finish() == "\ufffd"


def test_an_id_no_token_has_is_no_text(tokenizer: Tokenizer) -> None:
    assert Detokenizer(tokenizer).push(1199) == ""
