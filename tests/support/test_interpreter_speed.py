"""The interpreter looks through the language once for each launch, computes the same and leaves nothing behind."""

from __future__ import annotations

import os
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl
from triton.runtime import interpreter

pytestmark = pytest.mark.skipif(not os.environ.get("TRITON_INTERPRET"), reason="kernels are compiled here")


@triton.jit
def doubled(x):
    return x + x


@triton.jit
def sums_kernel(x, to, N: tl.constexpr, TIMES: tl.constexpr):
    i = tl.arange(0, N)
    values = tl.load(x + i).to(tl.float32)
    for _ in range(TIMES):
        values = doubled(values)
    tl.store(to + i, tl.cumsum(values, 0) + tl.max(values, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int16])
def test_functions_of_a_kernel_compute_what_they_say(dtype: torch.dtype) -> None:
    x, found = torch.arange(-7, 9).to(dtype), torch.empty(16)
    sums_kernel[(1,)](x, found, N=16, TIMES=3)
    assert torch.equal(found, (8 * x.float()).cumsum(0) + 64)


def test_calls_of_functions_add_nothing_to_a_launch() -> None:
    looked, right = [], interpreter._patch_builtin
    with mock.patch.object(interpreter, "_patch_builtin", lambda package, *rest: looked.append(right(package, *rest))):
        for times in (1, 5):
            sums_kernel[(1,)](torch.zeros(16), torch.empty(16), N=16, TIMES=times)
            looked.append("end")
    assert looked.index("end") * 2 + 2 == len(looked) > 2


def test_the_language_is_as_before_after_a_launch() -> None:
    names = [(owner, name) for owner in (tl, tl.core, tl.math, tl.tensor, tl.dtype) for name in dir(owner)]
    before = [getattr(owner, name) for owner, name in names]
    sums_kernel[(1,)](torch.zeros(16), torch.empty(16), N=16, TIMES=1)
    changed = [name for (owner, name), was in zip(names, before, strict=True) if getattr(owner, name) != was]
    assert changed == []
