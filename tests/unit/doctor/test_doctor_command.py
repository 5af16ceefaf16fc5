"""The command: logs from files and from stdin, keys, exit codes."""

import json
from pathlib import Path

import pytest
from fake_endpoint import MODEL, fake_endpoint
from typer.testing import CliRunner

from m2serve.cli.main import app
from m2serve.errors import UsageError
from m2serve.spec.known_issues import find_issue

OOM = find_issue("K111").example_log
HEALTHY = Path(__file__).resolve().parents[2] / "data" / "healthy_logs"


def run(*arguments: str, input: str = "") -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *arguments], input=input)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_a_log_file(tmp_path: Path) -> None:
    path = tmp_path / "vllm.log"
    path.write_text(f"fine\n{OOM}\n")
    code, text = run(str(path))
    assert code == 1
    assert "line 2: torch.OutOfMemoryError" in text
    assert "K111" in text
    assert find_issue("K111").fix in text


def test_stdin_as_json() -> None:
    code, text = run("-", "--json", input=f"{OOM}\n{OOM}\n")
    found = json.loads(text)
    assert (code, found["lines"], found["failed"]) == (1, 2, True)
    [issue] = found["issues"]
    assert (issue["id"], issue["line_number"], issue["count"]) == ("K111", 1, 2)


@pytest.mark.parametrize("path", sorted(HEALTHY.glob("*.log")), ids=lambda path: path.stem)
def test_a_healthy_log(path: Path) -> None:
    code, text = run(str(path))
    assert code == 0
    assert "known issues: none" in text


def test_what_is_neither_url_nor_file(tmp_path: Path) -> None:
    for target in (str(tmp_path), "no-such.log", "vllm serve"):
        with pytest.raises(UsageError, match="neither a URL nor a log file"):
            run(target)


def test_an_endpoint_that_fails_tells_what_was_sent_and_received() -> None:
    with fake_endpoint("raw-calls") as (url, _):
        code, text = run(url, "--quick")
    assert code == 1
    assert "fail  one_tool_call: <minimax:tool_call> stands in the text" in text
    assert "sent      Use the tool" in text
    assert "likely causes:" in text
    assert text.splitlines()[0].startswith(f"{MODEL} at {url}, vllm 0.19.1, context 40,000")


def test_an_endpoint_as_json() -> None:
    with fake_endpoint() as (url, endpoint):
        code, text = run(url, "--quick", "--json", "--model", "other")
    found = json.loads(text)
    assert (code, found["failed"], found["model"]) == (0, False, "other")
    assert {check["verdict"] for check in found["checks"]} <= {"ok", "warn"}
    assert {body["model"] for body in endpoint.requests} == {"other"}
