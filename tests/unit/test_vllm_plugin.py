"""The vLLM plugin against stand-ins for vLLM's modules; tests/integration has the real ones."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from m2serve import vllm_plugin

ROUTER = "vllm.model_executor.layers.fused_moe.router.cpu_router"


def router_class(*, knows_sigmoid: bool) -> type:
    class Router:
        def __init__(self, top_k: int, global_num_experts: int, **options: Any) -> None:
            self.top_k = top_k
            self.scoring_func = options.get("scoring_func", "softmax")
            self.use_grouped_topk = options.get("use_grouped_topk", False)
            self.num_expert_group = options.get("num_expert_group")
            self.topk_group = options.get("topk_group")
            self.custom_routing_function = options.get("custom_routing_function")
            self.bias = options.get("e_score_correction_bias")

        def _compute_routing(self, hidden: Any, logits: Any, kind: Any) -> tuple[Any, Any]:
            grouped = self.use_grouped_topk and self.num_expert_group == self.topk_group == 1
            assert self.scoring_func == "softmax" or grouped or knows_sigmoid
            scores = logits.sigmoid()
            ids = (scores + self.bias).topk(self.top_k).indices
            return scores.gather(1, ids), ids

    return Router


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`router` and `is_cpu` can be set before the plugin is called."""
    installed = SimpleNamespace(router=router_class(knows_sigmoid=False), is_cpu=True)
    platforms: Any = ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(is_cpu=lambda: installed.is_cpu)
    names = ROUTER.split(".")
    for length in range(1, len(names)):
        name = ".".join(names[:length])
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    cpu_router: Any = ModuleType(ROUTER)
    monkeypatch.setitem(sys.modules, ROUTER, cpu_router)

    def register() -> None:
        cpu_router.CPURouter = installed.router
        vllm_plugin.register()

    installed.register = register
    return installed


def test_sigmoid_goes_through_one_group_of_all_experts(vllm: SimpleNamespace) -> None:
    assert not vllm_plugin.routes_sigmoid(vllm.router)
    vllm.register()
    assert vllm_plugin.routes_sigmoid(vllm.router)
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    bias = torch.linspace(-1, 1, 8)
    router = vllm.router(3, 8, scoring_func="sigmoid", e_score_correction_bias=bias)
    weights, ids = router._compute_routing(None, logits, None)
    expected = (logits.sigmoid() + bias).topk(3).indices
    assert torch.equal(ids, expected)
    assert torch.equal(weights, logits.sigmoid().gather(1, expected))


def test_other_models_are_left_alone(vllm: SimpleNamespace) -> None:
    vllm.register()
    assert not vllm.router(2, 8).use_grouped_topk
    grouped = vllm.router(
        2, 8, scoring_func="sigmoid", use_grouped_topk=True, num_expert_group=4, topk_group=2
    )
    assert (grouped.num_expert_group, grouped.topk_group) == (4, 2)
    custom = vllm.router(2, 8, scoring_func="sigmoid", custom_routing_function=print)
    assert not custom.use_grouped_topk


def test_twice_is_once(vllm: SimpleNamespace) -> None:
    vllm.register()
    init = vllm.router.__init__
    vllm.register()
    assert vllm.router.__init__ is init


@pytest.mark.parametrize("reason", ["another device", "a release that can"])
def test_nothing_is_touched_without_need(vllm: SimpleNamespace, reason: str) -> None:
    if reason == "another device":
        vllm.is_cpu = False
    else:
        vllm.router = router_class(knows_sigmoid=True)
    init = vllm.router.__init__
    vllm.register()
    assert vllm.router.__init__ is init


def test_a_release_that_routes_elsewhere(
    vllm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, ROUTER, None)
    vllm_plugin.register()


def test_the_import_pulls_nothing_in() -> None:
    code = "import sys, m2serve.vllm_plugin; print({'torch', 'vllm'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
