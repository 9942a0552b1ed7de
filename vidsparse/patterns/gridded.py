"""Grid heads: attention along lines that cross the video at a stride, such as one place in all frames."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from vidsparse.block_map import BlockMap, HeadGroup
from vidsparse.grid import Tile, VideoGrid, is_whole, tiles_of_volume
from vidsparse.patterns.base import Context, Pattern
from vidsparse.patterns.fields import check_sides, check_whole

Phase = tuple[int, int, int]


@dataclass(frozen=True)
class Gridded(Pattern):
    """Each query sees its own line of the grid, or chosen lines, and also near frames and the first frames.

    With a stride (s, t, u) the token at (frame, row, column) has the phase (frame mod s, row mod t, column mod u).
    Query i sees key j when at least one of these holds:

        |frame_i - frame_j| < local_frames
        frame_j < sink
        phase_i = phase_j                    without `phases`: all lines, each seen by its own tokens
        phase_i or phase_j in `phases`       with `phases`: tokens of these lines see all and are seen by all

    A pair of tiles is kept as a whole if it holds such a pair of tokens, so tiles should lie along the lines: the
    default is the shape of 128 tokens that computes least. For lines alone, such as
    `Gridded(stride=(1, 8, 8), local_frames=0, sink=0)`, it is long in the strided axis; with a window of frames, which
    a long tile would widen, it is short in time. Tiles of (1, 1, 1) give the rule token for token, for checks.

    Paper: Li et al., MMInference, arXiv 2504.16083: its grid heads (`phases=((0, 0, 0),)`, the lines that the released
    kernel runs) and the slash lines of its search space (no `phases`). Code: microsoft/MInference at 13638d0,
    `ops/grid_attention.py`, and at f4a21b3, `modules/mminference.py`. Differences: theirs is causal prefill, here both
    directions of time are alike, and no last rows see everything; all of the video is gridded, while they leave dense
    what does not fill 64 strides at the end; window and sink are whole frames, not multiples of 64 tokens; phases count
    from a frame's first token, as in their kernel (its reference is off by one). Their boundary between modalities is
    that of prefix and suffix here: text is exact in both directions. The search for stride and phases is not included.

    Attributes:
        stride: (frames, height, width) in tokens; with a side beyond the grid each position has a different phase.
            None: one frame, so that a line is one position in all frames. A row is (1, 1, width).
        phases: the lines that see all tokens and are seen by all; () for none. None: each token sees its own line.
        local_frames: reach of the window in latent frames to both sides, including the query's own; 0 for no window.
        sink: how many first frames all queries see.
        tile: sides of the tiles; by default 128 tokens chosen for the grid and the fields.
    """

    stride: tuple[int, int, int] | None = None
    phases: tuple[Phase, ...] | None = None
    local_frames: int = 1
    sink: int = 1
    tile: Tile | None = None

    def __post_init__(self) -> None:
        check_sides(self, "stride", "tile", optional=True)
        check_whole(self, "local_frames", "sink")
        if self.phases is None:
            return
        if self.local_frames == 0:
            raise ValueError(f"local_frames=0 with phases={self.phases} leaves tokens off these lines nothing; use 1")
        phases = self.phases if isinstance(self.phases, tuple) else (self.phases,)
        for phase in phases:
            limits = self.stride or (1, math.inf, math.inf)
            triple = isinstance(phase, tuple) and len(phase) == 3 and all(map(is_whole, phase))
            if not triple or not all(0 <= p < limit for p, limit in zip(phase, limits, strict=True)):
                raise ValueError(
                    f"phases={self.phases!r} must be whole triples (frame, row, column) from 0 to below the stride "
                    f"{self.stride or '(1, height, width)'}, such as ((0, 0, 0),)"
                )

    def plan(self, grid: VideoGrid, context: Context | None = None) -> BlockMap:
        return _plan(self, grid)

    def tile_for(self, grid: VideoGrid) -> Tile:
        """The tile sides used for a grid."""
        return self.tile or cheapest_tile(grid, lambda tile: _kept_pairs(self, grid, tile))


@dataclass(frozen=True)
class GriddedHeads(Pattern):
    """Different lines for each head. Heads with the same settings share a map; each setting is one launch.

    Attributes:
        heads: one `Gridded` for every head of a layer, in order.
    """

    heads: tuple[Gridded, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.heads, tuple) or not self.heads or not all(isinstance(h, Gridded) for h in self.heads):
            raise ValueError(f"heads={self.heads!r} must be a tuple of one Gridded(...) for each head")

    def check_model(self, layers: int, heads: int | None) -> None:
        if heads not in (None, len(self.heads)):
            raise ValueError(
                f"got settings for {len(self.heads)} heads, but a layer has {heads}; give one Gridded(...) for each"
            )

    def plan(self, grid: VideoGrid, context: Context | None = None) -> tuple[HeadGroup, ...]:
        # The context of an unknown model has one head.
        if context is not None and context.heads > 1:
            self.check_model(context.layers, context.heads)
        groups: dict[Gridded, list[int]] = {}
        for head, setting in enumerate(self.heads):
            groups.setdefault(setting, []).append(head)
        return tuple(HeadGroup(tuple(heads), setting.plan(grid)) for setting, heads in groups.items())


def cheapest_tile(grid: VideoGrid, pairs: Callable[[Tile], int], volume: int = 128) -> Tile:
    """The tile of `volume` tokens, a power of two, with the least `pairs(tile)`; of equal ones the most compact."""
    return min(tiles_of_volume(volume), key=lambda tile: (pairs(tile), max(tile) / min(tile), tile))


def tile_gaps(tiles: int, side: int) -> torch.Tensor:
    """The least distance along an axis between a token of one tile and one of another: int64 [tiles, tiles]."""
    number = torch.arange(tiles)
    return ((number[:, None] - number).abs() * side - side + 1).clamp(min=0)


@lru_cache(maxsize=32)
def _plan(pattern: Gridded, grid: VideoGrid) -> BlockMap:
    tile = pattern.tile_for(grid)
    tiles = grid.tiles(tile)
    lines = _chosen_lines(pattern, grid, tile)
    if lines is None:
        time, rows, columns = _own_lines(pattern, grid, tile)
        kept = torch.einsum("ad,be,cf->abcdef", time.byte(), rows.byte(), columns.byte()).bool()
    else:
        kept = lines[..., None, None, None] | lines
    kept |= _near(pattern, grid, tile)[:, None, None, :, None, None]
    return BlockMap.from_dense(kept.reshape(math.prod(tiles), -1), grid, tile)


def _kept_pairs(pattern: Gridded, grid: VideoGrid, tile: Tile) -> int:
    """The number of pairs of tiles that the map would keep, without making it."""
    tiles, near = grid.tiles(tile), _near(pattern, grid, tile)
    lines = _chosen_lines(pattern, grid, tile)
    if lines is None:
        time, rows, columns = _own_lines(pattern, grid, tile)
        apart = int((time & ~near).sum()) * int(rows.sum()) * int(columns.sum())
        return apart + int(near.sum()) * (tiles[1] * tiles[2]) ** 2
    off = (~lines).sum(dim=(1, 2))
    return math.prod(tiles) ** 2 - int(off @ (~near).long() @ off)


def _near(pattern: Gridded, grid: VideoGrid, tile: Tile) -> torch.Tensor:
    """Which tiles in time see all of each other, because of the window or the sink: bool [query, key]."""
    tiles = grid.tiles(tile)[0]
    return (tile_gaps(tiles, tile[0]) < pattern.local_frames) | (torch.arange(tiles) * tile[0] < pattern.sink)


def _own_lines(pattern: Gridded, grid: VideoGrid, tile: Tile) -> list[torch.Tensor]:
    """For each axis, which tiles hold a phase in common: bool [tiles, tiles]."""
    return [(held.float() @ held.float().T) > 0 for held in _phases_held(pattern, grid, tile)]


def _chosen_lines(pattern: Gridded, grid: VideoGrid, tile: Tile) -> torch.Tensor | None:
    """Which tiles hold a token of one of the chosen lines: bool [frames, height, width]; None for all lines."""
    if pattern.phases is None:
        return None
    held = _phases_held(pattern, grid, tile)
    lines = torch.zeros(grid.tiles(tile), dtype=torch.bool)
    for phase in pattern.phases:
        # A small grid may hold no token of this phase.
        if all(p < axis.shape[1] for p, axis in zip(phase, held, strict=True)):
            time, rows, columns = (axis[:, p] for p, axis in zip(phase, held, strict=True))
            lines |= time[:, None, None] & rows[:, None] & columns
    return lines


def _phases_held(pattern: Gridded, grid: VideoGrid, tile: Tile) -> list[torch.Tensor]:
    """For each axis, the phases of the tokens of each tile: bool [tiles, phases]."""
    axes = []
    for size, side, stride in zip(grid.view, tile, pattern.stride or (1, grid.height, grid.width), strict=True):
        position = torch.arange(size)
        held = torch.zeros(math.ceil(size / side), min(stride, size), dtype=torch.bool)
        held[position // side, position % stride] = True
        axes.append(held)
    return axes
