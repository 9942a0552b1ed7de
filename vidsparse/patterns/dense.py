"""Every query tile sees every key tile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from vidsparse.block_map import BlockMap
from vidsparse.grid import Tile, VideoGrid
from vidsparse.patterns.base import Context, Pattern
from vidsparse.patterns.fields import check_sides


@dataclass(frozen=True)
class Dense(Pattern):
    """Full attention, the baseline. In a model it runs the model's own attention, unchanged.

    Attributes:
        tile: sides of the tiles of its map; by default the grid's best of 128 tokens.
    """

    tile: Tile | None = None

    def __post_init__(self) -> None:
        check_sides(self, "tile", optional=True)

    def plan(self, grid: VideoGrid, context: Context | None = None) -> BlockMap:
        return _plan(self, grid)

    def is_dense(self, context: Context) -> bool:
        return True


@lru_cache(maxsize=32)
def _plan(pattern: Dense, grid: VideoGrid) -> BlockMap:
    tile = pattern.tile or grid.best_tile()
    tiles = math.prod(grid.tiles(tile))
    return BlockMap.from_dense(torch.ones(tiles, tiles, dtype=torch.bool), grid, tile)
