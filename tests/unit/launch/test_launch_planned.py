"""Every published deployment's plan in every form: written, or refused in a sentence."""

import subprocess

import pytest
import yaml

from m2serve.errors import UsageError
from m2serve.launch.forms import FORMS
from m2serve.launch.options import LaunchOptions
from m2serve.plan.plan import make_plan
from m2serve.spec.deployments import Deployment, load_deployments

ROWS = [row for row in load_deployments() if row.id[1:].isdecimal()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_written_and_read_back(row: Deployment) -> None:
    plan = make_plan(row.model, row.hardware, engine=row.engine, num_nodes=row.num_nodes)
    for form, write in FORMS.items():
        if form == "recipe" and row.engine == "sglang":
            with pytest.raises(UsageError, match="recipes are vLLM's"):
                write(plan, LaunchOptions())
            continue
        for file in write(plan, LaunchOptions(nic="eth0")):
            if file.name.endswith(".yaml"):
                documents = list(yaml.safe_load_all(file.text))
                assert documents
                assert all(documents)
            else:
                subprocess.run(["bash", "-n"], input=file.text.encode(), check=True)
