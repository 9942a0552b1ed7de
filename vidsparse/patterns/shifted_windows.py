"""Windows that cut the video like a grid, and whose borders move from layer to layer and from step to step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, ClassVar, Literal, get_args

import torch

from vidsparse.block_map import BlockMap
from vidsparse.grid import Tile, VideoGrid, is_whole
from vidsparse.patterns.axes import Rule, pairs, widened_map
from vidsparse.patterns.base import Context, Pattern
from vidsparse.patterns.fields import check_choice, check_flag, check_sides, check_whole
from vidsparse.patterns.gridded import cheapest_tile

Order = Literal["random", "layers"]
Window = tuple[int | None, int | None, int | None]


@dataclass(frozen=True)
class ShiftedWindows(Pattern):
    """Each query sees the window that holds it: attention within windows, whose borders differ from call to call.

    A call has one of `shifts` offsets: number n moves the windows of each axis by n * (side // shifts) tokens, side
    being the window's. An axis that one window spans is not cut. `order` says which call has which offset:

    * "random": drawn anew for each layer and step, the same for the branches of a step.
    * "layers": layer l has offset l mod `shifts`, in every step.

    `wrap` says what becomes of the windows that a shift pushes over the border: they go on at the opposite border, or
    they are cut there into two smaller ones.

    Papers: Zhang et al., HiDiffusion, arXiv 2311.17528, whose modified shifted window attention is the default: windows
    of half the height and half the width, four offsets, drawn at random; code: megvii-research/HiDiffusion at 1050418.
    Xie et al., SimpleGVR, arXiv 2506.19838, whose interleaving temporal unit is `simplegvr()`: units of five latent
    frames that move by half a unit in every second layer; no code is published. Differences: a tile is kept if any of
    its tokens shares a window with the query tile, so that a query sees its whole window, and more where the windows'
    borders lie inside tiles; with the default tile, and sides that tiles divide, the rule is exact. Any grid works: the
    last window is smaller where sides do not divide. Offsets are drawn from `seed` and not from the global generator.
    HiDiffusion has windows in the blocks of highest resolution alone, and windows of one size in tokens suit blocks
    that see one number of tokens; `PerLayer` and `PerPhase` give layers and levels of noise windows of their own.
    SimpleGVR's sparse local attention, which chooses further windows by content, is not included.

    Attributes:
        window: (frames, height, width) in tokens; None for a side spans the axis. By default all frames by half the
            height and half the width, rounded up. A side that is larger than the video is refused.
        shifts: the number of offsets; 1 never moves the windows.
        order: "random" or "layers".
        wrap: whether windows go on at the opposite border.
        seed: of the offsets that are drawn.
        tile: sides of the tiles; by default 128 tokens, 64 for frames under 1024, such that all offsets together
            compute least.
    """

    window: Window | None = None
    shifts: int = 4
    order: Order = "random"
    wrap: bool = True
    seed: int = 0
    tile: Tile | None = None

    scaled_fields: ClassVar[tuple[str, ...]] = ("window",)

    def __post_init__(self) -> None:
        sides = self.window
        if sides is not None and not (
            isinstance(sides, tuple) and len(sides) == 3 and all(side is None or is_whole(side, 1) for side in sides)
        ):
            raise ValueError(
                f"window={sides!r} must be a tuple (frames, height, width) of whole numbers of at least 1, or None for "
                "a side that spans the axis, or None"
            )
        check_whole(self, "shifts", least=1)
        check_choice(self, "order", get_args(Order))
        check_flag(self, "wrap")
        check_whole(self, "seed")
        check_sides(self, "tile", optional=True)

    @classmethod
    def simplegvr(cls, frames: int = 5, **fields: Any) -> ShiftedWindows:
        """Units of whole latent frames that move by half a unit in every second layer."""
        return cls(**{"window": (frames, None, None), "shifts": 2, "order": "layers", "wrap": False, **fields})

    def check_grid(self, grid: VideoGrid) -> None:
        if self.window is None:
            return
        if any(side is not None and side > most for side, most in zip(self.window, grid.view, strict=True)):
            raise ValueError(
                f"window={self.window} is larger than the video of {grid.frames} x {grid.height} x {grid.width} tokens "
                f"(frames x height x width): use at most window={grid.view}, or None for a side that spans the axis"
            )

    def plan(self, grid: VideoGrid, context: Context | None = None) -> BlockMap:
        self.check_grid(grid)
        return _plan(self, grid, self.offset(Context() if context is None else context))

    def offset(self, context: Context) -> int:
        """The number of the offset of a call, from 0 to below `shifts`."""
        if self.order == "layers":
            return context.layer % self.shifts
        return Random(f"{self.seed} {context.layer} {context.step}").randrange(self.shifts)

    def window_for(self, grid: VideoGrid) -> Tile:
        """The sides of a window on a grid, in tokens."""
        given = self.window or (None, math.ceil(grid.height / 2), math.ceil(grid.width / 2))
        t, h, w = (axis if side is None else side for side, axis in zip(given, grid.view, strict=True))
        return t, h, w

    def tile_for(self, grid: VideoGrid) -> Tile:
        """The tile sides used for a grid, in all calls."""
        return self.tile or _tile(self, grid.view)


@lru_cache(maxsize=128)
def _tile(pattern: ShiftedWindows, view: Tile) -> Tile:
    grid = VideoGrid(*view)
    rules = [_rule(pattern, grid, offset) for offset in range(pattern.shifts)]
    return cheapest_tile(grid, lambda tile: sum(pairs(rule, tile) for rule in rules), grid.default_volume)


@lru_cache(maxsize=32)
def _plan(pattern: ShiftedWindows, grid: VideoGrid, offset: int) -> BlockMap:
    return widened_map(_rule(pattern, grid, offset), grid, pattern.tile_for(grid))


def _rule(pattern: ShiftedWindows, grid: VideoGrid, offset: int) -> Rule:
    """For each axis, which positions share a window: bool [size, size]."""
    sides = zip(grid.view, pattern.window_for(grid), strict=True)
    t, h, w = (_windows(size, side, offset * (side // pattern.shifts), pattern.wrap) for size, side in sides)
    return t[:, None] == t, h[:, None] == h, w[:, None] == w


def _windows(size: int, side: int, shift: int, wrap: bool) -> torch.Tensor:
    """The window of each position of an axis: int64 [size]."""
    if side >= size:
        return torch.zeros(size, dtype=torch.int64)
    position = torch.arange(size) - shift
    return (position % size if wrap else position) // side
