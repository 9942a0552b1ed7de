"""The mended interpreter rounds to bfloat16 and multiplies it as chips do."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl

pytestmark = pytest.mark.skipif(not os.environ.get("TRITON_INTERPRET"), reason="kernels are compiled here")


@triton.jit
def round_kernel(x, to, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(to + i, tl.load(x + i).to(tl.bfloat16))


@triton.jit
def product_kernel(a, b, to, N: tl.constexpr):
    i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(to + i, tl.dot(tl.load(a + i), tl.load(b + i)))


def test_float32_is_rounded_to_nearest_even() -> None:
    ties = (torch.arange(64, dtype=torch.int32) << 15 | 0x3F800000).view(torch.float32)  # halfway, and on it
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3.4e38, -3.4e38, 1e-40])
    x = torch.cat([ties, special, torch.randn(184) * 10 ** torch.linspace(-38, 38, 184)])
    found = torch.empty(256, dtype=torch.bfloat16)
    round_kernel[(1,)](x, found, N=256)
    torch.testing.assert_close(found, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_products_are_those_of_the_numbers() -> None:
    a, b = torch.randn(2, 32, 32).bfloat16().unbind()
    found = torch.empty(32, 32)
    product_kernel[(1,)](a, b, found, N=32)
    torch.testing.assert_close(found.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)
