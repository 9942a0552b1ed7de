"""Rules for tokens, one for each axis of the video, widened to tiles."""

from __future__ import annotations

import math

import torch

from vidsparse.block_map import BlockMap
from vidsparse.grid import Tile, VideoGrid

Rule = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def widened(rule: Rule, tile: Tile) -> list[torch.Tensor]:
    """For each axis, which tiles hold a token that a token of each tile sees: bool [tiles, tiles].

    Args:
        rule: for frames, rows and columns, which positions each position sees: bool [size, size].
        tile: sides of the tiles.
    """
    axes = []
    for seen, side in zip(rule, tile, strict=True):
        position = torch.arange(len(seen))
        held = torch.zeros(math.ceil(len(seen) / side), len(seen))
        held[position // side, position] = 1.0
        axes.append((held @ seen.float() @ held.T) > 0)
    return axes


def pairs(rule: Rule, tile: Tile) -> int:
    """The pairs of tiles that `widened_map` keeps, without making it."""
    return math.prod(int(axis.sum()) for axis in widened(rule, tile))


def widened_map(rule: Rule, grid: VideoGrid, tile: Tile) -> BlockMap:
    """The map that keeps a pair of tiles as a whole if a token of the one sees a token of the other on every axis."""
    time, rows, columns = (axis.byte() for axis in widened(rule, tile))
    kept = torch.einsum("ad,be,cf->abcdef", time, rows, columns)
    return BlockMap.from_dense(kept.reshape(math.prod(kept.shape[:3]), -1).bool(), grid, tile)
