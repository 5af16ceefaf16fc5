"""Commands and log lines as pure text."""

import pytest

from m2serve.launch.engine_log import MAX_LINES, loaded_fraction, telling_lines
from m2serve.launch.local import engine_argv, local_launch


def test_vllm() -> None:
    argv = engine_argv(
        "vllm",
        "/models/m2",
        8001,
        settings=[("--max-model-len", "4096"), ("--no-enable-prefix-caching", None)],
        extra=["--tensor-parallel-size", "2"],
    )
    assert " ".join(argv) == (
        "vllm serve /models/m2 --host 127.0.0.1 --port 8001 --enable-prompt-tokens-details "
        "--uvicorn-log-level warning --reasoning-parser minimax_m2 --max-model-len 4096 "
        "--no-enable-prefix-caching "
        "--tensor-parallel-size 2"
    )


def test_sglang_has_other_names() -> None:
    argv = engine_argv("sglang", "m", 1, settings=[("--max-model-len", "9"), ("--dtype", "auto")])
    assert " ".join(argv) == (
        "python3 -m sglang.launch_server --model-path m --host 127.0.0.1 --port 1 "
        "--log-level-http warning --incremental-streaming-output --reasoning-parser minimax "
        "--context-length 9 --dtype auto"
    )


def test_an_older_sglang_has_another_word_for_streaming() -> None:
    words = engine_argv("sglang", "m", 1, version="0.5.9")
    assert "--stream-output" in words
    assert "--incremental-streaming-output" not in words
    assert "--stream-output" not in engine_argv("sglang", "m", 1, version="0.5.10.post1")


def test_a_planned_reasoning_parser_stands() -> None:
    argv = engine_argv("vllm", "m", 1, settings=[("--reasoning-parser", "planned")])
    assert [argv[i + 1] for i, word in enumerate(argv) if word == "--reasoning-parser"] == [
        "planned"
    ]


def test_the_program_can_be_another() -> None:
    assert engine_argv("vllm", "m", 1, command=["/venv/bin/vllm", "serve"])[0] == "/venv/bin/vllm"


def test_a_launch_is_the_record_a_plan_has() -> None:
    launch = local_launch(("vllm", "serve"), {"A": "1"})
    assert (launch.argv, launch.env, launch.node) == (("vllm", "serve"), (("A", "1"),), 0)


@pytest.mark.parametrize(
    ("line", "fraction"),
    [
        ("Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:01<00:01, 1.9it/s]", 0.5),
        ("(Worker pid=7) Loading safetensors checkpoint shards: 100% Completed | 4/4", 1.0),
        ("Multi-thread loading shards:  25%|##        | 1/4 [00:01<00:03,  1.01s/it]", 0.25),
        ("INFO 12:00:00 Loading weights took 3.2 seconds", None),
        ("", None),
        ("oading " + "x" * 10_000 + "shards: 5%", None),
    ],
)
def test_progress(line: str, fraction: float | None) -> None:
    assert loaded_fraction(line) == fraction


def test_the_lines_that_tell_of_an_error() -> None:
    log = "\n".join(
        [
            "INFO starting",
            '    assert self.scoring_func == "softmax"',
            "AssertionError",
            *["leaked instance"] * 100,
            "AssertionError",
        ]
    )
    assert telling_lines(log)[:2] == ['    assert self.scoring_func == "softmax"', "AssertionError"]
    assert len(telling_lines(log)) == 2


def test_without_an_error_the_last_lines_tell() -> None:
    assert telling_lines("\n".join(str(i) for i in range(100))) == [
        str(i) for i in range(100 - MAX_LINES, 100)
    ]
    assert telling_lines("") == []
