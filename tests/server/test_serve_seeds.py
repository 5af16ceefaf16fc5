"""The commands of the public deployment documents, with only host, port and model path changed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from serving import Serving, serving
from tiny import build_tiny

NAMES = ("MiniMaxAI/MiniMax-M2.5", "mconcat/MiniMax-M2.5-NVFP4", "MiniMax-M2.5", "minimax25")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny(folder)
    names = [argument for name in NAMES for argument in ("--served-model-name", name)]
    with serving(str(folder), *names) as running:
        yield running


def curl(server: Serving, path: str, body: str, header: str = "Content-Type") -> dict:
    command = ["curl", "-sS", "--max-time", "120", f"{server.url}{path}"]
    command += ["-H", f"{header}: application/json", "-d", body]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_chat_curl_of_the_b200_page(server: Serving) -> None:
    answer = curl(
        server,
        "/v1/chat/completions",
        """{
"model": "MiniMaxAI/MiniMax-M2.5",
"messages": [{"role": "user", "content": "Explain Lightning Attention"}],
"max_tokens": 256
}""",
    )
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert 0 < answer["usage"]["completion_tokens"] <= 256


def test_completions_curls(server: Serving) -> None:
    for model, prompt, max_tokens in (
        ("MiniMaxAI/MiniMax-M2.5", "The key difference between linear and softmax is", 128),
        ("mconcat/MiniMax-M2.5-NVFP4", "Hello", 64),
    ):
        body = json.dumps({"model": model, "prompt": prompt, "max_tokens": max_tokens})
        answer = curl(server, "/v1/completions", body)
        assert answer["object"] == "text_completion"
        assert answer["choices"][0]["finish_reason"] in ("stop", "length")


def test_tool_curl_of_the_ascend_guide(server: Serving) -> None:
    answer = curl(
        server,
        "/v1/chat/completions",
        """{
"model": "MiniMax-M2.5",
"messages": [{"role": "user", "content": "请查询上海的天气。"}],
"tools": [{
"type": "function",
"function": {
"name": "get_current_weather",
"description": "Get weather by city",
"parameters": {
"type": "object",
"properties": {
"city": {"type": "string"},
"unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}
},
"required": ["city"]
}
}
}],
"tool_choice": "auto",
"temperature": 0,
"max_tokens": 512
}""",
    )
    assert answer["choices"][0]["finish_reason"] in ("stop", "length", "tool_calls")


def test_dual_node_curl_of_the_ascend_guide(server: Serving) -> None:
    answer = curl(
        server,
        "/v1/chat/completions",
        """{
"model": "minimax25",
"messages": [{"role": "user", "content": "Hello, who are you?"}],
"stream": false,
"ignore_eos": true,
"temperature": 0.8,
"top_p": 0.8,
"max_tokens": 200
}""",
        header="Content-type",
    )
    assert answer["usage"]["completion_tokens"] == 200
    assert answer["choices"][0]["finish_reason"] == "length"


def test_openai_snippet_of_the_ascend_guide(server: Serving) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="na")
    resp = client.chat.completions.create(
        model="MiniMax-M2.5",
        messages=[
            {"role": "user", "content": "你好,请介绍一下你自己,并展示一次工具调用的参数格式。"}
        ],
        max_tokens=256,
    )
    message = resp.choices[0].message
    assert isinstance(message.content, str) or message.model_extra["reasoning_content"]


def test_the_command_prints_a_curl_line_that_works(server: Serving) -> None:
    line = next(line for line in server.log.splitlines() if line.strip().startswith("curl "))
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(done.stdout)["object"] == "chat.completion"


def test_offline_api_of_the_readme(tmp_path: Path) -> None:
    build_tiny(tmp_path)
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    code = readme.split("```python\n", 1)[1].split("```", 1)[0]
    code = code.replace("MiniMaxAI/MiniMax-M2.5", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
