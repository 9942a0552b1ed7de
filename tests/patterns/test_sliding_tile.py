"""Sliding tiles against the definition of generalised neighbourhood attention."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from vidsparse import SlidingTile, VideoGrid


@pytest.mark.parametrize("tile", [(1, 1, 1), (1, 2, 2), (2, 2, 4)], ids=["tile1x1x1", "tile1x2x2", "tile2x2x4"])
@pytest.mark.parametrize(
    ("window", "stride"),
    [
        ((3, 3, 3), (1, 1, 1)),
        ((2, 4, 4), (1, 1, 1)),
        ((3, 4, 5), (2, 3, 2)),
        ((4, 4, 4), (4, 4, 4)),
        ((1, 1, 1), (1, 1, 1)),
        ((3, 99, 4), (1, 1, 4)),
    ],
    ids=["odd", "even", "mixed-strides", "blocked", "one", "full-height"],
)
@pytest.mark.parametrize("view", [(5, 7, 11), (1, 8, 8), (4, 9, 10)], ids=["5x7x11", "1x8x8", "4x9x10"])
def test_sliding_tile_against_the_formula_of_natten(
    view: tuple[int, int, int], window: tuple[int, int, int], stride: tuple[int, int, int], tile: tuple[int, int, int]
) -> None:
    grid = VideoGrid(*view)
    tiles = grid.tiles(tile)
    in_tokens = [tuple(n * side for n, side in zip(sides, tile, strict=True)) for sides in (window, stride)]
    block_map = SlidingTile(window=in_tokens[0], stride=in_tokens[1], tile=tile).plan(grid)  # type: ignore[arg-type]
    t, h, w = (natten_axis(*axis) for axis in zip(tiles, window, stride, strict=True))
    kept = torch.tensor(
        [
            [t[a][d] and h[b][e] and w[c][f] for d, e, f in itertools.product(*map(range, tiles))]
            for a, b, c in itertools.product(*map(range, tiles))
        ]
    )
    assert torch.equal(block_map.to_dense()[0, 0], kept)


def natten_axis(size: int, window: int, stride: int) -> list[list[bool]]:
    """Definition of generalised neighbourhood attention on one axis: who sees whom, query by query."""
    window = min(window, size)
    stride = min(stride, window)
    half, odd = window // 2, window % 2
    rows = []
    for query in range(size):
        leader = min(query // stride * stride + stride // 2, size - 1)
        centre = min(max(leader, half), size - 1 - (half + odd - 1))
        rows.append([centre - half <= key <= centre + half + odd - 1 for key in range(size)])
    return rows


@pytest.mark.parametrize(
    "grid",
    [
        VideoGrid(9, 16, 16),
        VideoGrid(5, 7, 11),
        VideoGrid(1, 16, 16),
        VideoGrid(7, 1, 1),
        VideoGrid(3, 5, 2, prefix=3, suffix=5),
        VideoGrid(4, 9, 10),
    ],
    ids=str,
)
def test_sliding_windows_have_one_size_everywhere(grid: VideoGrid) -> None:
    block_map = SlidingTile(window=(3, 8, 8), tile=(1, 4, 4)).plan(grid)
    expected = math.prod(min(n, side) for n, side in zip(grid.tiles((1, 4, 4)), (3, 2, 2), strict=True))
    assert (block_map.counts == expected).all()


def test_sliding_window_is_rounded_up_to_whole_tiles() -> None:
    grid = VideoGrid(9, 16, 16)
    exact = SlidingTile(window=(2, 8, 8), tile=(1, 4, 4)).plan(grid)
    assert torch.equal(SlidingTile(window=(2, 5, 7), tile=(1, 4, 4)).plan(grid).to_dense(), exact.to_dense())
