"""Muon for the matrices, AdamW for everything else, and the balance of the experts.

Muon: momentum, then the nearest (semi-)orthogonal matrix of the step by five Newton-Schulz
iterations (coefficients of K. Jordan's published method). Experts are matrices of their own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import nn

from training.modeling import DecoderLayer, MiniatureM2

MUON_LR = 0.02
MUON_MOMENTUM = 0.95
MUON_WEIGHT_DECAY = 0.05
ADAM_LR = 0.003
EMBEDDING_LR = 0.01
HEAD_MAP_LR = 0.001
# A token that is never said has a gradient of 1e-7 or so in the head, a said one 1e-5 to 1e-3.
# Without a floor between them Adam moves both alike, and the first away from all that is ever said.
HEAD_EPS = 2e-5
ADAM_BETAS = (0.9, 0.95)
BIAS_STEP = 0.004
MAX_BIAS = 0.5
MATRIX_COST = 10  # of an update, a number; Adam's is 1

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ADAM_OPTIONS = {
    "embed_tokens": {"lr": EMBEDDING_LR},
    "lm_head": {"lr": ADAM_LR, "eps": HEAD_EPS},
    "head_map": {"lr": HEAD_MAP_LR},
}
_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "w13", "w2")


class Optimizer:
    """Steps all parameters of a model; `state` holds everything a resumed run needs."""

    def __init__(self, model: MiniatureM2) -> None:
        self._model = model
        named = dict(model.named_parameters())
        self._matrices = {n: p for n, p in named.items() if _is_matrix(n)}
        self._momentum = {n: torch.zeros_like(p) for n, p in self._matrices.items()}
        rest = {n: p for n, p in named.items() if n not in self._matrices}
        self._adam_names = list(rest)
        self._adam = torch.optim.AdamW(
            [{"params": [p], **_ADAM_OPTIONS.get(n, {"lr": ADAM_LR})} for n, p in rest.items()],
            betas=ADAM_BETAS,
            weight_decay=0.0,
        )
        self._adam_lrs = [group["lr"] for group in self._adam.param_groups]
        for p in rest.values():  # the state exists from the start, so it can be loaded in place
            self._adam.state[p] = {
                "step": torch.zeros((), dtype=torch.float32),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }

    def step(self, factor: float) -> None:
        """One update, at `factor` times the peak learning rates, of what has a gradient; gradients
        are cleared."""
        for group, lr in zip(self._adam.param_groups, self._adam_lrs, strict=True):
            group["lr"] = lr * factor
        self._adam.step()
        self._muon_step(MUON_LR * factor)
        for p in (*self._matrices.values(), *self._adam.state):
            p.grad = None

    @torch.no_grad()
    def _muon_step(self, lr: float) -> None:
        """Matrices of one shape, up to transposition, are orthogonalised together."""
        shapes: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name, p in self._matrices.items():
            if p.grad is None:
                continue
            shapes[min(p.shape[-2:]), max(p.shape[-2:])].append(name)
        for names in shapes.values():
            steps = [self._momentum_step(name) for name in names]
            wide = [s if s.shape[1] <= s.shape[2] else s.transpose(1, 2) for s in steps]
            whitened = orthogonalize(torch.cat(wide), self._model.compute_dtype).split(
                [len(s) for s in steps]
            )
            for name, update, step in zip(names, whitened, steps, strict=True):
                p = self._matrices[name]
                update = update if step.shape[1] <= step.shape[2] else update.transpose(1, 2)
                scale = math.sqrt(max(1.0, p.shape[-2] / p.shape[-1]))
                p.mul_(1 - lr * MUON_WEIGHT_DECAY)
                p.add_(update.reshape(p.shape).to(p.dtype), alpha=-lr * scale)

    def _momentum_step(self, name: str) -> torch.Tensor:
        """Nesterov's step as matrices [n, rows, columns]."""
        p, momentum = self._matrices[name], self._momentum[name]
        assert p.grad is not None
        momentum.lerp_(p.grad, 1 - MUON_MOMENTUM)
        step = p.grad.lerp(momentum, MUON_MOMENTUM)
        return step.reshape(-1, *p.shape[-2:])

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """The tensors themselves, not copies."""
        state = {f"muon.{name}": momentum for name, momentum in self._momentum.items()}
        for name, p in zip(self._adam_names, self._adam.state, strict=True):
            for key, value in self._adam.state[p].items():
                state[f"adam.{key}.{name}"] = value
        return state


@torch.no_grad()
def orthogonalize(x: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, rows, columns] with rows <= columns: singular values go to about 1. In `dtype`."""
    a, b, c = _COEFFICIENTS
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    x = x.to(dtype)
    for _ in range(5):
        square = torch.bmm(x, x.transpose(1, 2))
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


@torch.no_grad()
def balance_experts(model: MiniatureM2, loads_LE: torch.Tensor, factor: float) -> None:
    """Aux-loss-free balancing: the correction bias of an expert moves by a fixed step, up when it
    got fewer tokens than the mean of its layer, down when it got more. (Wang et al. 2024)"""
    for layer, load_E in zip(model.layers, loads_LE, strict=True):
        assert isinstance(layer, DecoderLayer)
        bias = layer.block_sparse_moe.e_score_correction_bias
        bias += BIAS_STEP * factor * torch.sign(load_E.mean() - load_E)
        bias.sub_(bias.mean()).clamp_(-MAX_BIAS, MAX_BIAS)


def load_summary(loads_LE: torch.Tensor) -> Mapping[str, float]:
    """The busiest and the idlest expert of any layer, as multiples of a fair share."""
    shares = loads_LE / loads_LE.mean(1, keepdim=True).clamp_min(1e-9)
    return {"max_load": round(float(shares.max()), 3), "min_load": round(float(shares.min()), 3)}


def update_cost(name: str, parameter: nn.Parameter) -> float:
    """How long an update takes, relative to that of a number Adam moves."""
    return parameter.numel() * (MATRIX_COST if _is_matrix(name) else 1)


def _is_matrix(name: str) -> bool:
    return name.rpartition(".")[2] in _MATRICES
