"""docs/deployments.md is what its script writes."""

import importlib.util
from pathlib import Path

from m2serve.spec.deployments import load_contradictions

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_up_to_date() -> None:
    """Where it is not: python scripts/make_deployments_page.py"""
    path = ROOT / "scripts" / "make_deployments_page.py"
    spec = importlib.util.spec_from_file_location("make_deployments_page", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = script.page()
    assert (ROOT / "docs" / "deployments.md").read_text(encoding="utf-8") == text
    assert "| left out |  |" not in text
    for number in range(1, 18):
        assert f"\n## D{number}: " in text
    for row in load_contradictions():
        assert f"| {row.id} | {row.topic} |" in text
