"""`Radial` against what its docstring promises, `RadialRaster` against the published rule and its sparsities."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from vidsparse import Radial, RadialRaster, VideoGrid

VIDEO_GRIDS = {
    "9x16x16": VideoGrid(9, 16, 16),
    "33x16x16": VideoGrid(33, 16, 16),
    "21x30x52": VideoGrid(21, 30, 52),
    "21x45x80": VideoGrid(21, 45, 80),
}
video_grids = pytest.mark.parametrize("grid", VIDEO_GRIDS.values(), ids=VIDEO_GRIDS)


# Radial


@video_grids
@pytest.mark.parametrize("sink", [True, False], ids=["sink", "nosink"])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.35, 0.5, 0.8, 1.0])
def test_radial_meets_the_density(density: float, sink: bool, grid: VideoGrid) -> None:
    assert Radial(density=density, sink=sink).plan(grid).density == pytest.approx(density, abs=0.01)


@video_grids
@pytest.mark.parametrize("density", [0.05, 0.2, 0.5], ids=lambda d: f"density{d}")
def test_radial_windows_are_moved_not_cut_at_the_border(density: float, grid: VideoGrid) -> None:
    pattern = Radial(density=density)
    tiles = grid.tiles(pattern.tile_for(grid))
    spatial = tiles[1] * tiles[2]
    kept = pattern.plan(grid).to_dense().view(tiles[0], spatial, tiles[0], spatial)
    seen = kept.sum(dim=-1)  # [query frame, query place, key frame]
    assert torch.equal(seen.amin(dim=1), seen.amax(dim=1)), "a place of the frame sees less than another"


def thinning(distance: int) -> float:
    """By how much `Radial` makes tiles at a distance dearer: the two that stand for 2^k to 2^(k+1) become cheaper."""
    stride = 2 ** (distance.bit_length() - 2) if distance >= 4 else 1
    return 1 / stride if distance % stride == 0 else 2


@video_grids
def test_radial_windows_shrink_with_temporal_distance(grid: VideoGrid) -> None:
    pattern = Radial(density=0.3, sink=False)
    tiles = grid.tiles(pattern.tile_for(grid))
    seen = pattern.plan(grid).to_dense().view(tiles[0], -1, tiles[0], tiles[1] * tiles[2]).sum(dim=-1)[:, 0]
    ordinary = [d for d in range(tiles[0]) if thinning(d) >= 1]
    thinned = [d for d in range(4, tiles[0]) if thinning(d) < 1]
    for frame in range(tiles[0]):
        for side in (seen[frame, : frame + 1].flip(0), seen[frame, frame:]):
            assert (side[[d for d in ordinary if d < len(side)]].diff() <= 0).all()
            assert all(side[d] >= side[d + 1] for d in thinned if d + 1 < len(side))


@pytest.mark.parametrize("sink", [True, False], ids=["sink", "nosink"])
@pytest.mark.parametrize("grid", [VideoGrid(9, 16, 16), VideoGrid(4, 9, 10)], ids=["9x16x16", "4x9x10"])
def test_radial_keeps_a_superset_at_a_higher_density(grid: VideoGrid, sink: bool) -> None:
    maps = [
        Radial(density=d, sink=sink, tile=(1, 4, 4)).plan(grid).to_dense() for d in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1)
    ]
    for lower, higher in itertools.pairwise(maps):
        assert (lower <= higher).all()


@pytest.mark.parametrize("decay", [0.02, 0.2, 1.0, 5.0])
def test_radial_window_covers_the_fraction_that_the_docstring_says(decay: float) -> None:
    # 8 x 8 tiles of one frame each: a square window of n x n tiles covers n * n / 64 of the frame.
    grid, tile = VideoGrid(12, 32, 32), (1, 4, 4)
    seen = Radial(decay=decay, sink=False, tile=tile).plan(grid).to_dense().view(12, 64, 12, 64).sum(dim=-1)[:, 0]
    for i, j in itertools.product(range(12), repeat=2):
        share = min(1.0, decay / (1 + abs(i - j)) / thinning(abs(i - j)))
        side = math.sqrt(share) * 8
        low = max(math.floor(side) ** 2, int(i == j))  # the own tile always stays
        assert low - 8 <= seen[i, j] <= (math.floor(side) + 1) ** 2, (i, j)


def test_radial_sink_is_as_near_as_the_neighbouring_frame() -> None:
    grid, tile = VideoGrid(12, 32, 32), (1, 4, 4)
    with_sink = Radial(decay=0.5, tile=tile).plan(grid).to_dense().view(12, 64, 12, 64)
    without = Radial(decay=0.5, tile=tile, sink=False).plan(grid).to_dense().view(12, 64, 12, 64)
    assert torch.equal(with_sink[1:, :, 1:], without[1:, :, 1:])
    assert torch.equal(with_sink[0].sum(dim=(0, 2)), with_sink[:, :, 0].sum(dim=(1, 2)))  # both ways
    neighbour = without[:, :, 1:].diagonal(dim1=0, dim2=2).sum(dim=(0, 1))  # frame i to frame i + 1
    first = with_sink[2:, :, 0].sum(dim=(1, 2))
    assert ((first - neighbour[0]).abs() <= 64).all(), "the sink's windows are not those of the next frame"


@pytest.mark.parametrize("grid", [VideoGrid(1, 16, 16), VideoGrid(1, 9, 10)], ids=["16x16", "9x10"])
def test_radial_at_decay_1_sees_all_of_its_own_frame(grid: VideoGrid) -> None:
    assert Radial(decay=1.0, tile=(1, 4, 4)).plan(grid).density == 1
    assert Radial(decay=0.5, tile=(1, 4, 4)).plan(grid).density < 1


# RadialRaster


@pytest.mark.parametrize(
    ("grid", "pattern", "sparsity"),
    [
        (VideoGrid(18, 48, 80), RadialRaster(), 0.7129),
        (VideoGrid(18, 48, 80), RadialRaster(adjacent="half"), 0.7366),
        (VideoGrid(18, 48, 80), RadialRaster(decay=0.0, adjacent="half"), 0.7366),
        (VideoGrid(18, 48, 80), RadialRaster(decay=1.0), 0.5691),
        (VideoGrid(18, 48, 80), RadialRaster(decay=1.0, adjacent="half"), 0.5928),
        (VideoGrid(30, 48, 80), RadialRaster(decay=0.95, sink=False), 0.7254),
        (VideoGrid(30, 48, 80), RadialRaster(decay=0.95), 0.6992),
        (VideoGrid(30, 48, 80), RadialRaster(decay=1.0, sink=False), 0.7068),
        (VideoGrid(30, 48, 80), RadialRaster(decay=1.0), 0.6810),
    ],
    ids=[
        "wan-69f",
        "wan-69f-half",
        "wan-69f-half-floor",
        "wan-69f-decay1",
        "wan-69f-half-decay1",
        "hunyuan-117f",
        "hunyuan-117f-sink",
        "hunyuan-117f-decay1",
        "hunyuan-117f-decay1-sink",
    ],
)
def test_radial_raster_has_the_sparsity_of_the_official_code(
    grid: VideoGrid, pattern: RadialRaster, sparsity: float
) -> None:
    assert 1 - pattern.plan(grid).density == pytest.approx(sparsity, abs=5e-5)


@pytest.mark.parametrize("adjacent", ["full", "half"])
@pytest.mark.parametrize("sink", [True, False], ids=["sink", "nosink"])
@pytest.mark.parametrize("decay", [0.0, 0.2, 1.0], ids=lambda d: f"decay{d}")
@pytest.mark.parametrize(
    ("view", "block"),
    [
        ((8, 10, 13), 16),
        ((5, 12, 11), 32),
        ((6, 16, 17), 64),
        ((9, 8, 16), 64),
        ((5, 7, 11), 16),
        ((20, 3, 7), 8),
        ((7, 1, 1), 2),
    ],
    ids=[
        "8x10x13-block16",
        "5x12x11-block32",
        "6x16x17-block64",
        "9x8x16-block64",
        "5x7x11-block16",
        "20x3x7-block8",
        "7x1x1-block2",
    ],
)
def test_radial_raster_against_the_published_rule(
    view: tuple[int, int, int], block: int, decay: float, sink: bool, adjacent: Any
) -> None:
    pattern = RadialRaster(decay=decay, sink=sink, adjacent=adjacent, block=block)
    expected = published_radial_map(*view, pattern)
    assert torch.equal(pattern.plan(VideoGrid(*view)).to_dense()[0, 0], expected)


def published_radial_map(frames: int, height: int, width: int, pattern: RadialRaster) -> torch.Tensor:
    """The official rule, token by token, then its reduction to blocks, frame pair by frame pair."""
    size, s = pattern.block, height * width
    power = 1
    while power <= s:
        power *= 2
    blocks = -(-frames * s // size)
    kept = torch.zeros(blocks, blocks, dtype=torch.bool)
    for i, j in itertools.product(range(frames), repeat=2):
        mask = published_frame_pair(i, j, s, power, pattern)
        # The frame pair stands on a canvas of ceil(s / size) blocks; what sticks out of it is lost.
        side = -(-s // size) * size
        canvas = torch.zeros(side + size, side + size, dtype=torch.bool)
        top, left = i * s % size, j * s % size
        canvas[top : top + s, left : left + s] = mask
        cells = canvas[:side, :side].view(side // size, size, side // size, size)
        for row, column in itertools.product(range(side // size), repeat=2):
            filled = [int(n) for n in cells[row, :, column].sum(dim=0)]  # True rows of each column of the block
            full = sum(3 * n > size for n in filled)
            touched = sum(n > 0 for n in filled)
            down, right = i * s // size + row, j * s // size + column
            if touched and 5 * full > 3 * touched and down < blocks and right < blocks:
                kept[down, right] = True
    # The documented differences: the diagonal is kept, and a last block that is not full counts as text.
    whole = frames * s // size
    kept[whole:], kept[:, whole:] = True, True
    return kept | torch.eye(blocks, dtype=torch.bool)


def published_frame_pair(i: int, j: int, s: int, power: int, pattern: RadialRaster) -> torch.Tensor:
    """Which tokens of frame j each token of frame i sees: bool [s, s]."""
    distance, group = abs(i - j), 0
    while 2**group <= distance:
        group += 1
    if j == 0 and pattern.sink:
        return torch.ones(s, s, dtype=torch.bool)
    length = power / 2**group
    if length < 128 and distance % int(128 / length):
        return torch.zeros(s, s, dtype=torch.bool)
    half_width = max(pattern.block, pattern.decay * length)
    if distance == 0:
        half_width = s
    elif distance == 1:
        half_width = s if pattern.adjacent == "full" else s // 2
    token = torch.arange(s)
    return (token[:, None] - token[None]).abs() <= half_width
