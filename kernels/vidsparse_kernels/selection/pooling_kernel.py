"""`pooling.tile_means` in one pass over the tensor, read in place. Names are those of `gpu.primitives`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from vidsparse_kernels.gpu.primitives import HEADS, held_tokens, load_rows, strides
from vidsparse_kernels.layout import Triple, tile_count


@triton.jit
def tile_means_kernel(x, means, x_strides, view, prefix, heads, tiles, TILE: tl.constexpr, HEAD: tl.constexpr):
    """Grid (tiles, batch * heads): the mean of one tile's tokens, float32 [head_dim]."""
    LOW: tl.constexpr = HEAD[0]
    HIGH: tl.constexpr = HEAD[1]
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    tokens, inside = held_tokens(tl.program_id(0), 0, view, prefix, 0, TILE)
    # [rows, head_dim]
    rows = load_rows(x + batch * x_strides[0] + head * x_strides[2], tokens, x_strides[1], inside, HEAD)
    number = tl.sum(inside.to(tl.float32))
    means += (tl.program_id(1).to(tl.int64) * tiles + tl.program_id(0)) * (LOW + HIGH)
    tl.store(means + tl.arange(0, LOW), tl.sum(rows[0].to(tl.float32), 0) / number)
    if HIGH > 0:
        tl.store(means + LOW + tl.arange(0, HIGH), tl.sum(rows[1].to(tl.float32), 0) / number)


@torch.library.custom_op("vidsparse::tile_means", mutates_args=())
def _tile_means(x: torch.Tensor, view: Sequence[int], tile: Sequence[int], prefix: int) -> torch.Tensor:
    (a, b, c), (d, e, f) = view, tile
    batch, _, heads, head_dim = x.shape
    tiles = tile_count(view, tile)
    means = x.new_empty((batch, heads, tiles, head_dim), dtype=torch.float32)
    with torch.cuda.device_of(x):
        tile_means_kernel[(tiles, batch * heads)](
            x, means, strides(x), (a, b, c), prefix, heads, tiles, TILE=(d, e, f), HEAD=HEADS[head_dim]
        )
    return means


@_tile_means.register_fake
def _(x, view, tile, prefix):
    return x.new_empty((x.shape[0], x.shape[2], tile_count(view, tile), x.shape[3]), dtype=torch.float32)


def unsupported(head_dim: int, tile: Triple) -> str | None:
    """The requirement of the kernel that a call does not meet, or None."""
    if head_dim not in HEADS:
        return f"head_dim {', '.join(map(str, HEADS))}, not {head_dim}"
    return f"tiles with power-of-two sides, not {tile}" if any(side & (side - 1) for side in tile) else None


def tile_means(x: torch.Tensor, view: Triple, tile: Triple, prefix: int) -> torch.Tensor:
    """See `pooling.tile_means`.

    Raises:
        NotImplementedError: a head_dim without a kernel, or a tile with a side that is not a power of two.
    """
    if (reason := unsupported(x.shape[-1], tile)) is not None:
        raise NotImplementedError(f"tile_means takes {reason}")
    x = x if x.stride(-1) == 1 else x.contiguous()
    means: torch.Tensor = _tile_means(x, list(view), list(tile), prefix)
    return means
