"""A vLLM plugin (`vllm.general_plugins`): MiniMax-M2 on vLLM's CPU backend.

The CPU router of vLLM 0.32 and 0.33 takes sigmoid scores only with grouped top-k, and M2 has no
groups, so its first request ends the engine ("assert self.scoring_func == 'softmax'"). Top-k within
one group of all experts is the same routing, so that is what M2's router is told.

vLLM imports this in each of its processes. Nothing is touched on other devices, nor where the
router already does it. vLLM is imported inside the function alone.
"""

from __future__ import annotations

import logging
from functools import wraps
from typing import Any

logger = logging.getLogger(__name__)


def register() -> None:
    """The entry point; may be called several times in one process."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    try:
        from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter
    except ImportError:  # other releases route elsewhere
        return
    if routes_sigmoid(CPURouter):
        return
    CPURouter.__init__ = with_one_group(CPURouter.__init__)
    logger.info("m2serve: sigmoid routing of MiniMax-M2 on the CPU goes through one expert group")


def routes_sigmoid(router_class: Any) -> bool:
    """Try it out on two tokens and four experts."""
    import torch

    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    try:
        router = router_class(
            top_k=2,
            global_num_experts=4,
            scoring_func="sigmoid",
            e_score_correction_bias=torch.tensor([0.0, 0.0, 9.0, 0.0]),
        )
        _, ids = router._compute_routing(torch.zeros(2, 8), logits, None)
        chosen = [sorted(row) for row in ids.tolist()]
    except Exception:  # what it raises differs between releases
        return False
    return chosen == [[0, 2], [2, 3]]


def with_one_group(init: Any) -> Any:
    """CPURouter.__init__ that turns sigmoid scoring without groups into one group of all."""

    @wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        plain = not self.use_grouped_topk and self.custom_routing_function is None
        if self.scoring_func == "sigmoid" and plain:
            self.use_grouped_topk = True
            self.num_expert_group = 1
            self.topk_group = 1

    return wrapped
