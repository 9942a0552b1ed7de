"""Patterns carried to another grid: windows keep their share, tiles their volume, all else stays."""

from __future__ import annotations

import pytest

from vidsparse import (
    Dense,
    Gridded,
    Pattern,
    PerHead,
    PerLayer,
    PerPhase,
    PowerOfTwo,
    Radial,
    SlidingTile,
    StepSchedule,
    TopBlocks,
    VideoGrid,
)
from vidsparse.patterns.scale import scaled

SMALL, LARGE = VideoGrid(9, 16, 16), VideoGrid(18, 32, 24)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (SlidingTile(window=(3, 8, 8)), SlidingTile(window=(6, 16, 12))),
        (SlidingTile(window=(99, 8, 8), stride=(1, 4, 4)), SlidingTile(window=(198, 16, 12), stride=(2, 8, 6))),
        (Radial(density=0.3), Radial(density=0.3)),
        (Radial(density=0.3, tile=(9, 1, 1)), Radial(density=0.3, tile=(9, 1, 1))),
        (TopBlocks(top_k=4, neighbours=(0, 1, 1)), TopBlocks(top_k=4, neighbours=(0, 1, 1))),
        (PowerOfTwo(), PowerOfTwo()),
        (Gridded(), Gridded()),
    ],
    ids=repr,
)
def test_windows_are_scaled_along_each_axis(pattern: Pattern, expected: Pattern) -> None:
    assert scaled(pattern, SMALL, LARGE) == expected
    assert scaled(pattern, SMALL, SMALL) == pattern


def test_the_best_tiles_become_the_best_tiles() -> None:
    for volume in (64, 128):
        found = scaled(Dense(SMALL.best_tile(volume)), SMALL, LARGE)
        assert found == Dense(LARGE.best_tile(volume))


def test_patterns_inside_are_scaled() -> None:
    window = SlidingTile(window=(3, 8, 8))
    pattern = PerPhase((Dense(), PerLayer((PerHead((window, Radial(density=0.2)), (0, 1)), window), (0, 1))), (0.5,))
    wide = SlidingTile(window=(6, 16, 12))
    expected = PerPhase((Dense(), PerLayer((PerHead((wide, Radial(density=0.2)), (0, 1)), wide), (0, 1))), (0.5,))
    assert scaled(StepSchedule(pattern, 3), SMALL, LARGE) == StepSchedule(expected, 3)


def test_a_window_never_vanishes() -> None:
    assert scaled(SlidingTile(window=(1, 1, 1)), LARGE, VideoGrid(1, 2, 2)) == SlidingTile(window=(1, 1, 1))
