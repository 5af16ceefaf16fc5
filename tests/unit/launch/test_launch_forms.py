"""The forms against their golden files, and recipes and YAML as their readers take them."""

from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from launch_plans import A2, B200, CASES, GOLDEN, RTX_PRO, UNEQUAL, files_of

from m2serve.errors import UsageError
from m2serve.launch.forms import FORMS
from m2serve.launch.recipe import recipe_files, strategy_of
from m2serve.launch.yaml_text import yaml_text
from m2serve.records import Parallelism


@pytest.mark.parametrize(("name", "form"), CASES)
def test_golden(name: str, form: str) -> None:
    for file in files_of(name, form):
        assert file.text == (GOLDEN / name / file.name).read_text(), file.name


def test_no_golden_file_is_left_over() -> None:
    written = {f"{name}/{file.name}" for name, form in CASES for file in files_of(name, form)}
    assert {str(path.relative_to(GOLDEN)) for path in GOLDEN.rglob("*.*")} == written


def test_every_form_is_written_for_one_node() -> None:
    for form in FORMS:
        for file in files_of("b200", form):
            assert file.text.endswith("\n")


def recipe(plan):
    (file,) = recipe_files(plan)
    return yaml.safe_load(file.text)


def test_a_recipe_has_every_block() -> None:
    loaded = recipe(B200)
    assert set(loaded) == {
        *("meta", "model", "features", "opt_in_features", "variants", "compatible_strategies"),
        *("strategy_overrides", "hardware_overrides", "guide"),
    }
    assert loaded["model"]["model_id"] == "MiniMaxAI/MiniMax-M2.5"
    assert loaded["model"]["parameter_count"] == "229B"
    assert loaded["features"]["reasoning"]["args"] == ["--reasoning-parser", "minimax_m2"]
    assert loaded["compatible_strategies"] == ["single_node_tp"]
    assert loaded["strategy_overrides"] == {"single_node_tp": {"tp": 4}}
    args = loaded["hardware_overrides"]["blackwell"]["extra_args"]
    assert not {"--max-model-len", "--max-num-seqs", "--gpu-memory-utilization"}.intersection(args)
    assert not {"--tensor-parallel-size", "--host", "--reasoning-parser"}.intersection(args)
    assert "vllm serve MiniMaxAI/MiniMax-M2.5" in loaded["guide"]


def test_a_recipe_for_another_checkpoint_is_a_variant() -> None:
    name = "mconcat/MiniMax-M2.5-NVFP4"
    loaded = recipe(replace(B200, model=name, variant=name))
    assert loaded["model"]["model_id"] == "MiniMaxAI/MiniMax-M2.5"
    assert loaded["variants"]["nvfp4"]["model_id"] == name
    assert loaded["variants"]["nvfp4"]["precision"] == "nvfp4"
    assert loaded["variants"]["default"]["precision"] == "fp8"


def test_nothing_of_one_cluster_is_in_a_recipe() -> None:
    loaded = recipe(A2)
    override = loaded["hardware_overrides"]["npu"]
    assert loaded["compatible_strategies"] == ["multi_node_tp_dp"]
    assert "HCCL_IF_IP" not in override["extra_env"]
    assert "--data-parallel-address" not in override["extra_args"]


@pytest.mark.parametrize(
    ("cut", "nodes", "strategy"),
    [
        (Parallelism(tensor=4, expert_parallel=True), 1, "single_node_tep"),
        (Parallelism(data=8, expert_parallel=True), 1, "single_node_dep"),
        (Parallelism(tensor=8, pipeline=2), 2, "multi_node_tp_pp"),
        (Parallelism(data=16, expert_parallel=True), 2, "multi_node_dep"),
    ],
)
def test_strategies(cut: Parallelism, nodes: int, strategy: str) -> None:
    assert strategy_of(replace(B200, parallelism=cut, num_nodes=nodes)) == strategy


@pytest.mark.parametrize(("plan", "told"), [(RTX_PRO, "recipes are vLLM's"), (UNEQUAL, "folder")])
def test_what_is_no_recipe(plan, told) -> None:
    with pytest.raises(UsageError, match=told):
        recipe_files(plan)


@given(st.dictionaries(st.text(max_size=8), st.lists(st.text(max_size=12), max_size=4), max_size=4))
def test_yaml_gives_the_data_back(data: dict[str, list[str]]) -> None:
    assert yaml.safe_load(yaml_text([data], ["a comment"])) == data


@pytest.mark.parametrize("text", ["1e5", "0o7", "1_000", "012", "true", "no", "null", "1.0", "~"])
def test_texts_stay_texts(text: str) -> None:
    written = yaml_text([{"a": text}])
    assert written in (f"a: '{text}'\n", f'a: "{text}"\n')
