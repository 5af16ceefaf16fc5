"""`m2 doctor` against `m2 serve`: a deployment that is right passes, and a wrong answer shows."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Serving, run_m2, serving
from tiny import build_tiny

from m2serve.doctor.questions import (
    ARITHMETIC,
    COUNTING,
    FILE_TEXT,
    JSON_OBJECT,
    ONE_CITY,
    TWO_CITIES,
    WRITE_FILE,
)

PROSE = (
    "Sunlight holds every colour. Air scatters short waves far more than long ones, so it is blue."
)


def invoke(name: str, **arguments: str) -> str:
    lines = [f'<parameter name="{key}">{value}</parameter>\n' for key, value in arguments.items()]
    return f'<invoke name="{name}">\n{"".join(lines)}</invoke>\n'


def calls(*invokes: str) -> str:
    block = "".join(invokes)
    return f"I call.\n</think>\n\n\n<minimax:tool_call>\n{block}</minimax:tool_call>"


def script(prose: str) -> list[dict]:
    paris = invoke("get_weather", city="Paris", days="2")
    tokyo = invoke("get_weather", city="Tokyo", days="2")
    numbers = "\n".join(f"number {n}" for n in range(1, 300))
    return [
        {"match": ARITHMETIC, "completion": "They add up.\n</think>\n\n42"},
        {"match": TWO_CITIES, "completion": calls(paris, tokyo)},
        {"match": ONE_CITY, "completion": calls(paris), "after_tool": False},
        {"match": ONE_CITY, "completion": f"I know.\n</think>\n\n{PROSE}", "after_tool": True},
        {
            "match": WRITE_FILE[:40],
            "completion": calls(invoke("write_file", path="notes.xml", text=FILE_TEXT)),
        },
        {"match": JSON_OBJECT, "completion": 'So.\n</think>\n\n{"name": "Ada", "age": 36}'},
        {"match": COUNTING, "completion": f"I count.\n</think>\n\n{numbers}"},
        {"match": "", "completion": f"About the sky.\n</think>\n\n{prose}"},
    ]


def write_script(path: Path, prose: str) -> str:
    lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in script(prose)]
    path.write_text("".join(lines))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Serving]:
    path = write_script(folder / "healthy.jsonl", PROSE)
    with serving(str(folder), "--served-model-name", "m", "--scripted", path) as running:
        yield running


def test_a_right_deployment_passes(server: Serving, folder: Path) -> None:
    result = run_m2("doctor", server.url, "--tokenizer", str(folder), "--json")
    found = json.loads(result.stdout)
    verdicts = {check["name"]: check["verdict"] for check in found["checks"]}
    # Structured output may be missing, never wrong.
    fine = {"json_mode": ("ok", "warn")}
    wrong = [
        check
        for check in found["checks"]
        if check["verdict"] not in fine.get(check["name"], ("ok",))
    ]
    assert wrong == []
    assert verdicts["prompt_tokens"] == "ok"
    assert verdicts["prefix_cache"] == "ok"
    assert (result.returncode, found["failed"]) == (0, False)
    assert (found["model"], found["engine"]) == ("m", "own")


def test_a_person_reads_lines(server: Serving) -> None:
    result = run_m2("doctor", server.url.removeprefix("http://"), "--quick")
    assert result.returncode == 0, result.stdout
    lines = result.stdout.splitlines()
    assert lines[0].startswith("m at http://127.0.0.1")
    assert any(line.strip().startswith("ok  generates") for line in lines)
    assert "0 failed" in lines[-1]


def test_a_wrong_deployment_fails_and_says_why(folder: Path) -> None:
    path = write_script(folder / "broken.jsonl", "!" * 200)
    options = ("--reasoning-parser", "minimax_m2_append_think")
    with serving(str(folder), "--scripted", path, *options) as running:
        result = run_m2("doctor", running.url, "--quick", "--json")
    found = json.loads(result.stdout)
    checks = {check["name"]: check for check in found["checks"]}
    assert result.returncode == 1
    assert checks["garbled"]["verdict"] == "fail"
    assert "NaN" in checks["garbled"]["detail"]
    assert checks["reasoning"]["verdict"] == "warn"
    assert set(checks["garbled"]["issues"]) <= {issue["id"] for issue in found["likely_issues"]}


def test_nobody_there_is_one_sentence() -> None:
    result = run_m2("doctor", "127.0.0.1:9")
    assert result.returncode == 1
    assert result.stderr.startswith("m2: no answer from http://127.0.0.1:9")
