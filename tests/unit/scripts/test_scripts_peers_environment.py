"""What is measured gets the environment of the person who measures, and nothing of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
CODE = """
import os
before = dict(os.environ)
import scripts.peers.compare, scripts.peers.make_models, scripts.peers.load_time
assert dict(os.environ) == before, set(os.environ.items()) - set(before.items())
"""


def test_importing_the_comparison_leaves_the_environment_alone() -> None:
    found = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
