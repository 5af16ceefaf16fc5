"""`m2 serve --upstream` in front of another `m2 serve`: a complete upstream without vLLM."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest
from openai import OpenAI
from serving import M2, Serving, free_port, run_m2, serving
from tiny import build_tiny
from waiting import wait_for

PROBE = {"model": "m", "prompt": "The sky is", "max_tokens": 16, "temperature": 0}
CALL = (
    "The user asks for the weather.\n</think>\n\nOne moment.\n"
    '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">上海</parameter>\n'
    "</invoke>\n</minimax:tool_call>"
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny(folder, format="f32")
    return folder


@pytest.fixture(scope="module")
def back(folder: Path) -> Iterator[Serving]:
    arguments = (str(folder), "--served-model-name", "behind", "--dtype", "float32")
    with serving(*arguments, "--api-key", "inner") as running:
        yield running


@pytest.fixture(scope="module")
def front(folder: Path, back: Serving) -> Iterator[Serving]:
    """Its second upstream does not exist."""
    urls = ("--upstream", back.url, "--upstream", f"http://127.0.0.1:{free_port()}/v1")
    arguments = (str(folder), "--served-model-name", "m", "--upstream-api-key", "inner")
    with serving(*arguments, *urls) as running:
        yield running


def answer_of(server: Serving, path: str, body: dict) -> dict:
    model = "behind" if "behind" in " ".join(server.process.args) else "m"  # type: ignore[arg-type]
    headers = {"Authorization": "Bearer inner"}
    response = httpx2.post(
        server.url + path, json={**body, "model": model}, headers=headers, timeout=120
    )
    assert response.status_code == 200, response.text
    return response.json()


COMPLETIONS = [
    {"prompt": "The sky is", "max_tokens": 24, "temperature": 0},
    {"prompt": [5, 6, 7], "max_tokens": 6, "logprobs": 3, "temperature": 0},
    {"prompt": "a", "max_tokens": 6, "logprobs": 0, "temperature": 0, "return_token_ids": True},
    {"prompt": ["Hello", "World"], "max_tokens": 5, "seed": 3, "n": 2, "temperature": 1.5},
    {"prompt": "Hello world", "max_tokens": 3, "prompt_logprobs": 2, "temperature": 0},
    {"prompt": "Hello world", "max_tokens": 0, "logprobs": 1, "echo": True},
    {"prompt": "The sky", "max_tokens": 9, "bad_words": ["the", "is"], "temperature": 0},
    {"prompt": "The sky", "max_tokens": 9, "logit_bias": {"66": 100}, "temperature": 0},
    {"prompt": "The sky", "max_tokens": 9, "allowed_token_ids": [70, 71], "temperature": 0},
    {"prompt": "b", "max_tokens": 30, "stop_token_ids": list(range(0, 900, 9)), "temperature": 0},
    {
        "prompt": "b",
        "max_tokens": 30,
        "min_tokens": 30,
        "ignore_eos": True,
        "seed": 1,
        "top_p": 0.5,
    },
]


@pytest.mark.parametrize("body", COMPLETIONS, ids=[str(i) for i in range(len(COMPLETIONS))])
def test_the_front_answers_as_the_engine_behind_it(
    front: Serving, back: Serving, body: dict
) -> None:
    ours = answer_of(front, "/v1/completions", body)
    theirs = answer_of(back, "/v1/completions", body)
    assert ours["choices"] == theirs["choices"]
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert ours["usage"][count] == theirs["usage"][count]


def test_cached_tokens_are_reported(front: Serving) -> None:
    body = {"prompt": "A long story. " * 30, "max_tokens": 2, "temperature": 0}
    answer_of(front, "/v1/completions", body)
    usage = answer_of(front, "/v1/completions", body)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 16


def test_streamed_is_whole(front: Serving) -> None:
    client = OpenAI(base_url=f"{front.url}/v1", api_key="x")
    fields = {"prompt": "The sky", "max_tokens": 20, "temperature": 0, "logprobs": 2}
    whole = client.completions.create(model="m", **fields)
    chunks = list(client.completions.create(model="m", stream=True, **fields))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert len(chunks) > 10


def test_no_torch_is_loaded_in_front(front: Serving, back: Serving) -> None:
    front.post("/v1/completions", PROBE)
    maps = Path(f"/proc/{front.process.pid}/maps").read_text()
    assert "python" in maps
    assert "torch" not in maps
    assert psutil.Process(front.process.pid).children() == []
    [engine] = psutil.Process(back.process.pid).children()
    assert "libtorch" in Path(f"/proc/{engine.pid}/maps").read_text()


def test_errors_are_the_fronts_own(front: Serving) -> None:
    long = front.post("/v1/completions", {**PROBE, "prompt": [5] * 5000})
    assert long.status_code == 400
    assert "4096" in long.json()["error"]["message"]
    assert front.post("/v1/completions", {**PROBE, "prompt": [10**6]}).status_code == 400
    assert front.post("/v1/completions", {**PROBE, "model": "behind"}).status_code == 404


def test_metrics_count_in_front(front: Serving) -> None:
    def generated() -> float:
        lines = front.get("/metrics").text.splitlines()
        return sum(float(x.rsplit(" ", 1)[1]) for x in lines if "generation_tokens_total{" in x)

    before = generated()
    front.post("/v1/completions", PROBE)
    assert generated() - before == 16


def test_reasoning_and_tool_calls_are_parsed_in_front(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    # The second line answers the question whether the engine can generate.
    lines = [{"match": "weather", "completion": CALL}, {"match": "", "completion": "Hello!"}]
    script.write_text("\n".join(json.dumps(line) for line in lines))
    messages = [{"role": "user", "content": "What is the weather in Shanghai?"}]
    fields = {"model": "m", "messages": messages, "tools": TOOLS}
    with (
        serving(str(folder), "--scripted", str(script)) as back,
        serving(str(folder), "--served-model-name", "m", "--upstream", back.url) as front,
    ):
        client = OpenAI(base_url=f"{front.url}/v1", api_key="x")
        choice = client.chat.completions.create(**fields).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.model_extra["reasoning_content"] == "The user asks for the weather."
        assert choice.message.content == "One moment."
        [call] = choice.message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == (
            "get_weather",
            {"city": "上海"},
        )
        arguments = ""
        num_chunks = 0
        for chunk in client.chat.completions.create(**fields, stream=True):
            num_chunks += 1
            for part in chunk.choices[0].delta.tool_calls or []:
                arguments += part.function.arguments or ""
        assert json.loads(arguments) == {"city": "上海"}
        assert num_chunks > 10


def test_a_dead_upstream_is_an_error_event_and_comes_back(folder: Path) -> None:
    port = free_port()
    behind = (str(folder), "--dtype", "float32")
    ahead = (str(folder), "--served-model-name", "m", "--upstream", f"http://127.0.0.1:{port}")
    with serving(*behind, port=port) as back, serving(*ahead) as front:
        before = front.post("/v1/completions", PROBE).json()["choices"][0]["text"]
        events: list[str] = []
        body = {**PROBE, "max_tokens": 3000, "ignore_eos": True, "stream": True}
        reader = threading.Thread(target=read_stream, args=(front, body, events))
        reader.start()
        wait_for(lambda: len(events) > 5)
        back.process.send_signal(signal.SIGKILL)
        reader.join(30)
        assert not reader.is_alive()
        errors = [json.loads(e) for e in events if e != "[DONE]" and "error" in json.loads(e)]
        assert [error["error"]["code"] for error in errors] == ["engine_not_ready"]
        wait_for(lambda: front.get("/ready").status_code == 503)
        assert front.get("/health").status_code == 200
        refused = front.post("/v1/completions", PROBE)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        with serving(*behind, port=port):
            wait_for(lambda: front.get("/ready").status_code == 200)
            after = front.post("/v1/completions", PROBE).json()["choices"][0]["text"]
            assert after == before


def read_stream(server: Serving, body: dict, events: list[str]) -> None:
    url = f"{server.url}/v1/completions"
    with httpx2.stream("POST", url, json=body, timeout=60) as response:
        events.extend(line[5:].strip() for line in response.iter_lines() if line[:5] == "data:")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--upstream", "http://127.0.0.1:1", "--device", "cpu"], "--device means nothing"),
        (["--upstream", "http://127.0.0.1:1", "--engine", "vllm"], "--engine means nothing"),
        (["--upstream", "127.0.0.1:8001"], "no URL of an engine"),
        (["--upstream-api-key", "x"], "--upstream-api-key means nothing with the own engine"),
        (["--restart-upstream"], "--restart-upstream means nothing with the own engine"),
        (["--engine", "vllm", "--engine-command", "/no/vllm serve"], "'/no/vllm' is not a program"),
        (["--engine", "sglang", "--num-threads", "3"], "--num-threads means nothing with --engine"),
    ],
)
def test_options_that_mean_nothing(folder: Path, arguments: list[str], message: str) -> None:
    done = run_m2("serve", str(folder), *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_key_ends_the_start(folder: Path, back: Serving) -> None:
    done = run_m2("serve", str(folder), "--upstream", back.url, "--port", str(free_port()))
    assert done.returncode == 1
    assert "--upstream-api-key" in done.stderr


ENGINE = f"{sys.executable} {Path(__file__).parents[1] / 'unit' / 'launch' / 'engine_command.py'}"


def test_an_engine_that_is_started_answers_and_goes_with_the_server(folder: Path) -> None:
    engine = ("--engine", "vllm", "--engine-command", ENGINE)
    with serving(str(folder), "--served-model-name", "m", *engine) as front:
        answer = front.post("/v1/completions", {**PROBE, "return_token_ids": True}).json()
        assert answer["choices"][0]["token_ids"] == list(range(100, 116))
        started = psutil.Process(front.process.pid).children(recursive=True)
        assert len(started) == 3
        assert "torch" not in Path(f"/proc/{front.process.pid}/maps").read_text()
    assert not any(process.is_running() for process in started)


def test_a_server_that_is_stopped_while_its_engine_loads(folder: Path) -> None:
    engine = ("--engine", "vllm", "--engine-command", ENGINE, "--engine-args", "--slow")
    port = free_port()
    process = subprocess.Popen(
        [*M2, "serve", str(folder), *engine, "--port", str(port)], stderr=subprocess.PIPE, text=True
    )
    family = psutil.Process(process.pid)
    wait_for(lambda: len(family.children(recursive=True)) == 3)
    wait_for(lambda: ready_detail(port).get("progress") == 0.5)
    started = family.children(recursive=True)
    process.terminate()
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in log
    assert not any(process.is_running() for process in started)


def ready_detail(port: int) -> dict:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/ready").json()
    except httpx2.HTTPError:
        return {}


def test_a_failing_engine_ends_the_start_with_its_log(folder: Path) -> None:
    engine = ("--engine", "vllm", "--engine-command", ENGINE, "--engine-args", "--fail")
    done = run_m2("serve", str(folder), *engine, "--port", str(free_port()))
    assert done.returncode == 1
    assert "ValueError: the model is too large" in done.stderr
    assert "m2: vllm ended with exit status 3; its log is " in done.stderr
    assert "Traceback" not in done.stderr
