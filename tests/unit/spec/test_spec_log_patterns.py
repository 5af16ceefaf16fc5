"""Lines of logs as they come: coloured, endless, hostile."""

from m2serve.spec.log_patterns import MAX_LINE_CHARS, plain_line, read_pattern


def test_pieces_in_their_order() -> None:
    pattern = read_pattern("Weight ... is not divisible", "here")
    assert pattern.matches("weight input = 192 is not divisible by 128")
    assert not pattern.matches("is not divisible: weight")


def test_colours_and_control_characters_go() -> None:
    assert plain_line("\x1b[0;36m(Worker)\x1b[0;0m bad\x07 news\r") == "(Worker) bad  news"
    assert plain_line("\x1b]0;title\x07text").isprintable()
    assert plain_line("十 ok") == "十 ok"
    assert plain_line("\x1b[") == ""


def test_an_endless_line_is_cut() -> None:
    line = plain_line("a " * 10_000_000)
    assert len(line) == MAX_LINE_CHARS
    pattern = read_pattern(" ... ".join(["aaaa"] * 200), "here")
    assert not pattern.matches("aaa " * MAX_LINE_CHARS)
