"""The mean, the largest and the least of each tile's tokens, which patterns compare instead of tokens."""

from __future__ import annotations

import torch

from vidsparse_kernels.available import triton_lacks
from vidsparse_kernels.layout import Tiling, Triple, tile_of_token, tile_sizes


def tile_means(x: torch.Tensor, view: Triple, tile: Triple, prefix: int = 0) -> torch.Tensor:
    """The mean of each tile's tokens, summed in float32; a ragged tile's mean is over the tokens that it has.

    Gradients flow to `x` where it requires them; the kernel for GPUs serves the other calls.

    Args:
        x: [B, tokens, H, head_dim], any strides, any floating-point dtype.
        view: (frames, height, width) of the video, which begins after `prefix` tokens.
        tile: sides (frames, height, width); powers of two are fastest on a GPU.
        prefix: tokens before the video.

    Returns:
        float32 [B, H, tiles, head_dim], tiles in raster order.
    """
    differentiable = torch.is_grad_enabled() and x.requires_grad
    if not differentiable and _has_kernel(x.device, x.shape[-1], tile):
        from vidsparse_kernels.selection import pooling_kernel

        return pooling_kernel.tile_means(x.detach(), view, tile, prefix)
    means = _means(x, tile_of_token(view, tile).to(x.device), tile_sizes(view, tile, x.device), prefix)
    return means if differentiable else means.contiguous()  # a copy would cost the backward another one


def means_of_tiles(x: torch.Tensor, side: Tiling) -> torch.Tensor:
    """`tile_means` for any tiling, also one whose tiles hold only some voxels of their box.

    Args:
        x: [B, side.tokens, H, head_dim].

    Returns:
        float32 [B, H, tiles, head_dim].
    """
    if side.boxes:
        return tile_means(x, side.view, side.tile, side.prefix)
    return _means(x, side.tile_of_token.to(x.device), side.tile_sizes(x.device), side.prefix).contiguous()


def _means(x: torch.Tensor, owner: torch.Tensor, sizes: torch.Tensor, prefix: int) -> torch.Tensor:
    video = x[:, prefix : prefix + len(owner)].float()
    batch, _, heads, head_dim = x.shape
    sums = torch.zeros(batch, len(sizes), heads, head_dim, device=x.device).index_add_(1, owner, video)
    return (sums / sizes[:, None, None]).transpose(1, 2)


@torch.no_grad()
def tile_extremes(x: torch.Tensor, view: Triple, tile: Triple, prefix: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest and the least value of each tile's tokens, in each channel. No gradient flows.

    Args: see `tile_means`.

    Returns:
        Two of float32 [B, H, tiles, head_dim], tiles in raster order.
    """
    owner, count = tile_of_token(view, tile).to(x.device), len(tile_sizes(view, tile))
    video = x[:, prefix : prefix + len(owner)]
    place = owner[:, None, None].expand(video.shape)
    empty = video.new_empty(len(x), count, *x.shape[2:])
    largest, least = (
        empty.scatter_reduce(1, place, video, reduce, include_self=False).transpose(1, 2).float()
        for reduce in ("amax", "amin")
    )
    return largest.contiguous(), least.contiguous()


@torch.no_grad()
def pooled_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    view: Triple,
    query_tile: Triple,
    key_tile: Triple,
    prefix: int = 0,
    scale: float | None = None,
) -> torch.Tensor:
    """Products of the mean query and the mean key of every pair of tiles: float32 [B, H, query tiles, key tiles].

    Arguments are those of `tile_means`; `scale` is 1/sqrt(head_dim) by default. No gradient flows.
    """
    rows, columns = tile_means(query, view, query_tile, prefix), tile_means(key, view, key_tile, prefix)
    return rows @ columns.mT * (query.shape[-1] ** -0.5 if scale is None else scale)


def _has_kernel(device: torch.device, head_dim: int, tile: Triple) -> bool:
    if device.type != "cuda" or triton_lacks(device) is not None:
        return False
    from vidsparse_kernels.selection import pooling_kernel

    return pooling_kernel.unsupported(head_dim, tile) is None
