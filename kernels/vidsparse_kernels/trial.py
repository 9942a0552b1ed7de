"""Before "auto" trusts the kernels on a chip it tries them: once, on a small video, against the specification.

Compilers have made wrong code of kernels like these (Triton before 3.7.1 on Hopper); a user would see a worse video and
no error. The small video has the tiles, dtype and head_dim of the call: the code that is tried is the code that runs.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from vidsparse_kernels import block_sparse, reference
from vidsparse_kernels.tiles import TileLayout, tile_counts


def found_wrong(query: torch.Tensor, layout: TileLayout) -> str | None:
    """What the kernels get wrong for calls like this one, in words that complete "impl='triton' ..."; None if nothing.

    The first call of a kind waits for the device. While a graph is recorded or compiled nothing can be tried, and the
    answer is None.
    """
    if torch.compiler.is_compiling() or (query.is_cuda and torch.cuda.is_current_stream_capturing()):
        return None
    ragged = any(size % side for size, side in zip(layout.view, layout.key_tile, strict=True))
    small = TileLayout(
        _small_view(layout, ragged),
        layout.query_tile,
        layout.key_tile,
        prefix=3 if layout.prefix else 0,
        suffix=70 if layout.suffix else 0,
    )
    gradients = torch.is_grad_enabled() and query.requires_grad
    return _try(query.device, query.dtype, query.shape[-1], small, gradients)


def _small_view(layout: TileLayout, ragged: bool) -> tuple[int, int, int]:
    """Two tiles along each axis; the second is cut where the call has cut tiles."""
    longest = [max(sides) for sides in zip(layout.query_tile, layout.key_tile, strict=True)]
    f, h, w = (side + math.ceil(side / 2) if ragged else 2 * side for side in longest)
    return f, h, w


@lru_cache(maxsize=256)
def _try(device: torch.device, dtype: torch.dtype, head_dim: int, layout: TileLayout, gradients: bool) -> str | None:
    generator = torch.Generator().manual_seed(0)
    shape = (4, 1, layout.tokens, 2, head_dim)
    *operands, grad_out = torch.randn(shape, generator=generator).to(device, dtype).unbind()
    rows, columns = (math.prod(tile_counts(layout.view, tile)) for tile in (layout.query_tile, layout.key_tile))
    kept = torch.rand(1, 1, rows, columns, generator=generator) < 0.6
    indices = (~kept).to(torch.uint8).argsort(dim=-1, stable=True).to(device, torch.int32)
    counts, scale = kept.sum(dim=-1).to(device, torch.int32), head_dim**-0.5
    mask = reference.token_mask(kept.to(device), layout)
    results = []
    with torch.enable_grad():
        for wide in (False, True):
            leaves = [(x.double() if wide else x).detach().requires_grad_(gradients) for x in operands]
            q, k, v = leaves
            if wide:
                out, lse = reference.attention(q, k, v, mask, scale)
            else:
                out, lse = block_sparse.attention(q, k, v, counts, indices, layout, None, scale)
            found = {"out": out, "lse": lse}
            if gradients:
                found |= zip(("dq", "dk", "dv"), torch.autograd.grad(out, leaves, grad_out.to(out.dtype)), strict=True)
            results.append({name: x.detach().double().nan_to_num(neginf=0.0) for name, x in found.items()})
    allowed = max(8 * torch.finfo(dtype).eps, 1e-4)
    for name, wanted in results[1].items():
        error = ((results[0][name] - wanted).norm() / wanted.norm()).item()
        if not error <= allowed:
            return (
                f"computes {name} with a relative error of {error:.2g} on this device, where {allowed:.2g} is allowed"
            )
    return None
