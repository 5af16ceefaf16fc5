"""A real vLLM on the CPU, started by `m2 serve --engine vllm`, against the own engine.

M2_VLLM_PYTHON names the Python of an environment that scripts/install_vllm_cpu.sh has made. Each
start takes a minute on two cores.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from openai import OpenAI
from serving import Serving, serving
from tiny_parrot import CALL, CONTENT, PIECES, REASONING, build_parrot
from waiting import wait_for

PYTHON = os.environ.get("M2_VLLM_PYTHON", "")
START_DEADLINE_S = 600.0
pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not PYTHON, reason="M2_VLLM_PYTHON names no Python with vLLM"),
]

ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
EAGER = "--enforce-eager"
# vLLM 0.32 on the CPU: two workers need to be told their cores, and pipeline stages exist in
# compiled mode alone.
TOPOLOGIES = {
    "tp1": (EAGER, ""),
    "tp2": (f"{EAGER} --tensor-parallel-size 2", "0|1"),
    "pp2": ("--pipeline-parallel-size 2", "0|1"),
}
PROMPTS = [
    "The quick brown fox",
    "def fibonacci(number: int) -> int:\n    ",
    "你好，世界。",
    [5, 6, 7, 8, 9, 10, 11],
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
QUESTION = [{"role": "user", "content": "What is the weather in Berlin?"}]
COMMON = ("--served-model-name", "m", "--dtype", "float32", "--max-model-len", "2048")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parrot")
    build_parrot(folder, format="f32")
    return folder


@pytest.fixture(scope="module")
def own(folder: Path) -> Iterator[Serving]:
    with serving(str(folder), *COMMON) as running:
        yield running


@pytest.fixture(scope="module", params=TOPOLOGIES)
def vllm(request: pytest.FixtureRequest, folder: Path, own: Serving) -> Iterator[Serving]:
    arguments, bind = TOPOLOGIES[request.param]
    with started(folder, arguments, bind) as running:
        yield running


def started(folder: Path, arguments: str, bind: str) -> AbstractContextManager[Serving]:
    return serving(
        *(str(folder), "--engine", "vllm", "--restart-upstream", *COMMON),
        *("--max-num-seqs", "8", "--kv-cache-memory-bytes", str(128 << 20)),
        *("--engine-command", f"{Path(PYTHON).with_name('vllm')} serve"),
        *("--engine-args", arguments),
        deadline_s=START_DEADLINE_S,
        env={**ENVIRONMENT, **({"VLLM_CPU_OMP_THREADS_BIND": bind} if bind else {})},
    )


def complete(server: Serving, **fields: Any) -> dict[str, Any]:
    response = server.post("/v1/completions", {"model": "m", "temperature": 0, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def test_greedy_text_is_the_own_engines(vllm: Serving, own: Serving) -> None:
    for prompt in PROMPTS:
        ours = complete(own, prompt=prompt, max_tokens=48, return_token_ids=True)
        theirs = complete(vllm, prompt=prompt, max_tokens=48, return_token_ids=True)
        assert theirs["choices"] == ours["choices"]
        assert theirs["usage"]["completion_tokens"] == ours["usage"]["completion_tokens"]


def test_logprobs_are_the_own_engines(vllm: Serving, own: Serving) -> None:
    fields = {"prompt": "The quick brown", "max_tokens": 8, "logprobs": 3}
    ours = complete(own, **fields)["choices"][0]["logprobs"]
    theirs = complete(vllm, **fields)["choices"][0]["logprobs"]
    assert theirs["tokens"] == ours["tokens"]
    assert theirs["token_logprobs"] == pytest.approx(ours["token_logprobs"], abs=5e-3)
    for mine, other in zip(ours["top_logprobs"], theirs["top_logprobs"], strict=True):
        assert other == pytest.approx(mine, abs=5e-3)


def test_sampling_parameters_arrive(vllm: Serving, own: Serving) -> None:
    for fields in (
        {"logit_bias": {"66": 100}},
        {"allowed_token_ids": [70, 71, 72]},
        {"stop_token_ids": list(range(0, 900, 9))},
        {"bad_words": ["the", "quick"]},
        {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.5},
        {"min_tokens": 12, "max_tokens": 12},
        {"prompt_logprobs": 0, "max_tokens": 2},
    ):
        body = {"prompt": "The quick brown fox", "max_tokens": 10, **fields}
        ours, theirs = (complete(one, **body)["choices"][0] for one in (own, vllm))
        ours.pop("prompt_logprobs", None)
        theirs.pop("prompt_logprobs", None)
        assert theirs == ours, fields


def test_reasoning_and_tool_calls_streamed_and_whole(vllm: Serving) -> None:
    client = OpenAI(base_url=f"{vllm.url}/v1", api_key="x")
    fields: dict[str, Any] = {"model": "m", "messages": QUESTION, "tools": TOOLS}
    answer = client.chat.completions.create(**fields)
    [choice] = answer.choices
    [call] = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert choice.message.model_extra["reasoning_content"] == REASONING
    assert choice.message.content == CONTENT
    assert (call.function.name, json.loads(call.function.arguments)) == CALL
    assert answer.usage.completion_tokens == len(PIECES) + 1
    reasoning = content = name = arguments = ""
    reasons = []
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(**fields, stream=True, stream_options=options):
        if chunk.usage is not None:
            assert chunk.usage.completion_tokens == len(PIECES) + 1
        for part in chunk.choices:
            reasoning += part.delta.model_extra.get("reasoning_content") or ""
            content += part.delta.content or ""
            reasons.append(part.finish_reason)
            for piece in part.delta.tool_calls or []:
                name += piece.function.name or ""
                arguments += piece.function.arguments or ""
    assert (reasoning, content, name) == (REASONING, CONTENT, CALL[0])
    assert json.loads(arguments) == CALL[1]
    assert [reason for reason in reasons if reason] == ["tool_calls"]
    assert len(reasons) > 10


def test_a_form_without_thinking_is_refused(vllm: Serving, own: Serving) -> None:
    """vLLM would leave the text free until `</think>`, or fail."""
    fields = {
        "model": "m",
        "prompt": "The quick brown",
        "max_tokens": 40,
        "guided_regex": "[a-c]{3}",
    }
    refused = vllm.post("/v1/completions", fields)
    assert refused.status_code == 400
    assert "does not begin in thinking" in refused.json()["error"]["message"]
    text = complete(own, **fields, temperature=0)["choices"][0]["text"]
    assert re.fullmatch("[a-c]{3}", text)


def test_the_form_begins_behind_the_thinking(vllm: Serving, own: Serving) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Berlin", "Rome"]}, "warm": {"type": "boolean"}},
        "required": ["city", "warm"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": schema}}
    for server in (vllm, own):
        client = OpenAI(base_url=f"{server.url}/v1", api_key="x")
        answer = client.chat.completions.create(
            model="m", messages=QUESTION, response_format=form, temperature=0, max_tokens=200
        )
        [choice] = answer.choices
        assert choice.message.model_extra["reasoning_content"] == REASONING
        value = json.loads(choice.message.content)
        assert set(value) == {"city", "warm"}
        assert value["city"] in ("Berlin", "Rome")
        assert type(value["warm"]) is bool


def test_the_prefix_cache_is_reported(vllm: Serving) -> None:
    prompt = "A story that is told again. " * 30
    complete(vllm, prompt=prompt, max_tokens=2)
    usage = complete(vllm, prompt=prompt, max_tokens=2)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 16


def test_no_torch_in_front_of_vllm(vllm: Serving) -> None:
    assert "torch" not in Path(f"/proc/{vllm.process.pid}/maps").read_text()


def test_a_client_that_leaves_is_noticed_by_vllm(vllm: Serving) -> None:
    completed = vllm_metric(vllm, "request_success_total", '"length"')
    body = {"model": "m", "prompt": [1], "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with httpx2.stream("POST", f"{vllm.url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data:")
    wait_for(lambda: vllm_metric(vllm, "num_requests_running") == 0)
    # It ended before its 2000 tokens, and vLLM counts no abort.
    assert vllm_metric(vllm, "request_success_total", '"length"') == completed


def test_killed_in_mid_stream_and_started_again(folder: Path) -> None:
    with started(folder, EAGER, "") as front:
        before = complete(front, prompt=PROMPTS[0], max_tokens=24)["choices"]
        events: list[str] = []
        reader = threading.Thread(target=read_stream, args=(front, events))
        reader.start()
        wait_for(lambda: len(events) > 5)
        old = vllm_processes(front)
        old[0].send_signal(signal.SIGKILL)
        reader.join(60)
        errors = [json.loads(e) for e in events if e != "[DONE]" and "error" in json.loads(e)]
        assert [error["error"]["code"] for error in errors] == ["engine_not_ready"]
        wait_for(lambda: front.get("/ready").status_code == 503)
        assert front.get("/health").status_code == 200
        wait_for(lambda: front.get("/ready").status_code == 200, START_DEADLINE_S)
        assert not any(process.is_running() for process in old)
        assert complete(front, prompt=PROMPTS[0], max_tokens=24)["choices"] == before
        left = vllm_processes(front)
        assert left
        front.process.terminate()
        assert front.process.wait(60) == 0
        assert not any(process.is_running() for process in left)


def vllm_processes(server: Serving) -> list[psutil.Process]:
    """The API server, then its children; the guard between it and the front is not among them."""
    [guard] = psutil.Process(server.process.pid).children()
    return guard.children(recursive=True)


def vllm_metric(server: Serving, name: str, label: str = "") -> float:
    command = vllm_processes(server)[0].cmdline()
    port = command[command.index("--port") + 1]
    lines = httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text.splitlines()
    found = [line for line in lines if line.startswith(f"vllm:{name}{{") and label in line]
    assert found, f"vLLM has no metric {name}"
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def read_stream(server: Serving, events: list[str]) -> None:
    body = {"model": "m", "prompt": [1], "max_tokens": 2000, "ignore_eos": True, "stream": True}
    url = f"{server.url}/v1/completions"
    with httpx2.stream("POST", url, json=body, timeout=120) as response:
        events.extend(line[5:].strip() for line in response.iter_lines() if line[:5] == "data:")
