"""Patterns that need no training, and corrections, that are measured against each other at about one density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import vidsparse
from vidsparse import Correction, Pattern, VideoGrid

LAYERS, HEADS = 6, 3


class Contender(NamedTuple):
    """A way of attention: a pattern, and what is added back for the tiles that it drops."""

    pattern: Pattern
    correction: Correction | None = None


def patterns(grid: VideoGrid, density: float) -> dict[str, Pattern]:
    """The patterns; where one has no density, its nearest setting."""
    windows = [
        vidsparse.SlidingTile((f, h, h))
        for f in range(1, grid.frames + 1, max(1, grid.frames // 16))
        for h in range(4, grid.height + 1, 4)
    ]
    shifted = [
        vidsparse.ShiftedWindows((f, h, h), order="layers")
        for f in (3, 5, grid.frames)
        for h in (8, 12, 16, 24)
        if h <= grid.height
    ]
    rasters = [
        vidsparse.RadialRaster(decay, sink, "half", block)
        for decay in (0.05, 0.1, 0.2, 0.4, 1.0)
        for sink in (False, True)
        for block in (64, 128)
    ]
    lines = [vidsparse.Gridded((1, h, w), None, n) for h in (4, 8, 16) for w in (4, 8, 16) for n in (0, 1, 2)]
    powers = [vidsparse.PowerOfTwo(axes, (w, w, w)) for axes in (1, 2, 3) for w in (1, 2)]
    halves = tuple("diagonal" if head % 2 else "temporal" for head in range(HEADS))
    modes = [
        vidsparse.HeadModes(((halves,) * LAYERS,), window=w, radius=r) for w in range(8) for r in (0, 1, 2, 4, 6, 8)
    ]
    blocks = [vidsparse.MixtureOfBlocks.training_free((k, 4 * k, 4 * k)) for k in (1, 2, 3, 4)]
    thresholds = [vidsparse.MixtureOfBlocks.trained(t) for t in (0.05, 0.1, 0.15, 0.2, 0.25)]
    top, exact = vidsparse.TopBlocks(density), vidsparse.ExactBlocks(density)
    return {
        "Radial": vidsparse.Radial(density),
        "RadialRaster": _nearest(rasters, grid, density),
        "SlidingTile": _nearest(windows, grid, density),
        "ShiftedWindows": _nearest(shifted, grid, density),
        "Gridded": _nearest(lines, grid, density),
        "PowerOfTwo": _nearest(powers, grid, density),
        "HeadModes": _nearest(modes, grid, density),
        "SpatialTemporal": vidsparse.SpatialTemporal(density),
        "MixtureOfBlocks training-free": _nearest(blocks, grid, density),
        "MixtureOfBlocks trained": _nearest(thresholds, grid, density),
        "TopBlocks": top,
        "TopBlocks variance": vidsparse.TopBlocks(density, variance=True, sink=1),
        "Reuse TopBlocks": vidsparse.Reuse(top),
        "Reuse ExactBlocks": vidsparse.Reuse(exact),
    }


def corrected(grid: VideoGrid, density: float) -> dict[str, Contender]:
    """Three patterns with each correction: one of shapes alone, one that keeps its choice, and a mixed one."""
    chosen = patterns(grid, density)
    return {
        f"{name} + {type(correction).__name__}": Contender(chosen[name], correction)
        for name in ("Radial", "Reuse TopBlocks", "SpatialTemporal")
        for correction in (vidsparse.PooledComplement(), vidsparse.Rectified(), vidsparse.Reshaped())
    }


def _nearest(candidates: Sequence[Pattern], grid: VideoGrid, density: float) -> Pattern:
    return min(candidates, key=lambda pattern: abs(density_of(pattern, grid) - density))


def density_of(pattern: Pattern, grid: VideoGrid) -> float:
    """The share of the pairs of tokens that a pattern of shapes alone keeps, in the first layer."""
    groups = vidsparse.head_groups(pattern.plan(grid, vidsparse.Context(heads=HEADS, layers=LAYERS)), HEADS)
    return sum(len(group.heads) * group.block_map.token_density for group in groups) / HEADS
