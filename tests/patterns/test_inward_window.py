"""Inward windows against the published rule: by hand at 1088x1920, and comparison by comparison on small grids."""

from __future__ import annotations

import itertools

import pytest
import torch

from vidsparse import InwardWindow, VideoGrid
from vidsparse.patterns.inward_window import _rule


def test_windows_at_1088x1920_by_hand() -> None:
    # Wan at 480p has frames of 30 x 52 tokens; those of 1088x1920 have 68 x 120.
    pattern, grid = InwardWindow(native=(30, 52)), VideoGrid(21, 68, 120)
    assert pattern.window_for(grid) == (21, 31, 53)
    time, rows, columns = _rule(pattern, grid)
    assert time.all()
    for seen, by_hand in (
        (rows, {0: (0, 30), 15: (0, 30), 16: (1, 31), 34: (19, 49), 52: (37, 67), 53: (37, 67), 67: (37, 67)}),
        (columns, {0: (0, 52), 26: (0, 52), 27: (1, 53), 60: (34, 86), 93: (67, 119), 119: (67, 119)}),
    ):
        for query, (first, last) in by_hand.items():
            assert seen[query].nonzero().flatten().tolist() == list(range(first, last + 1))
    share = 31 * 53 / (68 * 120)  # 0.201 of all pairs of tokens
    assert time.double().mean() * rows.double().mean() * columns.double().mean() == pytest.approx(share)


@pytest.mark.parametrize("native", [(3, 4), (4, 3), (1, 2), (7, 11)], ids=str)
def test_tokens_against_the_published_comparisons(native: tuple[int, int]) -> None:
    grid = VideoGrid(2, 7, 11)
    mask = InwardWindow(native=native, tile=(1, 1, 1)).plan(grid).to_dense()[0, 0]
    reach = native[0] // 2, native[1] // 2
    for (_, *query), (_, *key) in itertools.product(itertools.product(range(2), range(7), range(11)), repeat=2):
        inside = True
        for q, k, d, size in zip(query, key, reach, (7, 11), strict=True):
            inside &= q - d - max(d + q - size + 1, 0) <= k <= q + d + max(d - q, 0)
        row, column = (place[0] * 11 + place[1] for place in (query, key))
        assert mask.view(2, 77, 2, 77)[:, row, :, column].eq(inside).all()


@pytest.mark.parametrize("tile", [None, (1, 4, 4), (2, 8, 4)], ids=str)
@pytest.mark.parametrize("grid", [VideoGrid(3, 16, 20), VideoGrid(1, 7, 11), VideoGrid(2, 9, 5)], ids=str)
def test_every_query_sees_its_whole_window_and_at_most_a_tile_more(grid: VideoGrid, tile: tuple[int, int, int]) -> None:
    exact, tiled = InwardWindow(scale=2.0, tile=(1, 1, 1)), InwardWindow(scale=2.0, tile=tile)
    window, block_map = exact.plan(grid).token_mask(), tiled.plan(grid)
    assert not (window & ~block_map.token_mask()).any()
    sides = zip(exact.window_for(grid), block_map.query_tile, grid.view, strict=True)
    most = 1
    for side, own, axis in sides:
        most *= min(axis, side + 3 * (own - 1))
    assert block_map.token_mask().sum(dim=-1).max() <= most


def test_a_scale_suits_grids_of_two_sizes() -> None:
    pattern = InwardWindow(scale=2.0)
    assert pattern.window_for(VideoGrid(3, 64, 64)) == (3, 33, 33)
    assert pattern.window_for(VideoGrid(3, 32, 32)) == (3, 17, 17)
    assert InwardWindow(scale=1.0).plan(VideoGrid(3, 8, 8)).density == 1


def test_a_video_below_the_size_of_training_is_refused() -> None:
    pattern = InwardWindow(native=(30, 52))
    assert pattern.plan(VideoGrid(2, 30, 60)).density < 1
    for refuse in (pattern.check_grid, pattern.plan):
        with pytest.raises(ValueError, match=r"native=\(30, 52\) is larger than the video's frame of 30 x 51 tokens"):
            refuse(VideoGrid(2, 30, 51))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give one of native=None and scale=None"),
        ({"native": (30, 52), "scale": 2.0}, "give one of"),
        ({"native": (30,)}, r"native=\(30,\) must be a tuple of two sides"),
        ({"native": (0, 52)}, r"native=\(0, 52\) must be"),
        ({"scale": 0.5}, "scale=0.5 must be a finite number of at least 1"),
        ({"scale": float("nan")}, "scale=nan must be"),
        ({"scale": 2.0, "tile": (8, 8)}, r"tile=\(8, 8\) must be"),
    ],
    ids=str,
)
def test_bad_fields_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InwardWindow(**fields)  # type: ignore[arg-type]


def test_the_window_is_cut_at_no_border() -> None:
    _, rows, columns = _rule(InwardWindow(native=(5, 8)), VideoGrid(1, 12, 20))
    assert torch.equal(rows.sum(dim=1), torch.full((12,), 5)) and torch.equal(columns.sum(dim=1), torch.full((20,), 9))
