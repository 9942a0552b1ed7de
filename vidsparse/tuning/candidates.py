"""Patterns that a search chooses from."""

from __future__ import annotations

from vidsparse.grid import VideoGrid
from vidsparse.patterns import Dense, Gridded, Pattern, PowerOfTwo, Radial, SlidingTile, TopBlocks

DENSITIES = (0.1, 0.2, 0.3, 0.5)
# Shares of frames, height and width that a window covers.
WINDOWS = ((0.2, 1.0, 1.0), (0.4, 1.0, 1.0), (0.4, 0.5, 0.5), (1.0, 0.25, 0.25), (1.0, 0.5, 0.5))


def default_candidates(grid: VideoGrid) -> tuple[Pattern, ...]:
    """Windows in time and in space, lines through time, and patterns of several densities, for a grid; `Dense` first.

    All have tiles of one shape, so that heads of a layer run in one launch whatever they choose.
    """
    tile = grid.best_tile(grid.default_volume)
    windows = {tuple(max(1, round(share * side)) for share, side in zip(s, grid.view, strict=True)) for s in WINDOWS}
    found: list[Pattern] = [Dense(tile)]
    found += [SlidingTile(window=window, tile=tile) for window in sorted(windows)]  # type: ignore[arg-type]
    found += [Gridded(tile=tile), PowerOfTwo(tile=tile)]
    found += [Radial(density=density, tile=tile) for density in DENSITIES]
    found += [TopBlocks(density=density, tile=tile) for density in DENSITIES]
    return tuple(found)
