"""The picture of a map: what is drawn is what the map keeps, on odd grids too, and no text overlaps another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from overlaps import overlapping

from vidsparse import BlockMap, Radial, RadialRaster, SlidingTile, VideoGrid
from vidsparse.pictures.map_picture import frame_shares, map_figure
from vidsparse_kernels.layout import tile_of_token

GRIDS = [
    VideoGrid(21, 30, 52),
    VideoGrid(1, 9, 30),
    VideoGrid(5, 7, 11, prefix=3),
    VideoGrid(9, 40, 16, suffix=20),
    VideoGrid(2, 1, 1),
    VideoGrid(41, 3, 200),
]
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.sides)


def axes_of(figure: Any) -> dict[str, Any]:
    return {axes.get_title(): axes for axes in figure.get_axes()}


def drawn(axes: Any) -> Any:
    return np.asarray(axes.get_images()[0].get_array())


@every_grid
@pytest.mark.parametrize("pattern", [Radial(0.3), RadialRaster()], ids=["tiles", "raster"])
def test_no_text_overlaps_and_the_width_is_that_of_a_page(grid: VideoGrid, pattern: Any) -> None:
    title = "StepSchedule(pattern=Radial(density=0.3, decay=None, sink=True, tile=None), dense_steps=0.25), head 3"
    figure = map_figure(pattern.plan(grid), grid, title)
    assert figure.get_size_inches()[0] * figure.dpi == 800
    assert overlapping(figure) == []


def test_the_parts_show_what_the_map_keeps() -> None:
    grid, query = VideoGrid(5, 7, 11, prefix=3), (3, 2, 9)
    kept = torch.rand(24, 12) < 0.4
    kept[:, 0] = True
    block_map = BlockMap.from_dense(kept, grid, query_tile=(2, 2, 6), key_tile=(4, 4, 4))
    axes = axes_of(map_figure(block_map, grid, "mine", query))
    rows = tile_of_token(grid.view, (2, 2, 6)).view(grid.view)
    seen = torch.where(rows == rows[query], 2, kept[rows[query]][tile_of_token(grid.view, (4, 4, 4))].view(grid.view))
    assert (drawn(axes["Pairs of tiles"]) == kept.numpy()).all()
    assert (drawn(axes["Its own frame, 3"]) == seen[3].numpy()).all()
    assert (drawn(axes["Across time, in column 9"]) == seen[:, :, 9].T.numpy()).all()
    assert (drawn(axes["Across time, in row 2"]) == seen[:, 2].T.numpy()).all()
    for number in range(5):
        assert (drawn(axes[f"frame {number}"]) == seen[number].numpy()).all()
    names = {title: (a.get_xlabel(), a.get_ylabel()) for title, a in axes.items()}
    assert names["Its own frame, 3"] == ("column", "row") and names["Across time, in row 2"] == ("frame", "column")
    mask = block_map.token_mask()[0, 0, 3:, 3:].view(5, 77, 5, 77).double().mean(dim=(1, 3))
    torch.testing.assert_close(frame_shares(block_map, grid), mask)


def test_the_map_of_a_raster_line_is_drawn_on_the_video() -> None:
    grid = VideoGrid(5, 7, 11, suffix=2)
    block_map = RadialRaster(block=16).plan(grid)
    mask = block_map.token_mask()[0, 0, :-2, :-2].view(5, 77, 5, 77).double().mean(dim=(1, 3))
    torch.testing.assert_close(frame_shares(block_map, grid), mask)
    assert "frame 4" in axes_of(map_figure(block_map, grid, "raster"))


def test_the_legend_says_where_the_marked_tile_is() -> None:
    block_map = Radial(0.5, tile=(2, 4, 4)).plan(VideoGrid(5, 7, 11))
    texts = [text.get_text() for text in map_figure(block_map, block_map.grid, "", (4, 0, 9)).legends[0].get_texts()]
    assert texts[0] == "marked query tile 14: latent frame 4, rows 0 to 3, columns 8 to 10"


def test_a_single_frame_has_no_row_of_frames() -> None:
    grid = VideoGrid(1, 9, 30)
    axes = axes_of(map_figure(Radial(0.5).plan(grid), grid, "one"))
    assert "frame 0" not in axes and list(axes["Pairs of latent frames"].get_xticks()) == [0]


def test_a_long_video_shows_some_frames() -> None:
    grid = VideoGrid(41, 3, 20)
    shown = [title for title in axes_of(map_figure(Radial(0.3).plan(grid), grid, "long")) if title.startswith("frame ")]
    assert len(shown) == 7 and {"frame 0", "frame 20", "frame 40"} <= set(shown)


@pytest.mark.parametrize(
    ("grid", "query", "says"),
    [
        (VideoGrid(5, 7, 10), None, r"has other tokens; give the grid of its video"),
        (VideoGrid(5, 7, 11, prefix=1), None, r"has other tokens"),
        (VideoGrid(5, 7, 11), (5, 0, 0), r"query=\(5, 0, 0\) must be \(frame, row, column\) of a token of VideoGrid"),
        (VideoGrid(5, 7, 11), (0, -1, 0), "must be"),
        (VideoGrid(5, 7, 11), (0, 0), "must be"),
    ],
    ids=str,
)
def test_what_is_refused(grid: VideoGrid, query: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        map_figure(SlidingTile().plan(VideoGrid(5, 7, 11)), grid, "", query)
