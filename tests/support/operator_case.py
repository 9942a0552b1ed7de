"""A call of the Triton operator that tests share: ragged tiles with text, on a GPU if there is one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from against_float64 import Case

from vidsparse import BlockMap, VideoGrid, sparse_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASE = Case(VideoGrid(2, 9, 10, suffix=5), (1, 8, 8), heads=2, head_dim=32, extra_valid=(4,))
TWO_GRIDS = replace(CASE, grid=VideoGrid(1, 9, 10), key_grid=VideoGrid(3, 9, 8, suffix=5))


def inputs(case: Case = CASE, **settings: Any) -> list[torch.Tensor]:
    return [x.to(DEVICE).requires_grad_(**settings) for x in case.tensors()]


def results(
    tensors: list[torch.Tensor], block_map: BlockMap, impl: str = "triton", scale: float | None = None
) -> list[torch.Tensor]:
    """out, lse and the gradients of a loss through both."""
    query, key, value = leaves = [x.detach().requires_grad_() for x in tensors]
    options: dict[str, Any] = {"extra_valid": CASE.valid, "impl": impl, "scale": scale}
    out, lse = sparse_attention(query, key, value, block_map, **options, return_lse=True)
    (out.square().sum() + lse.sum()).backward()
    return [out.detach(), lse.detach(), *(x.grad for x in leaves)]
