"""The built checkpoints themselves: the same bytes for a seed, M2's tokenizer, M2's prompts."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tiny import FORMATS, build_tiny
from tiny_tokenizer import build_tokenizer
from tokenizers import Tokenizer

from training.published_tokenizer import ADDED_TOKENS

TESTS = Path(__file__).resolve().parents[2]


def digest(folder: Path) -> str:
    content = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def test_a_seed_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    script = TESTS / "tiny.py"
    command = [sys.executable, str(script), str(tmp_path / "a"), "--format", "fp8", "--seed", "3"]
    subprocess.run(command, check=True)
    build_tiny(tmp_path / "b", format="fp8", seed=3)
    build_tiny(tmp_path / "c", format="fp8", seed=4)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


def test_shards_are_zero_based_and_several(tmp_path: Path) -> None:
    build_tiny(tmp_path)
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == [f"model-0000{n}-of-00004.safetensors" for n in range(4)]


def test_the_dense_twin_of_a_quantised_checkpoint(tmp_path: Path) -> None:
    tiny = build_tiny(tmp_path / "q", format="nvfp4-ct", num_hidden_layers=1)
    twin = build_tiny(tmp_path / "d", format="f32", state=tiny.state, num_hidden_layers=1)
    assert all(torch.equal(twin.state[name], tiny.state[name]) for name in tiny.state)


@pytest.mark.parametrize("format", FORMATS)
def test_other_shapes_build(tmp_path: Path, format: str) -> None:
    build_tiny(tmp_path, format=format, num_hidden_layers=1, num_local_experts=3, hidden_size=128)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["hidden_size"] == 128
    assert config["num_local_experts"] == 3


def test_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="q4_k"):
        build_tiny(tmp_path, format="q4_k")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer(1200)


def test_added_tokens_close_the_used_ids(tokenizer: Tokenizer) -> None:
    assert len(ADDED_TOKENS) == 54
    assert [tokenizer.token_to_id(token) for token in ADDED_TOKENS] == list(range(1136, 1190))
    assert ADDED_TOKENS[19:21] == ("]~b]", "[e~[")
    assert ADDED_TOKENS[34] == "]~!b["
    special = {t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special}
    assert set(ADDED_TOKENS) - special == {
        "<think>",
        "</think>",
        "<minimax:tool_call>",
        "</minimax:tool_call>",
    }


def test_bytes_are_their_own_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("\n").ids == [10]
    assert tokenizer.decode([0xE2, 0x82, 0xAC]) == "€"


@pytest.mark.parametrize(
    "text",
    ["Hello, world!", "你好，世界", "Привет\n\nмир", "a  b\t\n c", "x = 12345", "👩‍💻", "\x00\x7f"],
)
def test_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_control_tokens_split_the_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("]~!b[]~b]system\n<think>\n").ids
    assert ids[:2] == [1170, 1155]
    assert ids[-2:] == [1186, 10]
    assert tokenizer.decode(ids) == "system\n<think>\n"


def render(messages: list[dict[str, Any]], **variables: Any) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def tojson(value: Any, ensure_ascii: bool = True) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii)

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    source = (TESTS / "tiny_chat_template.jinja").read_text()
    return environment.from_string(source).render(messages=messages, **variables)


SYSTEM = "You are a helpful assistant. Your name is MiniMax-M2.5 and is built by MiniMax."
HEAD = f"]~!b[]~b]system\n{SYSTEM}[e~[\n"
USER = {"role": "user", "content": "Q"}
ASKED = f"{HEAD}]~b]user\nQ[e~[\n"


def call(city: str) -> dict[str, Any]:
    return {"function": {"name": "lookup", "arguments": {"city": city}}}


def test_generation_prompt() -> None:
    assert render([USER], add_generation_prompt=True) == f"{ASKED}]~b]ai\n<think>\n"
    assert render([{"role": "system", "content": "S"}, USER]).startswith("]~!b[]~b]system\nS[e~[\n")
    dated = {"role": "system", "content": "S", "current_date": "D", "current_location": "L"}
    assert "S\nCurrent date: D\nCurrent location: L[e~[\n" in render([dated, USER])


def test_tool_calls_without_content() -> None:
    turn = {"role": "assistant", "content": "", "tool_calls": [call("Уфа"), call("北京")]}
    expected = (
        "]~b]ai\n\n<minimax:tool_call>\n"
        '<invoke name="lookup">\n<parameter name="city">Уфа</parameter>\n</invoke>\n'
        '<invoke name="lookup">\n<parameter name="city">北京</parameter>\n</invoke>\n'
        "</minimax:tool_call>[e~[\n"
    )
    assert render([USER, turn]) == ASKED + expected
    thought = render([USER, {**turn, "reasoning_content": "Plan"}])
    start = f"{ASKED}]~b]ai\n<think>\nPlan\n</think>\n\n\n<minimax:tool_call>\n"
    assert thought.startswith(start)


def test_tool_results_share_a_turn() -> None:
    turn = {"role": "assistant", "content": "", "tool_calls": [call("a")]}
    results = [{"role": "tool", "content": text} for text in "ABC"]
    assert render([USER, turn, *results]).endswith(
        "]~b]tool\n<response>A</response>\n<response>B</response>\n<response>C</response>[e~[\n"
    )
    parts = [{"role": "tool", "content": [{"type": "text", "text": "A"}, "B"]}]
    assert render([USER, turn, *parts]).endswith(
        "]~b]tool\n<response>A\n</response>\n<response>B\n</response>[e~[\n"
    )
    with pytest.raises(ValueError, match="tool message"):
        render([USER, *results])


def test_only_reasoning_after_the_last_user_stays() -> None:
    old = {"role": "assistant", "reasoning_content": "OLD", "content": "A"}
    new = {"role": "assistant", "reasoning_content": "NEW", "content": "B"}
    text = render([USER, old, USER, new])
    assert "]~b]ai\nA[e~[\n" in text
    assert text.endswith("]~b]ai\n<think>\nNEW\n</think>\n\nB[e~[\n")


def test_reasoning_in_a_field_is_not_stripped_but_in_content_is() -> None:
    field = {"role": "assistant", "reasoning_content": " R\n", "content": "\n A\n"}
    assert render([USER, field]).endswith("<think>\n R\n\n</think>\n\n\n A\n[e~[\n")
    inline = {"role": "assistant", "content": "<think>\nR\n</think>\n\nA"}
    assert render([USER, inline]).endswith("<think>\nR\n</think>\n\nA[e~[\n")


def test_tools_are_listed_as_json() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "<é> & 'x'"}}
    text = render([USER], tools=[tool])
    assert (
        '\n\n<tools>\n<tool>{"name": "f", "description": "<é> & \'x\'"}</tool>\n</tools>\n' in text
    )
    assert text.index("# Tools") > text.index(SYSTEM)


def test_argument_values_are_raw_strings_or_json() -> None:
    arguments = {"s": "<b>&", "n": None, "t": True, "o": {"a": [1, "中"]}}
    turn = {
        "role": "assistant",
        "content": "C",
        "tool_calls": [{"name": "f", "arguments": arguments}],
    }
    text = render([USER, turn])
    assert '<parameter name="s"><b>&</parameter>\n<parameter name="n">null</parameter>\n' in text
    assert '<parameter name="t">true</parameter>\n' in text
    assert '<parameter name="o">{"a": [1, "中"]}</parameter>\n' in text
