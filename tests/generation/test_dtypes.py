"""The names of dtypes."""

from __future__ import annotations

import pytest
import torch

from vidsparse.generation.dtypes import DTYPES, dtype_name


def test_every_spelling_names_the_dtype_that_pytorch_names() -> None:
    for name, others in DTYPES.items():
        dtype = getattr(torch, name)
        assert dtype_name(str(dtype)) == name
        for other in (name, *others):
            assert dtype_name(other) == dtype_name(other.upper()) == name
            assert getattr(torch, other, dtype) is dtype, "PyTorch calls another dtype so"


@pytest.mark.parametrize("name", ["int8", "float64", "fp8", "", "torch", "torch."])
def test_others_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"is unknown; choose one of float32 \(fp32, f32, float\), bf"):
        dtype_name(name)
