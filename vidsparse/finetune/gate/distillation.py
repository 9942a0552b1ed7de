"""What a gate learns: the attention between tiles, and the divergence of the gate's estimate from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vidsparse.grid import Tile, VideoGrid
from vidsparse.patterns.exact_blocks import TiledKeys
from vidsparse_kernels.layout import tile_tokens


@torch.no_grad()
def tile_attention(
    query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, tile: Tile, rows: Sequence[int]
) -> torch.Tensor:
    """The attention of some query tiles to all key tiles: the softmax over the video's tokens, summed over the keys of
    a tile and averaged over the queries of a tile.

    Holds the logits of one head and one query tile at a time: tokens of a tile x tokens of the video.

    Args:
        query, key: [B, tokens, H, head_dim].
        grid: of the tokens. tile: sides of the tiles.
        rows: indices of the query tiles.

    Returns:
        float32 [B, H, rows, tiles]; each row adds up to 1.
    """
    members = tile_tokens(grid.view, tile, grid.prefix)
    tokens = [members[row].to(query.device) for row in rows]
    heads = []
    for q, k in zip(query.unbind(dim=2), key.unbind(dim=2), strict=True):
        keys = TiledKeys.of(k, grid, tile)
        heads.append(torch.stack([keys.shares(q[:, own]).mean(dim=1) for own in tokens], dim=1))
    return torch.stack(heads, dim=1)


def divergence(attention: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """KL(attention || softmax(scores)) in nats, the mean over all rows.

        KL = sum_j P_j (log P_j - log G_j),    G = softmax(scores)

    Args:
        attention: [..., tiles], rows that add up to 1. Where it is 0, a tile counts nothing.
        scores: [..., tiles]. Gradients flow to them.
    """
    return torch.nn.functional.kl_div(scores.log_softmax(dim=-1), attention, reduction="none").sum(dim=-1).mean()


def kept_attention(attention: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The fraction of the attention that falls on kept tiles, the mean over all rows. `kept`: bool like `attention`."""
    return (attention * kept).sum(dim=-1).mean()
