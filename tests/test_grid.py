"""The token grid: counts, tiles, padding and the choice of a tile."""

from __future__ import annotations

import math
from typing import Any

import pytest

from vidsparse import VideoGrid
from vidsparse.grid import Tile, latent_frames, tiles_of_volume

WAN_720P = VideoGrid(21, 45, 80)  # 81 frames of 720 x 1280
GRIDS = [
    VideoGrid(9, 16, 16),
    VideoGrid(5, 7, 11),
    VideoGrid(1, 16, 16),
    VideoGrid(7, 1, 1),
    VideoGrid(1, 1, 8191),
    VideoGrid(21, 30, 52),
    WAN_720P,
]


def name(value: object) -> str:
    if isinstance(value, VideoGrid):
        return "x".join(map(str, value.view))
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_counts_of_a_grid_with_text() -> None:
    grid = VideoGrid(3, 5, 2, prefix=4, suffix=6)
    assert grid.view == (3, 5, 2)
    assert grid.video_tokens == 30
    assert grid.tokens == 40
    assert grid.raster == VideoGrid(1, 1, 30, prefix=4, suffix=6)


def test_equal_grids_are_one_key() -> None:
    assert {VideoGrid(3, 5, 2): 1}[VideoGrid(3, 5, 2)] == 1
    assert VideoGrid(3, 5, 2) != VideoGrid(3, 2, 5)
    assert VideoGrid(3, 5, 2) != VideoGrid(3, 5, 2, suffix=1)


@pytest.mark.parametrize(
    ("tile", "tiles", "padding"),
    [
        ((2, 8, 8), (11, 6, 10), 0.117),
        ((1, 8, 16), (21, 6, 5), 0.067),
        ((1, 1, 128), (21, 45, 1), 0.6),
        ((32, 2, 2), (1, 23, 40), 0.558),
        ((1, 1, 1), (21, 45, 80), 0.0),
    ],
    ids=name,
)
def test_tiles_and_padding_of_wan_720p(tile: Tile, tiles: tuple[int, int, int], padding: float) -> None:
    assert WAN_720P.tiles(tile) == tiles
    assert WAN_720P.padding(tile) == pytest.approx(padding, abs=5e-4)


@pytest.mark.parametrize("volume", [1, 64, 128], ids=lambda v: f"volume{v}")
@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_best_tile_has_the_volume_and_is_within_its_bonus_of_the_least_padding(grid: VideoGrid, volume: int) -> None:
    tile = grid.best_tile(volume)
    assert math.prod(tile) == volume
    sides = [1 << i for i in range(8)]
    least = min(grid.padding((f, h, volume // f // h)) for f in sides for h in sides if volume % (f * h) == 0)
    # Compactness is worth 0.02 a doubling, and a tile can be stretched log2(2 * volume) doublings at most.
    assert grid.padding(tile) <= least + 0.02 * math.log2(2 * volume) + 1e-9


@pytest.mark.parametrize(
    ("grid", "tile"),
    [
        (VideoGrid(8, 16, 16), (4, 4, 8)),  # no padding either way: the most compact
        (WAN_720P, (1, 8, 16)),
        (VideoGrid(21, 30, 52), (1, 32, 4)),  # compact tiles would waste 31 %
        (VideoGrid(7, 1, 1), (8, 4, 4)),  # one tile holds it all
        (VideoGrid(1, 1, 8192), (1, 1, 128)),
    ],
    ids=name,
)
def test_best_tile_follows_the_shape_of_the_grid(grid: VideoGrid, tile: Tile) -> None:
    assert grid.best_tile() == tile


def test_best_tile_takes_the_preferred_tile_unless_it_wastes_a_tenth_more() -> None:
    best = WAN_720P.best_tile(128)
    assert WAN_720P.best_tile(128, prefer=(2, 8, 8)) == (2, 8, 8)
    assert WAN_720P.padding((32, 2, 2)) > WAN_720P.padding(best) + 0.1
    assert WAN_720P.best_tile(128, prefer=(32, 2, 2)) == best


@pytest.mark.parametrize(
    ("sizes", "error"),
    [
        ({"frames": 0, "height": 4, "width": 4}, ValueError),
        ({"frames": 4, "height": -1, "width": 4}, ValueError),
        ({"frames": 4, "height": 4, "width": 4, "prefix": -1}, ValueError),
        ({"frames": 4, "height": 4, "width": 4, "suffix": -1}, ValueError),
        ({"frames": 4, "height": 480 / 16, "width": 4}, TypeError),
        ({"frames": 4, "height": 4, "width": 4, "suffix": None}, TypeError),
        ({"frames": True, "height": 4, "width": 4}, TypeError),
    ],
    ids=["no-frames", "negative-height", "negative-prefix", "negative-suffix", "float-height", "suffix-none", "bool"],
)
def test_bad_sizes(sizes: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="is not a valid grid"):
        VideoGrid(**sizes)


@pytest.mark.parametrize(
    "tile",
    [(0, 8, 8), (8, 8), (2, 8, 8, 1), [2, 8, 8], (2.0, 8, 8), (True, 8, 8), 128],
    ids=lambda tile: f"{tile}".replace(" ", ""),
)
def test_bad_tiles(tile: Any) -> None:
    with pytest.raises(ValueError, match=r"must be a tuple of three whole numbers"):
        WAN_720P.tiles(tile)


def test_tiles_of_a_volume_are_all_that_have_power_of_two_sides() -> None:
    tiles = tiles_of_volume(64)
    assert len(tiles) == len(set(tiles)) == 28  # of six factors of 2 so many go to frames, so many to height
    assert all(math.prod(tile) == 64 and all(side & (side - 1) == 0 for side in tile) for tile in tiles)


def test_small_frames_get_small_tiles() -> None:
    assert [VideoGrid(4, 31, width).default_volume for width in (33, 34)] == [64, 128]


@pytest.mark.parametrize(
    ("frames", "stride", "latent"), [(1, 4, 1), (4, 4, 1), (5, 4, 2), (81, 4, 21), (17, 8, 3), (7, 1, 7)]
)
def test_latent_frames(frames: int, stride: int, latent: int) -> None:
    assert latent_frames(frames, stride) == latent


@pytest.mark.parametrize("volume", [0, -64, 96], ids=lambda v: f"volume{v}")
def test_bad_volumes(volume: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        WAN_720P.best_tile(volume)


def test_a_preferred_tile_of_another_volume() -> None:
    with pytest.raises(ValueError, match="holds 64 tokens, not volume=128"):
        WAN_720P.best_tile(128, prefer=(4, 4, 4))


def test_the_repr_says_what_is_there_and_builds_the_grid() -> None:
    assert repr(VideoGrid(9, 32, 16)) == "VideoGrid(frames=9, height=32, width=16)"
    assert repr(VideoGrid(9, 32, 16, suffix=226)) == "VideoGrid(frames=9, height=32, width=16, suffix=226)"
    for grid in (VideoGrid(1, 2, 3), VideoGrid(1, 2, 3, 4, 5)):
        assert eval(repr(grid)) == grid
    assert VideoGrid(9, 32, 16).sides == "9x32x16"
