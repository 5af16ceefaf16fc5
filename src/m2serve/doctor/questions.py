"""What the doctor asks, and texts of a wanted length. Pure."""

from __future__ import annotations

import random
from typing import Any

ARITHMETIC = "What is 17 + 25? Answer with the number alone."
GREETING = "Say hello in one short sentence."
EXPLAIN = "Explain in three English sentences why the sky is blue."
LIST = "Write a numbered list of twelve different uses of a paperclip, one line each, then stop."
COUNTING = "Write the numbers from 1 to 2000 in words, one a line."
ONE_CITY = "Use the tool to look up the weather in Paris for the next 2 days."
TWO_CITIES = (
    "Use the tool to look up the weather in Paris and the weather in Tokyo, each for 2 days. "
    "Make both calls at once."
)
JSON_OBJECT = 'Give a JSON object with the keys "name" (Ada) and "age" (36), and nothing else.'

WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Look up the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}
WRITE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "write_file",
        "description": "Write a text file.",
        "parameters": {
            "type": "object",
            "properties": {"path": {"type": "string"}, "text": {"type": "string"}},
            "required": ["path", "text"],
        },
    },
}
FILE_TEXT = (
    "<config>\n"
    '  <item name="a">1 < 2 && "quoted" \\ done</item>\n'
    '  { "braces": ["}", \'{\'] }\n'
    "  plain words, ümlauts and 上海\n"
    "</config>\n"
    "the last line"
)
WRITE_FILE = (
    "Use the tool to write the file notes.xml. Its text is exactly what stands between the two "
    f"lines of equals signs, without them:\n=====\n{FILE_TEXT}\n=====\n"
)

_NOISE = """amber basin canvas delta ember fabric garden harbour island jacket kettle ladder meadow
needle orchard pebble quarry ribbon saddle timber umbrella valley window yellow zipper anchor bridge
candle desert engine forest glacier hammer iron jungle kitchen lantern mirror north ocean"""


def long_text(num_words: int, seed: int) -> str:
    """Sentences of plain words, no two texts of different seeds alike from the start on."""
    choose, nouns = random.Random(seed), _NOISE.split()
    sentences = []
    for number in range(max(num_words // 8, 1)):
        words = " ".join(choose.choice(nouns) for _ in range(7))
        sentences.append(f"{number + seed} {words}.")
    return " ".join(sentences)


def summary_question(num_words: int, seed: int) -> str:
    """A long text, and something to do with it that has an end."""
    return (
        f"{long_text(num_words, seed)}\n\nThe text above is noise. Name five of its words, "
        "one line each, then stop."
    )
