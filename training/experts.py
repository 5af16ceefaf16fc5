"""The experts of a layer, forward and backward, where a CPU multiplies in bfloat16.

The tokens of an expert lie behind one another, filled up to a multiple of ROWS_MULTIPLE rows, so
that few sizes of matrices occur (`precision.py`) and no expert pays for the busiest one. Written
out by hand because autograd's backward of the slices, halves and sums costs more than the
products. Letters as in `modeling.py`; R rows of all experts together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from training.precision import ROWS_MULTIPLE, fused, padded_to


@dataclass(frozen=True)
class Rows:
    """Which row computes which token for which expert.

    `expert` has each expert's rows; `token_R` is a row's token, `of_token_Tk` a token's rows. A row
    that only fills up computes token 0 with a scale of 0, and no token sums it.
    """

    expert: tuple[slice, ...]
    token_R: torch.Tensor
    of_token_Tk: torch.Tensor

    @classmethod
    def of(cls, ids_Tk: torch.Tensor, num_experts: int) -> Rows:
        ids = ids_Tk.flatten()
        order = ids.argsort(stable=True)
        counts = torch.bincount(ids, minlength=num_experts)
        sizes = padded_to(counts, ROWS_MULTIPLE)
        starts = sizes.cumsum(0) - sizes
        gaps = starts - (counts.cumsum(0) - counts)
        row = torch.arange(len(ids)) + gaps[ids[order]]
        token = ids.new_zeros(int(sizes.sum())).index_copy_(0, row, order // ids_Tk.shape[1])
        of_token = torch.empty_like(ids).index_copy_(0, order, row).view_as(ids_Tk)
        spans = zip(starts.tolist(), sizes.tolist(), strict=True)
        return cls(tuple(slice(at, at + size) for at, size in spans), token, of_token)


def run_experts(
    x_TH: torch.Tensor,
    weights_Tk: torch.Tensor,
    ids_Tk: torch.Tensor,
    w13_E2IH: torch.Tensor,
    w2_EHI: torch.Tensor,
) -> torch.Tensor:
    """The weighted sum of each token's experts, float32 [T, H]."""
    out = _Experts.apply(x_TH, weights_Tk, w13_E2IH, w2_EHI, Rows.of(ids_Tk, len(w2_EHI)))
    assert isinstance(out, torch.Tensor)
    return out


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x_TH: torch.Tensor,
        weights_Tk: torch.Tensor,
        w13: torch.Tensor,
        w2: torch.Tensor,
        rows: Rows,
    ) -> torch.Tensor:
        (w1, w3), w2 = w13.bfloat16().unbind(1), w2.bfloat16()
        x = x_TH.bfloat16().index_select(0, rows.token_R)
        scale = weights_Tk.new_zeros(len(x))
        scale.index_copy_(0, rows.of_token_Tk.flatten(), weights_Tk.flatten())
        gate, up = (x.new_empty(len(x), w1.shape[1]) for _ in range(2))
        y = torch.empty_like(x)
        for e, at in enumerate(rows.expert):
            torch.mm(x[at], w1[e].t(), out=gate[at])
            torch.mm(x[at], w3[e].t(), out=up[at])
        gated = _gated(gate, up, scale)
        for e, at in enumerate(rows.expert):
            torch.mm(gated[at], w2[e].t(), out=y[at])
        ctx.save_for_backward(x, gate, up, gated, scale, w1, w3, w2)
        ctx.rows = rows
        return _sum_of_rows(y, rows.of_token_Tk)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_TH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gate, up, gated, scale, w1, w3, w2 = ctx.saved_tensors
        rows: Rows = ctx.rows
        dy = d_TH.bfloat16().index_select(0, rows.token_R)
        d_gated, dx = torch.empty_like(gated), torch.empty_like(x)
        d_w1, d_w3, d_w2 = (torch.empty_like(w) for w in (w1, w3, w2))
        for e, at in enumerate(rows.expert):
            torch.mm(dy[at], w2[e], out=d_gated[at])
            torch.mm(dy[at].t(), gated[at], out=d_w2[e])
        d_scale = _scale_backward(gate, up, d_gated)
        d_gate, d_up = _gate_backward(gate, up, scale, d_gated), _up_backward(gate, scale, d_gated)
        for e, at in enumerate(rows.expert):
            torch.mm(d_gate[at], w1[e], out=dx[at])
            dx[at].addmm_(d_up[at], w3[e])
            torch.mm(d_gate[at].t(), x[at], out=d_w1[e])
            torch.mm(d_up[at].t(), x[at], out=d_w3[e])
        d_w13 = torch.stack([d_w1, d_w3], 1).float()
        d_x = _sum_of_rows(dx, rows.of_token_Tk)
        return d_x, d_scale[rows.of_token_Tk], d_w13, d_w2.float(), None


def _sum_of_rows(y_RH: torch.Tensor, of_token_Tk: torch.Tensor) -> torch.Tensor:
    return _sum_in_float32(
        y_RH.index_select(0, of_token_Tk.flatten()).unflatten(0, of_token_Tk.shape)
    )


@fused
def _sum_in_float32(y_TkH: torch.Tensor) -> torch.Tensor:
    out = y_TkH[:, 0].float()
    for i in range(1, y_TkH.shape[1]):
        out = out + y_TkH[:, i].float()
    return out


# One result each: what the compiler makes of two halves of one matrix is ten times slower.


@fused
def _gated(gate_RI: torch.Tensor, up_RI: torch.Tensor, scale_R: torch.Tensor) -> torch.Tensor:
    return (F.silu(gate_RI.float()) * (up_RI.float() * scale_R[:, None])).bfloat16()


@fused
def _gate_backward(
    gate_RI: torch.Tensor, up_RI: torch.Tensor, scale_R: torch.Tensor, d_RI: torch.Tensor
) -> torch.Tensor:
    gate = gate_RI.float()
    share = torch.sigmoid(gate)
    slope = share * (1 + gate * (1 - share))
    return (d_RI.float() * scale_R[:, None] * up_RI.float() * slope).bfloat16()


@fused
def _up_backward(gate_RI: torch.Tensor, scale_R: torch.Tensor, d_RI: torch.Tensor) -> torch.Tensor:
    return (d_RI.float() * scale_R[:, None] * F.silu(gate_RI.float())).bfloat16()


@fused
def _scale_backward(gate_RI: torch.Tensor, up_RI: torch.Tensor, d_RI: torch.Tensor) -> torch.Tensor:
    return (d_RI.float() * F.silu(gate_RI.float()) * up_RI.float()).sum(-1)
