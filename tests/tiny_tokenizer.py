"""A small byte-level BPE tokenizer with M2's split rule, byte ids and added tokens.

Ids 0..255 are the bytes by value, then the merges, then the 54 added tokens in the published
order; the rows of the model's vocabulary above them stay unused, as in the released models.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers import trainers as bpe_trainers

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where training/ lies, for a script

from training.published_tokenizer import (
    ADDED_TOKENS,
    complete,
    splitter,
    tokenizer_config,
)

NUM_PADDING_ROWS = 10

_TEXT = """\
You are a helpful assistant. Your name is MiniMax-M2.5 and is built by MiniMax.
# Tools
You may call one or more tools to assist with the user query.
Here are the tools available in JSONSchema format:
<tools>
<tool>{"name": "get_weather", "description": "Weather of a city", "parameters":
{"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
"required": ["city"]}}</tool>
</tools>
When making tool calls, use XML format to invoke tools and pass parameters:
<invoke name="tool-name-1">
<parameter name="param-key-1">param-value-1</parameter>
<parameter name="param-key-2">param-value-2</parameter>
</invoke>
The quick brown fox jumps over the lazy dog. It's what they'd say when we aren't looking; I'll see
whether you've got it. The capital of France is Paris, and the capital of Germany is Berlin. Water
boils at one hundred degrees; 3.14159 is close to pi, 1024 is two to the tenth, 65536 the sixteenth.
Let me think about the question step by step. First, read the file. Then change the function so the
test passes, run the whole suite again, and write down what was found. The answer is forty-two.
def fibonacci(number: int) -> int:
    if number < 2:
        return number
    return fibonacci(number - 1) + fibonacci(number - 2)

class Scheduler:
    def __init__(self, queue: list[str], limit: int = 16) -> None:
        self.queue = queue
        self.limit = limit

for index, value in enumerate(range(10)):
    print(f"{index}: {value * value}")
SELECT name, price FROM products WHERE price > 100 ORDER BY name;
git commit -m "Fix the parser"; ls -la /usr/local/bin; curl http://localhost:8000/v1/models
system user assistant tool ai response name arguments content reasoning
你好，世界。今天天气很好，我们一起去北京的公园散步吧。模型会先思考，然后回答用户的问题。
请用中文写一个函数，计算两个数字的和。工具调用的结果按照顺序返回。上海、广州和深圳也是大城市。
Привет, мир! Сегодня хорошая погода, и мы идём гулять в парк. Уфа стоит на реке Белой.
Das Wetter in München ist schön. L'été à Paris est très agréable. ¿Dónde está la biblioteca?
日本語のテキストも少しあります。한국어 문장도 조금 있습니다. مرحبا بالعالم
😀 🎉 👩‍💻 → ≤ ≥ ∑ √ π
"""


def ordinary_vocab_size(vocab_size: int) -> int:
    """Ids of bytes and merges in a vocabulary of this many rows."""
    return vocab_size - len(ADDED_TOKENS) - NUM_PADDING_ROWS


def build_tokenizer(vocab_size: int) -> Tokenizer:
    """Train on the text above; bytes, merges, added tokens and padding fill the vocabulary."""
    trained = _train(ordinary_vocab_size(vocab_size))
    tokenizer = Tokenizer(models.BPE(vocab=trained["vocab"], merges=trained["merges"]))
    complete(tokenizer)
    if tokenizer.get_vocab_size() != vocab_size - NUM_PADDING_ROWS:
        raise ValueError(
            f"vocab_size {vocab_size} needs more merges than the built-in text yields; "
            f"{tokenizer.get_vocab_size() + NUM_PADDING_ROWS} is the largest"
        )
    return tokenizer


def write_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """Write tokenizer.json and tokenizer_config.json into the folder."""
    tokenizer = build_tokenizer(vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = tokenizer_config(tokenizer)
    text = json.dumps(config, ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return tokenizer


def _train(size: int) -> dict[str, Any]:
    """Train a BPE of `size` ids and give the bytes their own value as id."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter()
    trainer = bpe_trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    vocab.update(_byte_characters())
    merges = [tuple(pair) for pair in model["merges"]]
    return {"vocab": vocab, "merges": merges}


def _byte_characters() -> dict[str, int]:
    """The printable character GPT-2's byte alphabet gives each byte -> the byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    characters.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return characters
