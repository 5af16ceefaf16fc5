"""`native/attention.cpp` built for this machine and called: attention in AMX's tile registers.

It takes a quarter of the time of the same in PyTorch, whose softmax and copies cost several times
what the products do. `is_available` says where it runs; elsewhere `attention.py` does without.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

HEAD_DIM = 64
NATIVE = Path(__file__).with_name("native")
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-w")


def is_available(head_dim: int) -> bool:
    return head_dim == HEAD_DIM and _library() is not None


def attend_documents(
    q_TQD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, lengths: Sequence[int]
) -> torch.Tensor:
    """What each token reads from those before it in its document, bfloat16 [T, Q * D]; the
    documents of `lengths` tokens lie one behind the other."""
    starts = torch.tensor([0, *accumulate(lengths)])
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
        log_sums = torch.empty(q.shape[1], q.shape[0])
        _call("attention_forward", (q, k, v), starts, (out, log_sums))
        ctx.save_for_backward(q, k, v, out, log_sums, starts)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, log_sums, starts = ctx.saved_tensors
        slopes = tuple(torch.empty_like(x) for x in (q, k, v))
        d_out = d_out.to(torch.bfloat16).contiguous()
        _call("attention_backward", (q, k, v, out, log_sums, d_out), starts, slopes)
        return *slopes, None


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
    """None without AMX or Linux, and, with a line that says so, without a compiler for it."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    if not capabilities.get("amx_bf16") or sys.platform != "linux":
        return None
    try:
        compiler = shutil.which(os.environ.get("CXX", "g++"))
        if compiler is None:
            raise FileNotFoundError("no C++ compiler ($CXX or g++)")
        library = ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip().partition("\n")[0]
        print(f"attention is not compiled, which trains slower: {reason}", file=sys.stderr)
        return None
    return library if library.attention_prepare() == 0 else None


def _built(compiler: str) -> Path:
    """The library of these sources and this machine, in the user's cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    sources = b"".join(path.read_bytes() for path in sorted(NATIVE.iterdir()))
    key = hashlib.sha256(sources + version + " ".join(FLAGS).encode()).hexdigest()[:16]
    built = base / "m2serve" / f"training-attention-{key}.so"
    if not built.is_file():
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:
            made = Path(folder, built.name)
            command = [compiler, *FLAGS, "-o", str(made), str(NATIVE / "attention.cpp")]
            subprocess.run(command, capture_output=True, check=True, text=True)
            made.replace(built)
    return built
