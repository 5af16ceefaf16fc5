"""The pure judges: going round in circles, being no language."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2serve.doctor.garbling import find_garbling
from m2serve.doctor.questions import FILE_TEXT, long_text, summary_question
from m2serve.doctor.repetition import MIN_CHARS, MIN_COUNT, WINDOW_CHARS, find_repetition

ESSAY = (
    "Sunlight holds every colour of the rainbow. When it meets the air, short waves such as blue "
    "are scattered far more than long ones such as red. That is why blue light reaches the eye "
    "from all over the sky, while in the evening, when the path through the air is long, what is "
    "left is mostly red and orange. Dust and water drops scatter all colours alike, so haze and "
    "clouds look white.\n"
)
TABLE = "| name | age | city |\n|------|-----|------|\n" + "".join(
    f"| {name} | {20 + number} | {city} |\n"
    for number, (name, city) in enumerate(
        zip(
            ("Ada", "Ben", "Chi", "Dov", "Eva", "Finn", "Gus", "Hana", "Ines", "Jo", "Kim", "Lou"),
            ("Bern", "Oslo", "Rome", "Kyiv", "Lima", "Cork", "Nara", "Bonn", "Gent", "Faro") * 2,
            strict=False,
        )
    )
)
KINDS = ("int", "text", "list", "table", "field", "row", "index", "page", "key", "lock")
CODE = "\n".join(
    f"    if kind == {name!r}:\n        return make_{name}(value, size={number})"
    for number, name in enumerate(KINDS)
)
NUMBERS = ", ".join(str(number * number) for number in range(1, 200))
LANGUAGES = (
    ESSAY,
    "天空呈现蓝色，是因为空气分子对短波长的光散射得更强。"
    "Rayleigh 散射使蓝光从四面八方进入眼睛，而红光大多直行。",
    "Небо голубое, потому что воздух сильнее рассеивает короткие волны света, чем длинные волны.",
    "空が青いのは、空気の分子が波長の短い光をより強く散乱するためです。夕方には赤い光が残ります。",
    "하늘이 파란 이유는 공기 분자가 짧은 파장의 빛을 더 강하게 산란시키기 때문입니다. "
    "저녁에는 붉은 빛이 남습니다.",
    "السماء زرقاء لأن جزيئات الهواء تشتت الضوء ذا الموجات القصيرة أكثر من الموجات الطويلة.",
    CODE,
    TABLE,
    NUMBERS,
    FILE_TEXT,
    "42",
    "",
)


@pytest.mark.parametrize("text", [*LANGUAGES, long_text(2000, 1), ESSAY * 3])
def test_what_is_fine(text: str) -> None:
    assert find_repetition(text) is None
    assert find_garbling(text) == ""


@given(
    unit=st.text(min_size=1, max_size=40),
    cut=st.integers(0, 39),
    before=st.sampled_from(["", ESSAY, TABLE]),
)
@settings(max_examples=200, deadline=None)
def test_a_unit_over_and_over_is_found_wherever_it_is_cut(unit: str, cut: int, before: str) -> None:
    if not unit.strip():
        unit = "x"
    count = max(MIN_COUNT, MIN_CHARS // len(unit)) + 2
    found = find_repetition(before + unit * count + unit[: cut % len(unit)] + "")
    assert found is not None
    assert found.count >= MIN_COUNT


@given(st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_text_by_chance_is_none(seed: int) -> None:
    choose = random.Random(seed)
    words = ESSAY.split()
    assert find_repetition(" ".join(choose.choice(words) for _ in range(500))) is None


@pytest.mark.parametrize(
    "loop",
    [
        "Wait, let me check that again.\n" * 12,
        "412  " * 60,
        "!" * 200,
        "\n".join(f"{n}. Use it as a bookmark for a book." for n in range(40)),
        "I read the file.\nI look at the result now.\n" * 8,
    ],
)
def test_loops_as_they_were_seen(loop: str) -> None:
    assert find_repetition(ESSAY[:100] + loop) is not None
    assert find_repetition(loop) is not None


def test_the_unit_and_its_count() -> None:
    found = find_repetition(ESSAY + "abc def. " * 30)
    assert found is not None
    assert sorted(found.unit) == sorted("abc def. ")
    assert found.count >= 30


def test_four_times_is_no_loop() -> None:
    assert find_repetition("A sentence of some length that says nothing new.\n" * 4) is None


def test_a_long_text_is_looked_at_from_its_end_alone() -> None:
    assert find_repetition("a" * 500 + long_text(4 * WINDOW_CHARS // 8, 3)) is None
    assert find_repetition(long_text(4 * WINDOW_CHARS // 8, 3) + "a" * 500) is not None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("!" * 80, "NaN"),
        ("the sky is " + "0" * 60, "NaN"),
        ("Der Himmel ist bl\ufffd\ufffd, weil die Luft das Licht streut.", "UTF-8"),
        ("при宇vie十дом學tio世界na" * 5, "script changes"),
        ("theskyisbluebecauseairscattersshortwavesmore" * 3, "letters on average"),
    ],
)
def test_what_is_no_language(text: str, word: str) -> None:
    assert word in find_garbling(text)


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_text_is_judged(text: str) -> None:
    find_repetition(text)
    assert isinstance(find_garbling(text), str)


def test_long_texts_differ_from_the_start_on_and_repeat_by_seed() -> None:
    one, two = long_text(500, 1), long_text(500, 2)
    assert one == long_text(500, 1)
    assert one[:8] != two[:8]
    assert abs(len(one.split()) - 500) < 20
    assert long_text(500, 1) in summary_question(500, 1)
