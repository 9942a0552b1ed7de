"""Tiles at distances that are powers of two: far tiles at logarithmic cost, and all tiles within a few layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from vidsparse.block_map import BlockMap
from vidsparse.grid import Tile, VideoGrid, is_whole
from vidsparse.patterns.base import Context, Pattern
from vidsparse.patterns.fields import check_flag, check_sides


@dataclass(frozen=True)
class PowerOfTwo(Pattern):
    """Each query tile sees the tiles 1, 2, 4, 8, ... tiles away along an axis, its neighbours and the first frames.

    A key tile at (dt, dh, dw) tiles is seen when each component is 0 or +-2^k and at most `axes` of them are not 0. A
    distance of d tiles is then a sum of at most ceil(log2 n) hops along an axis of n tiles. After
    ceil(log2 T) + ceil(log2 H) + ceil(log2 W) layers (the largest of the three for `axes=3`) every token can depend on
    every other; a window would need as many layers as it fits into the video.

    The idea is PowerAttention's (Chen et al., arXiv 2503.03588), made for text: blocks of one causal line. Differences:
    boxes and three axes instead of the line, and both directions, since a video has no causal order. `published()` has
    the paper's line and numbers, also in both directions. We found no official code: the rule is that of the paper.

    Attributes:
        axes: along how many axes at once a tile may be away, from 1 to 3.
        window: (frames, height, width): all tiles fewer tiles away along every axis are seen; with (1, 1, 1) only the
            query's own.
        sink: whether every query sees the tiles of the first frames, or the first block of a line.
        raster: use blocks along the raster order instead of boxes: one line with one axis.
        tile: sides of the tiles in tokens; by default the grid's best of 128 tokens.
    """

    axes: int = 1
    window: tuple[int, int, int] = (2, 2, 2)
    sink: bool = True
    raster: bool = False
    tile: Tile | None = None

    def __post_init__(self) -> None:
        if not is_whole(self.axes, 1) or self.axes > 3:
            raise ValueError(f"axes={self.axes!r} must be 1, 2 or 3: the axes along which a tile may be away")
        check_sides(self, "window")
        check_sides(self, "tile", optional=True)
        check_flag(self, "sink", "raster")
        if self.tile is not None and self.tile[:2] != (1, 1) and self.raster:
            raise ValueError(f"tile={self.tile} must be (1, 1, tokens) with raster=True, such as (1, 1, 128)")

    @classmethod
    def published(cls, block: int = 256) -> PowerOfTwo:
        """The paper's numbers on the raster order: blocks of 256 tokens, the 5 nearest and the first one.

        The Triton kernels take blocks of 64 and 128 tokens; larger ones run on the other implementations.
        """
        return cls(window=(1, 1, 5), raster=True, tile=(1, 1, block))

    def plan(self, grid: VideoGrid, context: Context | None = None) -> BlockMap:
        return _plan(self, grid)


@lru_cache(maxsize=32)
def _plan(pattern: PowerOfTwo, grid: VideoGrid) -> BlockMap:
    grid = grid.raster if pattern.raster else grid
    tile = pattern.tile or grid.best_tile()
    tiles = grid.tiles(tile)
    place = torch.cartesian_prod(*(torch.arange(n, dtype=torch.int32) for n in tiles))
    apart = (place[:, None] - place).abs()  # [query tiles, key tiles, 3]
    power = (apart & (apart - 1)) == 0  # also true of 0
    kept = power.all(dim=-1) & ((apart > 0).sum(dim=-1) <= pattern.axes)
    kept |= (apart < torch.tensor(pattern.window)).all(dim=-1)
    if pattern.sink:
        # A line has no frames: its first block is the sink.
        kept[:, : 1 if pattern.raster else math.prod(tiles[1:])] = True
    return BlockMap.from_dense(kept, grid, tile)
