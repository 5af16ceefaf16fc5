import json
from pathlib import Path

import pytest

from m2serve.chat.identity import DEFAULT_IDENTITY, MAX_TEMPLATE_BYTES, model_identity
from m2serve.errors import ConfigError

TEMPLATE = '{% if not x %}{%- set model_identity = "You are M2.7." -%}{% endif %}'


def test_the_template_says_who_the_model_is(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    assert model_identity(tmp_path) == "You are M2.7."
    (tmp_path / "chat_template.jinja").unlink()
    config = {"chat_template": TEMPLATE.replace('"', "'")}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert model_identity(tmp_path) == "You are M2.7."


@pytest.mark.parametrize("template", ["", "model_identity = ", 'model_identity = "', "{{ x }}"])
def test_without_an_answer_it_is_the_default(tmp_path: Path, template: str) -> None:
    assert model_identity(tmp_path) == DEFAULT_IDENTITY
    (tmp_path / "chat_template.jinja").write_text(template)
    assert model_identity(tmp_path) == DEFAULT_IDENTITY


def test_bad_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigError, match="JSON"):
        model_identity(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b" " * (MAX_TEMPLATE_BYTES + 1))
    with pytest.raises(ConfigError, match="larger"):
        model_identity(tmp_path)
