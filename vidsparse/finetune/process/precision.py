"""The precision of float32 products on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def products_in_bf16(on: bool) -> Iterator[None]:
    """Within the context, where `on`, a CPU computes float32 products with its bfloat16 units, with that precision.

    Under autocast these are the scores of sparse attention: keys and values come from bfloat16 and lose nothing; the
    scaled queries are rounded once more.
    """
    before = torch.get_float32_matmul_precision()
    if on:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
