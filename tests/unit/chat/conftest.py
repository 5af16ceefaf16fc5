from pathlib import Path

import pytest
from chat_golden import golden
from hypothesis import settings
from tiny_tokenizer import write_tokenizer

from m2serve.chat.tokenizer import Tokenizer
from m2serve.chat.tools import Tool, parse_tools

# A busy machine is no failure.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, 1200)
    return folder


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "prompt_case" in metafunc.fixturenames:
        cases = golden("prompts.json")
        metafunc.parametrize("prompt_case", cases, ids=[case["name"] for case in cases])
    if "output_case" in metafunc.fixturenames:
        cases = golden("outputs.json")["cases"]
        metafunc.parametrize("output_case", cases, ids=[case["name"] for case in cases])


@pytest.fixture(scope="session")
def output_tools() -> tuple[Tool, ...]:
    return parse_tools(golden("outputs.json")["tools"])
