"""Shifted windows against the published partitions, worked out by hand and by rolling the frame."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from vidsparse import Context, ShiftedWindows, VideoGrid
from vidsparse.grid import Tile
from vidsparse.patterns.names import build_pattern
from vidsparse.patterns.scale import scaled

TOKEN = (1, 1, 1)


def seen(pattern: ShiftedWindows, grid: VideoGrid, context: Context, query: Tile) -> torch.Tensor:
    """The tokens that one token sees: bool [frames, height, width]."""
    frame, row, column = query
    mask = pattern.plan(grid, context).token_mask()[0, 0]
    return mask[(frame * grid.height + row) * grid.width + column].view(grid.view)


def drawn(pattern: ShiftedWindows, offset: int) -> Context:
    """A call that has an offset."""
    return next(c for c in (Context(layer=layer) for layer in range(99)) if pattern.offset(c) == offset)


def test_windows_of_hidiffusion_by_hand() -> None:
    # 8 x 16 tokens: windows of 4 x 8, which move by 1 x 2 tokens for each offset.
    grid, pattern = VideoGrid(2, 8, 16), ShiftedWindows(tile=TOKEN)
    assert pattern.window_for(grid) == (2, 4, 8)
    corner = {
        0: ([0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]),
        1: ([0, 5, 6, 7], [0, 1, 10, 11, 12, 13, 14, 15]),
        2: ([0, 1, 6, 7], [0, 1, 2, 3, 12, 13, 14, 15]),
        3: ([0, 1, 2, 7], [0, 1, 2, 3, 4, 5, 14, 15]),
    }
    for offset, (rows, columns) in corner.items():
        expected = torch.zeros(grid.view, dtype=torch.bool)
        for row in rows:
            expected[:, row, columns] = True
        assert torch.equal(seen(pattern, grid, drawn(pattern, offset), (1, 0, 0)), expected)


@pytest.mark.parametrize("offset", range(4))
@pytest.mark.parametrize("size", [(8, 8), (12, 20), (10, 14)], ids=str)
def test_windows_of_hidiffusion_are_those_of_the_rolled_frame(size: tuple[int, int], offset: int) -> None:
    (height, width), side = size, (size[0] // 2, size[1] // 2)
    pattern = ShiftedWindows(tile=TOKEN)
    shift = [n // 4 * offset for n in side]
    places = torch.arange(height * width).view(height, width)
    rolled = places.roll([-n for n in shift], (0, 1))
    windows = rolled.view(2, side[0], 2, side[1]).transpose(1, 2).reshape(4, -1)
    expected = torch.zeros(height * width, height * width, dtype=torch.bool)
    for window in windows:
        expected[window[:, None], window] = True
    block_map = pattern.plan(VideoGrid(1, height, width), drawn(pattern, offset))
    assert torch.equal(block_map.to_dense()[0, 0], expected)
    assert block_map.density == 0.25


def test_units_of_simplegvr_by_hand() -> None:
    grid, pattern = VideoGrid(20, 2, 3), ShiftedWindows.simplegvr(tile=(1, 2, 2))
    units = {0: [5, 5, 5, 5], 1: [2, 5, 5, 5, 3]}  # latent frames of 77 frames, figure 8 of the paper
    for layer, sizes in units.items():
        owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        mask = pattern.plan(grid, Context(layer=layer)).token_mask()[0, 0].view(20, 6, 20, 6)
        assert torch.equal(mask.all(dim=3).all(dim=1), owner[:, None] == owner)
        assert torch.equal(mask.any(dim=3).any(dim=1), owner[:, None] == owner)
        assert pattern.plan(grid, Context(layer=layer + 2, step=5)) is pattern.plan(grid, Context(layer=layer))


def test_offsets_are_drawn_for_each_layer_and_step() -> None:
    pattern, calls = ShiftedWindows(), [Context(layer=layer, step=step) for layer in range(40) for step in range(50)]
    offsets = [pattern.offset(call) for call in calls]
    assert offsets == [ShiftedWindows().offset(call) for call in calls]
    assert all(400 < count < 600 for count in Counter(offsets).values()) and set(offsets) == {0, 1, 2, 3}
    assert offsets != [ShiftedWindows(seed=1).offset(call) for call in calls]
    one, other = Context(layer=3, step=7), Context(layer=3, step=7, branch=1)
    assert pattern.offset(one) == pattern.offset(other)
    grid = VideoGrid(2, 16, 16)
    assert pattern.plan(grid, one) is pattern.plan(grid, other)


@pytest.mark.parametrize("order", ["random", "layers"])
@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("grid", [VideoGrid(5, 7, 11), VideoGrid(1, 16, 16), VideoGrid(7, 1, 1)], ids=str)
def test_each_query_sees_its_whole_window(grid: VideoGrid, wrap: bool, order: str) -> None:
    exact = build_pattern("shifted-windows", None, [f"wrap={wrap}", f"order={order}", "tile=1,1,1"])
    tiled = build_pattern("shifted-windows", None, [f"wrap={wrap}", f"order={order}"])
    for layer in range(8):
        context = Context(layer=layer, step=2)
        window, kept = (p.plan(grid, context).token_mask() for p in (exact, tiled))
        assert not (window & ~kept).any()


def test_the_default_tile_makes_the_rule_exact_where_sides_divide() -> None:
    grid, pattern = VideoGrid(4, 64, 64), ShiftedWindows()
    assert pattern.tile_for(grid) == (4, 4, 8)  # the offsets are multiples of 8
    assert {pattern.plan(grid, drawn(pattern, offset)).density for offset in range(4)} == {0.25}


def test_a_window_larger_than_the_video_is_refused() -> None:
    pattern, grid = ShiftedWindows(window=(None, 8, 12)), VideoGrid(3, 8, 11)
    message = r"window=\(None, 8, 12\) is larger than the video of 3 x 8 x 11 tokens .* at most window=\(3, 8, 11\)"
    for refuse in (pattern.check_grid, pattern.plan):
        with pytest.raises(ValueError, match=message):
            refuse(grid)
    assert pattern.plan(VideoGrid(3, 8, 12)).density == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": (8, 8)}, r"window=\(8, 8\) must be a tuple"),
        ({"window": (0, 8, 8)}, r"window=\(0, 8, 8\) must be"),
        ({"window": 8}, "window=8 must be"),
        ({"shifts": 0}, "shifts=0 must be a whole number of at least 1"),
        ({"order": "steps"}, "order='steps' is unknown; choose one of random, layers"),
        ({"wrap": 1}, "wrap=1 must be True or False"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"tile": (1, 8)}, r"tile=\(1, 8\) must be"),
    ],
    ids=str,
)
def test_bad_fields_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShiftedWindows(**fields)  # type: ignore[arg-type]


def test_a_window_keeps_its_share_on_another_grid() -> None:
    pattern = ShiftedWindows(window=(None, 8, 12))
    larger = scaled(pattern, VideoGrid(3, 16, 24), VideoGrid(5, 32, 24))
    assert larger == ShiftedWindows(window=(None, 16, 12))
