"""A window of tiles around each query tile: NATTEN's generalised neighbourhood, aligned to tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch

from vidsparse.block_map import BlockMap
from vidsparse.grid import Tile, VideoGrid
from vidsparse.patterns.base import Context, Pattern
from vidsparse.patterns.fields import check_sides


@dataclass(frozen=True)
class SlidingTile(Pattern):
    """Local attention in frames, height and width that never shrinks at the border.

    Along each axis of X tiles, with a window of w and a stride of s tiles, the queries of a group of s share the window
    around the group's leader min((q // s) * s + s // 2, X - 1), moved inward where it would leave the grid. A window as
    wide as the grid is full attention; s = 1 is neighbourhood (sliding tile) attention, s = w is blocked attention.

    Papers: Hassani et al., Generalized Neighborhood Attention, arXiv 2504.16922; Zhang et al., Sliding Tile Attention,
    arXiv 2502.04507. Code: SHI-Labs/NATTEN at 8c8729f. Differences: the rule is applied to tiles, not tokens, so each
    pair of tiles is in or out as a whole on any grid; the window is rounded up to whole tiles.

    Attributes:
        window: (frames, height, width) in tokens; a side larger than the grid means all of it.
        stride: (frames, height, width) in tokens, by default one tile; rounded to whole tiles, at most the window.
        tile: sides of the tiles; by default the grid's best of 128 tokens.
    """

    window: tuple[int, int, int] = (9, 24, 24)
    stride: tuple[int, int, int] | None = None
    tile: Tile | None = None

    scaled_fields: ClassVar[tuple[str, ...]] = ("window", "stride")

    def __post_init__(self) -> None:
        check_sides(self, "window")
        check_sides(self, "stride", "tile", optional=True)

    def plan(self, grid: VideoGrid, context: Context | None = None) -> BlockMap:
        return _plan(self, grid)


@lru_cache(maxsize=32)
def _plan(pattern: SlidingTile, grid: VideoGrid) -> BlockMap:
    tile = pattern.tile or grid.best_tile()
    stride = pattern.stride or tile
    tiles = grid.tiles(tile)
    t, h, w = (_window(*axis) for axis in zip(tiles, pattern.window, stride, tile, strict=True))
    number = math.prod(tiles)
    kept = torch.einsum("ad,be,cf->abcdef", t, h, w).reshape(number, number)
    return BlockMap.from_dense(kept.bool(), grid, tile)


def _window(tiles: int, window: int, stride: int, side: int) -> torch.Tensor:
    """Which tiles of one axis each tile sees: uint8 [tiles, tiles]."""
    size = min(tiles, math.ceil(window / side))
    step = min(size, max(1, round(stride / side)))
    position = torch.arange(tiles)
    leader = (position // step * step + step // 2).clamp(max=tiles - 1)
    start = (leader - size // 2).clamp(min=0, max=tiles - size)
    return ((position >= start[:, None]) & (position < start[:, None] + size)).to(torch.uint8)
