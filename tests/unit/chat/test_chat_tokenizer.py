import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizer import NUM_PADDING_ROWS

from m2serve.chat.control import CONTROL_TEXTS
from m2serve.chat.tokenizer import Segment, Tokenizer, _PieceCache
from m2serve.errors import ConfigError, RequestError
from training.published_tokenizer import ADDED_TOKENS


@pytest.fixture(scope="module")
def description(folder: Path) -> dict:
    return json.loads((folder / "tokenizer.json").read_text())


def added_ids(tokenizer: Tokenizer) -> set[int]:
    return set(range(tokenizer.used_vocab_size - len(ADDED_TOKENS), tokenizer.used_vocab_size))


def test_control_tokens_are_looked_up_by_content(tokenizer: Tokenizer) -> None:
    control = tokenizer.control
    assert tokenizer.decode([control.bos, control.turn_start, control.turn_end]) == "]~!b[]~b][e~["
    assert control.call_end == tokenizer.used_vocab_size - 1
    assert tokenizer.used_vocab_size == 1200 - NUM_PADDING_ROWS


@pytest.mark.parametrize("text", CONTROL_TEXTS)
def test_a_missing_control_token_is_named(description: dict, text: str) -> None:
    added = [token for token in description["added_tokens"] if token["content"] != text]
    with pytest.raises(ConfigError) as error:
        Tokenizer({**description, "added_tokens": added})
    assert text in str(error.value)


@pytest.mark.parametrize("text", ADDED_TOKENS)
def test_plain_text_never_becomes_an_added_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(f"a{text}b")
    assert added_ids(tokenizer).isdisjoint(ids)
    assert tokenizer.decode(ids) == f"a{text}b"
    assert not added_ids(tokenizer).isdisjoint(tokenizer.encode(text, allow_control=True))


def test_an_ordinary_vocabulary_that_holds_added_tokens_is_refused(description: dict) -> None:
    model = dict(description["model"])
    model["vocab"] = {**model["vocab"], "]~b]": 1190 - 54 + 19}
    model["ignore_merges"] = True
    model["merges"] = []
    broken = {
        **description,
        "model": model,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        },
    }
    with pytest.raises(ConfigError, match="plain text"):
        Tokenizer(broken)


def test_a_decoder_of_another_kind_is_refused(description: dict) -> None:
    with pytest.raises(ConfigError, match="ByteLevel"):
        Tokenizer({**description, "decoder": {"type": "Fuse"}})


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    path = tmp_path / "tokenizer.json"
    for text in ("{", "[]", "{}", '{"added_tokens": [1]}', "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ConfigError):
            Tokenizer.load(tmp_path)


def test_no_bos_is_added(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.control.bos not in tokenizer.encode("hello", allow_control=True)


def test_half_a_surrogate_pair_is_the_clients_fault(tokenizer: Tokenizer) -> None:
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_segments([Segment(text)])):
        with pytest.raises(RequestError, match="surrogate"):
            encode("ab\ud800")


def test_text_merges_across_segment_borders(tokenizer: Tokenizer) -> None:
    pieces = [Segment("]~b]ai\n", trusted=True), Segment("\nab"), Segment("c\n", trusted=True)]
    whole = [tokenizer.control.turn_start, *tokenizer.encode("ai\n\nabc\n")]
    assert tokenizer.encode_segments(pieces) == whole
    parts = [*tokenizer.encode("ai\n"), *tokenizer.encode("\nabc\n")]
    assert whole[1:] != parts, "the tiny tokenizer has no merge that shows the hazard"


_texts = st.lists(
    st.one_of(st.text(max_size=8), st.sampled_from([*ADDED_TOKENS, "\n", "\n\n", "ai\n"])),
    max_size=6,
).map("".join)


@given(st.lists(st.tuples(_texts, st.booleans()), max_size=6))
def test_control_tokens_come_from_trusted_segments_alone(
    tokenizer: Tokenizer, pieces: list[tuple[str, bool]]
) -> None:
    segments = [Segment(text, trusted) for text, trusted in pieces]
    ids = tokenizer.encode_segments(segments)
    wanted = []
    for segment in segments:
        if segment.trusted:
            full = tokenizer.encode(segment.text, allow_control=True)
            wanted += [id for id in full if id in tokenizer.control.text_of_ids()]
    assert [id for id in ids if id in added_ids(tokenizer)] == wanted
    assert tokenizer.decode(ids) == "".join(text for text, _ in pieces)
    assert tokenizer.encode_segments(segments) == ids, "the cache changed the answer"


@given(st.lists(st.integers(0, 1199), max_size=30))
def test_decoding_is_the_librarys(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert tokenizer.decode(ids) == tokenizer._full.decode(ids, skip_special_tokens=False)


def test_marks_of_structure_are_hidden_and_placeholders_shown(tokenizer: Tokenizer) -> None:
    text = "]~!b[]~b]usage: cat <filename>[e~[]<]image[>[<think>"
    ids = tokenizer.encode(text, allow_control=True)
    assert tokenizer.decode(ids, skip_special=True) == "usage: cat <filename><think>"


def test_the_cache_is_bounded_and_forgets_the_oldest() -> None:
    cache = _PieceCache(max_chars=10)
    for text in ("aaaa", "bbbb"):
        cache.put(text, [1])
    assert cache.get("aaaa") == [1]
    cache.put("cccc", [2])
    assert cache.get("bbbb") is None
    assert cache.get("aaaa") == [1]
    cache.put("d" * 11, [3])
    assert cache.get("d" * 11) is None
    assert cache.get("cccc") == [2]
