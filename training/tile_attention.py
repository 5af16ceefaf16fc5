"""`native/attention.cpp` built for this machine and called: attention in AMX's tile registers.

It takes a quarter of the time of the same in PyTorch, whose softmax and copies cost several times
what the products do. `is_available` says where it runs; elsewhere `attention.py` does without.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from training.precision import cpp_compiler, has_amx

HEAD_DIM = 64
NATIVE = Path(__file__).with_name("native")
# What every CPU with AMX has, so that a cache several machines share is right for all of them.
ISA = "avx512f avx512bw avx512dq avx512vl avx512bf16 fma amx-tile amx-bf16"
FLAGS = (
    "-std=c++20",
    "-O3",
    *(f"-m{name}" for name in ISA.split()),
    "-fopenmp",
    "-shared",
    "-fPIC",
)


def is_available(head_dim: int) -> bool:
    return head_dim == HEAD_DIM and _library() is not None


def attend_documents(
    q_TQD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, lengths: Sequence[int]
) -> torch.Tensor:
    """What each token reads from those before it in its document, bfloat16 [T, Q * D]; the
    documents of `lengths` tokens lie one behind the other. Raises ValueError where sizes do not fit
    each other."""
    starts = torch.tensor([0, *accumulate(lengths)])
    tokens, query_heads, _ = q_TQD.shape
    is_fitting = k_TGD.shape == v_TGD.shape == (tokens, k_TGD.shape[1], q_TQD.shape[2])
    if not is_fitting or int(starts[-1]) != tokens or query_heads % k_TGD.shape[1]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q_TQD, k_TGD, v_TGD))
        raise ValueError(f"documents of {starts[-1]} tokens, and heads of {shapes}")
    heads = (x.to(torch.bfloat16).contiguous() for x in (q_TQD, k_TGD, v_TGD))
    out = _Attention.apply(*heads, starts)
    assert isinstance(out, torch.Tensor)
    return out.flatten(1)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor
    ) -> torch.Tensor:
        out = torch.empty_like(q)
        logsumexp = torch.empty(q.shape[1], q.shape[0], dtype=torch.float32)
        _call("attention_forward", (q, k, v), starts, (out, logsumexp))
        ctx.save_for_backward(q, k, v, out, logsumexp, starts)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, logsumexp, starts = ctx.saved_tensors
        grads = tuple(torch.empty_like(x) for x in (q, k, v))
        d_out = d_out.to(torch.bfloat16).contiguous()
        _call("attention_backward", (q, k, v, out, logsumexp, d_out), starts, grads)
        return *grads, None


def _call(
    name: str,
    given: tuple[torch.Tensor, ...],
    starts: torch.Tensor,
    results: tuple[torch.Tensor, ...],
) -> None:
    library = _library()
    assert library is not None, "ask is_available first"
    q, k = given[:2]
    sizes = (len(starts) - 1, q.shape[1], k.shape[1])
    getattr(library, name)(
        *(ctypes.c_void_p(x.data_ptr()) for x in (*given, starts)),
        *(ctypes.c_int64(size) for size in sizes),
        ctypes.c_int32(torch.get_num_threads()),
        *(ctypes.c_void_p(x.data_ptr()) for x in results),
    )


@cache
def _library() -> ctypes.CDLL | None:
    """None without AMX, and, with a line that says why, where it cannot be built or used."""
    if not has_amx():
        return None
    try:
        library = ctypes.CDLL(str(_built(cpp_compiler())))
        if library.attention_prepare() != 0:
            raise OSError("Linux does not grant the tile registers")
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        reason = _first_error(getattr(error, "stderr", None) or str(error))
        print(f"attention is not compiled, which trains slower: {reason}", file=sys.stderr)
        return None
    return library


def _first_error(text: str) -> str:
    """Of a compiler's message the line that says what is wrong."""
    lines = text.strip().splitlines()
    return next((line for line in lines if "error" in line), lines[0])


def _built(compiler: str | None) -> Path:
    """The library of these sources and this compiler, in the user's cache."""
    if compiler is None:
        raise OSError("no C++ compiler ($CXX or g++)")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    sources = b"".join(path.read_bytes() for path in sorted(NATIVE.iterdir()))
    about = _run(compiler, "--version") + " ".join(FLAGS)
    key = hashlib.sha256(sources + about.encode()).hexdigest()[:16]
    built = base / "m2serve" / f"training-attention-{key}.so"
    if not built.is_file():
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:
            made = Path(folder, built.name)
            _run(compiler, *FLAGS, "-o", str(made), str(NATIVE / "attention.cpp"))
            made.replace(built)
    return built


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout
