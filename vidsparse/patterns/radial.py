"""Radial attention on three-dimensional tiles: windows of the frame that shrink with the distance in time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch

from vidsparse.block_map import BlockMap
from vidsparse.grid import Tile, VideoGrid, tiles_of_volume
from vidsparse.patterns.base import Context, Pattern
from vidsparse.patterns.fields import check_flag, check_number, check_share, check_sides


@dataclass(frozen=True)
class Radial(Pattern):
    """Each query tile sees, at a distance of d latent frames, a window of the frame whose area falls as 1 / (1 + d).

    The window covers the fraction min(1, decay / (1 + d)) of the frame. Near the frame's border it moves inward instead
    of being cut, so that tokens at the top and the bottom see as much as those in the middle. Far frames are thinned
    out: of the tiles at temporal distances 2^k to 2^(k+1), from 4 on, two represent the others, with windows 2^(k-1)
    times as large; the windows of the others are halved. The tiles of the first frames are a sink: in both directions
    they count as near to all tiles as neighbouring tiles in time.

    The idea is Radial Attention's (Li et al., arXiv 2506.19852): attention decays with distance in space and time, so
    the budget for a pair of frames should too. Differences: windows are two-dimensional and made of tiles, while the
    published code has bands along the raster order (`RadialRaster`); the nearest frames have windows as well, so any
    density can be reached; frames that the published code drops for their distance return as the density grows; any
    grid works.

    Attributes:
        density: the fraction of tile pairs to keep; the closest decay is found once for each grid.
        decay: the window's fraction of the frame at d = 0, instead of a density.
        sink: whether the first frames count as near to all others, in both directions.
        tile: sides of the tiles; by default 128 tokens chosen for the grid, 64 for frames under 1024 tokens.
    """

    density: float | None = None
    decay: float | None = None
    sink: bool = True
    tile: Tile | None = None

    named_defaults: ClassVar[dict[str, Any]] = {"density": 0.3}
    named_alternatives = ("decay",)

    def __post_init__(self) -> None:
        if (self.density is None) == (self.decay is None):
            raise ValueError(f"give one of density={self.density} and decay={self.decay}, such as Radial(density=0.2)")
        check_share(self, "density", optional=True)
        check_number(self, "decay", above=True, optional=True)
        check_flag(self, "sink")
        check_sides(self, "tile", optional=True)

    def plan(self, grid: VideoGrid, context: Context | None = None) -> BlockMap:
        return _plan(self, grid)

    def tile_for(self, grid: VideoGrid) -> Tile:
        """The tile sides used for a grid."""
        return self.tile or _tile(grid.view)


@lru_cache(maxsize=128)
def _tile(view: tuple[int, int, int]) -> Tile:
    grid = VideoGrid(*view)
    volume = grid.default_volume
    if volume == 128:
        return grid.best_tile(volume, compactness=0.05)
    # Small frames: tiles of one frame, so that thinning out has frames to choose from (benchmarks/NOTES.md, 9).
    flat = [tile for tile in tiles_of_volume(volume) if tile[0] == 1]
    return min(flat, key=lambda tile: grid.padding(tile) + 0.15 * abs(math.log2(tile[1] / tile[2])))


@lru_cache(maxsize=32)
def _plan(pattern: Radial, grid: VideoGrid) -> BlockMap:
    tile = pattern.tile_for(grid)
    cost = _decay_needed(grid.tiles(tile), tile[0], pattern.sink)
    limit = torch.tensor(pattern.decay) if pattern.density is None else _closest_limit(cost, pattern.density)
    # The query's own tile stays, however small the decay.
    kept = (cost <= limit) | torch.eye(len(cost), dtype=torch.bool)
    return BlockMap.from_dense(kept, grid, tile)


def _decay_needed(tiles: tuple[int, int, int], frames_per_tile: int, sink: bool) -> torch.Tensor:
    """The smallest decay at which each query tile sees each key tile: float64 [tiles, tiles]."""
    time, rows, columns = (_window_needed(n) for n in tiles)
    apart = torch.arange(tiles[0]).sub(torch.arange(tiles[0])[:, None]).abs()
    distance = apart * float(frames_per_tile)
    thinning = _thinning(apart)
    if sink:
        # Slightly less for far frames, so that the density grows in small steps.
        near = distance[0].clamp(max=frames_per_tile) - 1e-3 * apart[0]
        distance[0], distance[:, 0] = near, near
        thinning[0], thinning[:, 0] = 1.0, 1.0
    height, width = (needed / len(needed) for needed in (rows, columns))
    height, width = height[:, None, :, None], width[None, :, None, :]
    # Mostly the square window that holds the tile, and a little of its rectangle, so that windows grow tile by tile.
    area = 0.9 * torch.maximum(height, width) ** 2 + 0.1 * height * width
    cost = area[None, :, :, None] * ((1 + distance) * thinning)[:, None, None, :, None, None]
    # Ties between past and future, and between rows and columns, go to the former, so that the density grows in small
    # steps. Breaking them only lowers costs: at decay 1 a frame still sees all of itself.
    early = 1e-4 * (len(time) - time)[:, None, None, :, None, None]
    cost = cost - early - 1e-5 * (1 - width[None, :, :, None])
    # Within a frame there is no past or future: late frames go first.
    cost = cost.double() - 1e-6 * torch.arange(tiles[0])[:, None, None, None, None, None]
    number = math.prod(tiles)
    return cost.reshape(number, number)


def _thinning(apart: torch.Tensor) -> torch.Tensor:
    """The factor on the cost of tiles by their distance in time, in tiles: 1 up to 3, then 1 / stride or 2."""
    stride = 2.0 ** (apart.clamp(min=2).log2().floor() - 1)
    return torch.where(apart % stride == 0, 1 / stride, 2.0)


def _window_needed(tiles: int) -> torch.Tensor:
    """The tiles that a window along one axis must span to hold each key: float32 [query, key].

    The window of n tiles around p starts at p - n // 2, moved inward where it would leave the axis.
    """
    position = torch.arange(tiles)
    needed = torch.full((tiles, tiles), float(tiles))
    for n in range(tiles - 1, 0, -1):
        start = (position - n // 2).clamp(min=0, max=tiles - n)[:, None]
        needed[(position >= start) & (position < start + n)] = n
    return needed


def _closest_limit(cost: torch.Tensor, density: float) -> torch.Tensor:
    """The decay whose share of kept pairs is closest to the density."""
    values, groups = cost.flatten().unique(return_counts=True)
    share = groups.cumsum(0) / cost.numel()
    closest: torch.Tensor = values[(share - density).abs().argmin()]
    return closest
