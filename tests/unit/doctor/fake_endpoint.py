"""An OpenAI-compatible endpoint that answers as a healthy M2 does, or broken in one named way."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fake_engine import tiny_tokenizer

from m2serve.chat.identity import DEFAULT_IDENTITY
from m2serve.doctor.prompt_count import PromptCounter
from m2serve.doctor.questions import FILE_TEXT

MODEL = "MiniMaxAI/MiniMax-M2.5"
MAX_MODEL_LEN = 40000
PROSE = (
    "Sunlight holds every colour. Air scatters short waves such as blue far more than long ones "
    "such as red. So blue light reaches the eye from all over the sky."
)
LOOP = "I will check the file again. Then I will look at the result. "
COUNTER = PromptCounter(tiny_tokenizer(), DEFAULT_IDENTITY)


@dataclass(frozen=True)
class Spoken:
    """What the model says before the endpoint breaks it."""

    reasoning: str
    content: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    finish_reason: str = "stop"


def healthy_answer(question: str, body: dict[str, Any]) -> Spoken:
    """A healthy M2's answer to each question of the doctor."""
    if body["messages"][-1]["role"] == "tool":
        return Spoken("The tool says it is sunny.", "It will be sunny in Paris.")
    if body.get("tools"):
        return Spoken("I call the tool.", calls=_calls(question), finish_reason="tool_calls")
    if "17 + 25" in question:
        return Spoken("17 and 25 make 42.", "42")
    if "JSON" in question:
        return Spoken("They want JSON.", '{"name": "Ada", "age": 36}')
    if "2000" in question:
        numbers = "\n".join(f"number {n}" for n in range(1, 2001))
        return Spoken("I count.", numbers)
    return Spoken(f"The question is about {question[:20]!r}.", PROSE)


def _calls(question: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    if "write the file" in question:
        return (("write_file", {"path": "notes.xml", "text": FILE_TEXT}),)
    cities = [city for city in ("Paris", "Tokyo") if city in question]
    return tuple(("get_weather", {"city": city, "days": 2}) for city in cities)


class Endpoint:
    """The server and what it remembers. `fault` "" is healthy; see `_broken` for the others."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.running = 0
        self.has_counted = False
        self.seen: set[str] = set()
        self.requests: list[dict[str, Any]] = []

    def say(self, body: dict[str, Any]) -> Spoken:
        question = next(m["content"] for m in reversed(body["messages"]) if m["role"] == "user")
        return _broken(self.fault, healthy_answer(question, body), body)

    def count_running(self) -> int:
        """Requests now; the first look still counts one that has just ended, as engines do."""
        late = 0 if self.has_counted else 1
        self.has_counted = True
        return self.running + late

    def prompt_tokens(self, body: dict[str, Any]) -> int:
        messages, tools = body["messages"], body.get("tools", ())
        if self.fault == "template":
            text = "".join(f"<|{m['role']}|>{m['content']}" for m in messages)
            return COUNTER.count_text(text)
        if self.fault == "drops-thinking":
            messages = [
                {k: v for k, v in message.items() if k != "reasoning_content"}
                for message in messages
            ]
        count = COUNTER.count(messages, tools)
        if self.fault == "identity" and messages[0]["role"] != "system":
            return count + 9
        return count + (self.fault == "bos-twice")

    def cached_tokens(self, body: dict[str, Any], count: int) -> int:
        key = json.dumps(body["messages"])
        is_known = key in self.seen
        self.seen.add(key)
        return count - 1 if is_known and self.fault != "no-prefix-cache" else 0


def _broken(fault: str, spoken: Spoken, body: dict[str, Any]) -> Spoken:
    reasoning, content, calls, finish = (
        spoken.reasoning,
        spoken.content,
        spoken.calls,
        spoken.finish_reason,
    )
    is_long = body["max_tokens"] > 1000
    if fault == "append-think":
        return Spoken("", f"<think>{reasoning}\n</think>\n\n{content}", calls, finish)
    if fault == "half-think" and content:
        return Spoken("", f"{reasoning}\n</think>\n\n{content}", calls, finish)
    if fault == "think-in-reasoning":
        return Spoken(f"<think>\n{reasoning}", content, calls, finish)
    if fault == "no-thinking":
        return Spoken("", content, calls, finish)
    if fault == "raw-calls" and calls:
        return Spoken(reasoning, f'<minimax:tool_call>\n<invoke name="{calls[0][0]}">')
    if fault == "no-calls" and calls:
        return Spoken(reasoning, "I cannot do that.")
    if fault == "text-cut" and calls and "text" in calls[0][1]:
        cut = {**calls[0][1], "text": calls[0][1]["text"].split("</item>")[0]}
        return Spoken(reasoning, content, ((calls[0][0], cut),), finish)
    if fault == "days-as-text" and calls and "days" in calls[0][1]:
        wrong = tuple((name, {**arguments, "days": "2"}) for name, arguments in calls)
        return Spoken(reasoning, content, wrong, finish)
    if fault == "one-call":
        return Spoken(reasoning, content, calls[:1], finish)
    if fault == "loops" and is_long and not calls:
        return Spoken(reasoning, LOOP * 40, calls, "length")
    if fault == "nan":
        return Spoken("!" * 300, "", (), "length")
    if fault == "mojibake" and content:
        return Spoken(reasoning, "при宇vie十дом學tio世界na при宇vie十дом學tio世界na" * 3)
    if fault == "silent":
        return Spoken("", "")
    if fault == "only-thinking" and not calls:
        return Spoken(PROSE * 3, "", (), "length")
    if fault == "bad-json" and content.startswith("{"):
        return Spoken(reasoning, '{"name": "Ada", "age": ')
    return spoken


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    endpoint: Endpoint

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            model = {"id": MODEL, "owned_by": "vllm", "max_model_len": MAX_MODEL_LEN}
            self._json(200, {"object": "list", "data": [model]})
        elif self.path == "/version":
            self._json(200, {"version": "0.19.1"})
        elif self.path == "/metrics" and self.endpoint.fault != "no-metrics":
            line = f'vllm:num_requests_running{{engine="0"}} {self.endpoint.count_running()}.0\n'
            self._send(200, line.encode(), "text/plain")
        else:
            self._json(404, {"error": {"message": "Not Found"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.endpoint.fault
        self.endpoint.requests.append(body)
        if fault == "dead":
            self._json(500, {"error": {"message": "EngineCore encountered an issue."}})
            return
        if fault == "stuck" or (fault == "slow" and "sky" in str(body["messages"])):
            time.sleep(0.6)
        words = sum(len(str(m["content"]).split()) for m in body["messages"])
        if words > MAX_MODEL_LEN and fault != "truncates":
            status = 500 if fault == "500-at-limit" else 400
            self._json(status, {"error": {"message": "the prompt is too long"}})
            return
        if "response_format" in body and fault == "no-json":
            self._json(400, {"error": {"message": "response_format is not supported"}})
            return
        count = self.endpoint.prompt_tokens(body) if words < 10000 else words
        spoken = self.endpoint.say(body)
        usage = {
            "prompt_tokens": count,
            "completion_tokens": len(spoken.reasoning.split()) + len(spoken.content.split()) + 9,
            "prompt_tokens_details": {"cached_tokens": self.endpoint.cached_tokens(body, count)},
        }
        if fault == "no-usage":
            usage = {}
        if body.get("stream"):
            self._stream(spoken, usage, body)
        else:
            self._whole(spoken, usage)

    def _whole(self, spoken: Spoken, usage: dict[str, Any]) -> None:
        same_id = self.endpoint.fault == "same-ids"
        message = {
            "role": "assistant",
            "reasoning_content": spoken.reasoning,
            "content": spoken.content or None,
            "tool_calls": [
                {
                    "id": "call_0" if same_id else f"call_{number}",
                    "type": "function",
                    "function": {"name": name, "arguments": self._arguments(arguments)},
                }
                for number, (name, arguments) in enumerate(spoken.calls)
            ],
        }
        choice = {"index": 0, "message": message, "finish_reason": spoken.finish_reason}
        self._json(200, {"choices": [choice], "usage": usage})

    def _arguments(self, arguments: dict[str, Any]) -> str:
        text = json.dumps(arguments, ensure_ascii=False)
        return text[:-2] if self.endpoint.fault == "arguments-cut" else text

    def _stream(self, spoken: Spoken, usage: dict[str, Any], body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.endpoint.running += 1
        try:
            for delta in self._deltas(spoken):
                self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
                if "2000" in str(body["messages"]):
                    time.sleep(0.002)
            last = {"index": 0, "delta": {}, "finish_reason": spoken.finish_reason}
            self._event({"choices": [last]})
            self._event({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            if self.endpoint.fault == "cancel-ignored":
                return
        self.close_connection = True
        self.endpoint.running -= 1

    def _deltas(self, spoken: Spoken) -> Iterator[dict[str, Any]]:
        fault = self.endpoint.fault
        content = spoken.content.replace("blue", "bl", 1) if fault == "stream-loses" else None
        for text in _pieces(spoken.reasoning):
            yield {"reasoning_content": text}
        for text in _pieces(spoken.content if content is None else content):
            yield {"content": text}
        for number, (name, arguments) in enumerate(spoken.calls):
            named = None if fault == "stream-nameless" else name
            yield {
                "tool_calls": [
                    {"index": number, "id": f"call_{number}", "function": {"name": named}}
                ]
            }
            text = self._arguments(arguments)
            text = text[:-1] if fault == "stream-open-json" else text
            for piece in [text] if fault == "bursts" else _pieces(text):
                yield {"tool_calls": [{"index": number, "function": {"arguments": piece}}]}

    def _event(self, data: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")

    def _json(self, status: int, data: dict[str, Any]) -> None:
        self._send(status, json.dumps(data).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _pieces(text: str) -> Iterator[str]:
    return (text[start : start + 17] for start in range(0, len(text), 17))


@contextlib.contextmanager
def fake_endpoint(fault: str = "") -> Iterator[tuple[str, Endpoint]]:
    """A server on a free loopback port; its URL and its memory."""
    endpoint = Endpoint(fault)
    handler = type("FaultyHandler", (Handler,), {"endpoint": endpoint})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
