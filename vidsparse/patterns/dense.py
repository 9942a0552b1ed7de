"""Every query tile sees every key tile."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vidsparse.block_map import BlockMap
from vidsparse.grid import Tile, VideoGrid
from vidsparse.patterns.base import Context, Pattern


@dataclass(frozen=True)
class Dense(Pattern):
    """Full attention: the baseline. In a model it runs the model's own attention, untouched."""

    tile: Tile | None = None

    def plan(self, grid: VideoGrid, context: Context | None = None) -> BlockMap:
        tile = self.tile or grid.best_tile()
        tiles = torch.Size(grid.tiles(tile)).numel()
        return BlockMap.from_dense(torch.ones(tiles, tiles, dtype=torch.bool), grid, tile)

    def is_dense(self, context: Context) -> bool:
        return True
