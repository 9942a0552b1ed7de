"""A window of the frame as large as in training around each query, moved inward at the border."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch

from vidsparse.block_map import BlockMap
from vidsparse.grid import Tile, VideoGrid
from vidsparse.patterns.axes import Rule, pairs, widened_map
from vidsparse.patterns.base import Context, Pattern
from vidsparse.patterns.fields import check_number, check_sides, check_wholes
from vidsparse.patterns.gridded import cheapest_tile


@dataclass(frozen=True)
class InwardWindow(Pattern):
    """Each query sees, in every frame, a window as large as the frames that the model was trained on.

    Along an axis of the frame with n tokens in training, the query at q sees the 2 * (n // 2) + 1 positions around it.
    Near the border the window moves inward instead of being cut, so that all queries see equally much. Time is not cut.

    Paper: Wu et al., FreeSwim, arXiv 2511.14712. Code: WillWu111/FreeSwim at 9f35a72. `FreeSwim` adds the second
    branch. Differences: a tile is kept if any token of the query tile sees any of its tokens, so that every query sees
    its whole window, and up to a tile more at each end; `SlidingTile` rounds the window to whole tiles instead. Tiles
    of (1, 1, 1) give the rule token for token. The published code multiplies all logits by 1.046, the root of
    log 3120 / log 1560, whatever the size; here they stay as they are. The published size is that of Wan at 480p,
    `native=(30, 52)`; here any.

    Attributes:
        native: (height, width) in tokens of a frame in training. Or instead:
        scale: how many times as high and as wide as in training the video is, at least 1. It suits models whose experts
            have tokens of different sizes.
        tile: sides of the tiles; by default those of 128 tokens, 64 for frames under 1024, that compute least.
    """

    native: tuple[int, int] | None = None
    scale: float | None = None
    tile: Tile | None = None

    named_defaults: ClassVar[dict[str, Any]] = {"scale": 2.0}
    named_alternatives = ("native",)

    def __post_init__(self) -> None:
        if (self.native is None) == (self.scale is None):
            raise ValueError(
                f"give one of native={self.native} and scale={self.scale}, such as InwardWindow(scale=2.0)"
            )
        check_wholes(self, "native", "two sides (height, width)", length=2, least=1, optional=True)
        check_number(self, "scale", least=1.0, optional=True)
        check_sides(self, "tile", optional=True)

    def check_grid(self, grid: VideoGrid) -> None:
        if self.native is not None and any(n > m for n, m in zip(self.native, grid.view[1:], strict=True)):
            raise ValueError(
                f"native={self.native} is larger than the video's frame of {grid.height} x {grid.width} tokens (height "
                "x width): the windows are for videos above the size of training; generate a larger one, or take "
                "another pattern"
            )

    def plan(self, grid: VideoGrid, context: Context | None = None) -> BlockMap:
        self.check_grid(grid)
        return _plan(self, grid)

    def window_for(self, grid: VideoGrid) -> Tile:
        """The sides of a window on a grid, in tokens."""
        frame = grid.height, grid.width
        scale = self.scale or 1.0
        native = self.native or tuple(round(axis / scale) for axis in frame)
        height, width = (min(2 * (side // 2) + 1, axis) for side, axis in zip(native, frame, strict=True))
        return grid.frames, height, width

    def tile_for(self, grid: VideoGrid) -> Tile:
        """The tile sides used for a grid."""
        return self.tile or _tile(self, grid.view)


@lru_cache(maxsize=128)
def _tile(pattern: InwardWindow, view: Tile) -> Tile:
    grid = VideoGrid(*view)
    rule = _rule(pattern, grid)
    return cheapest_tile(grid, lambda tile: pairs(rule, tile), grid.default_volume)


@lru_cache(maxsize=32)
def _plan(pattern: InwardWindow, grid: VideoGrid) -> BlockMap:
    return widened_map(_rule(pattern, grid), grid, pattern.tile_for(grid))


def _rule(pattern: InwardWindow, grid: VideoGrid) -> Rule:
    """For each axis, which positions each position sees: bool [size, size]."""
    t, h, w = (_seen(*axis) for axis in zip(grid.view, pattern.window_for(grid), strict=True))
    return t, h, w


def _seen(size: int, side: int) -> torch.Tensor:
    position = torch.arange(size)
    start = (position - side // 2).clamp(min=0, max=size - side)[:, None]
    return (position >= start) & (position < start + side)
