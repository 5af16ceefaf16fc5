"""Which dtype a dense matrix is held in."""

import pytest
import torch

from m2serve.kernels import dispatch


@pytest.mark.parametrize(
    ("has_library", "device", "stored", "computed", "held"),
    [
        (True, "cpu", torch.bfloat16, torch.float32, torch.bfloat16),
        (True, "cpu", torch.float32, torch.float32, torch.float32),
        (True, "cpu", torch.float32, torch.bfloat16, torch.bfloat16),
        (True, "cuda", torch.bfloat16, torch.float32, torch.float32),
        (False, "cpu", torch.bfloat16, torch.float32, torch.float32),
    ],
)
def test_bf16_stays_where_native_kernels_take_it(
    monkeypatch: pytest.MonkeyPatch,
    has_library: bool,
    device: str,
    stored: torch.dtype,
    computed: torch.dtype,
    held: torch.dtype,
) -> None:
    monkeypatch.setattr(dispatch, "load_cpu_library", lambda: object() if has_library else None)
    assert dispatch.linear_dtype(torch.device(device), stored, computed) == held
