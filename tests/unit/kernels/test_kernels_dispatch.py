"""The table of implementations is complete, fixed, and says what it holds."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from m2serve.kernels.cpu_library import load_cpu_library
from m2serve.kernels.dispatch import Kernels, select_kernels

CPU = torch.device("cpu")


def test_every_operation_is_the_reference_until_it_has_a_kernel() -> None:
    described = select_kernels(torch.device("cuda")).describe()
    operations = [field.name for field in dataclasses.fields(Kernels)]
    assert described == dict.fromkeys(operations, "m2serve.kernels.reference")


def test_the_cpu_has_products_of_its_own_where_the_library_is() -> None:
    described = select_kernels(CPU).describe()
    native = load_cpu_library() is not None
    expected = "m2serve.kernels.cpu_linear" if native else "m2serve.kernels.reference"
    assert described["linear"] == described["experts"] == expected
    assert described["route"] == "m2serve.kernels.reference"


def test_one_entry_is_replaced_and_the_table_says_so() -> None:
    def mine(*args: object) -> torch.Tensor:
        raise NotImplementedError

    kernels = select_kernels(CPU)
    with pytest.raises(dataclasses.FrozenInstanceError):
        kernels.linear = mine  # type: ignore[misc]
    changed = dataclasses.replace(kernels, linear=mine).describe()
    assert changed["linear"] == __name__
    assert changed["experts"] == kernels.experts.__module__
