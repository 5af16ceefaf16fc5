"""The table of implementations is complete, fixed, and says what it holds."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from m2serve.kernels import reference
from m2serve.kernels.dispatch import Kernels, select_kernels

CPU = torch.device("cpu")


def test_every_operation_is_the_reference_until_it_has_a_kernel() -> None:
    described = select_kernels(CPU).describe()
    operations = [field.name for field in dataclasses.fields(Kernels)]
    assert described == dict.fromkeys(operations, "m2serve.kernels.reference")


def test_one_entry_is_replaced_and_the_table_says_so() -> None:
    def mine(*args: object) -> torch.Tensor:
        raise NotImplementedError

    kernels = select_kernels(CPU)
    with pytest.raises(dataclasses.FrozenInstanceError):
        kernels.linear = mine  # type: ignore[misc]
    changed = dataclasses.replace(kernels, linear=mine).describe()
    assert changed["linear"] == __name__
    assert changed["experts"] == reference.experts.__module__
