"""The example of a pattern of one's own: its maps on odd grids, and that it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vidsparse import BlockMap, Context, VideoGrid
from vidsparse.shapes.model import FOLDER

EXAMPLES = Path(__file__).parents[2] / "examples"
GRIDS = [VideoGrid(9, 16, 16), VideoGrid(5, 7, 11), VideoGrid(1, 9, 9), VideoGrid(3, 5, 2, prefix=3, suffix=5)]
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.view)))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES)
    import custom_pattern

    return custom_pattern


def planned(example: Any, grid: VideoGrid) -> list[BlockMap]:
    return [example.SpaceThenTime().plan(grid, Context(layer=layer, layers=6)) for layer in (0, 1)]


@every_grid
def test_every_query_tile_keeps_its_own(example: Any, grid: VideoGrid) -> None:
    for block_map in planned(example, grid):
        assert block_map.grid == grid
        assert block_map.to_dense().diagonal(dim1=-2, dim2=-1).all()


@every_grid
def test_two_layers_reach_everything(example: Any, grid: VideoGrid) -> None:
    space, time = (block_map.to_dense()[0, 0].float() for block_map in planned(example, grid))
    assert (space @ time > 0).all()


@every_grid
def test_a_layer_keeps_one_frame_or_one_place(example: Any, grid: VideoGrid) -> None:
    space, time = planned(example, grid)
    assert space.density == pytest.approx(1 / grid.frames)
    assert time.density == pytest.approx(grid.frames / space.key_tiles)
    assert torch.equal(example.SpaceThenTime().plan(grid).to_dense(), space.to_dense())


@pytest.mark.skipif(not (FOLDER / "model_index.json").is_file(), reason="the shapes weights are not there")
def test_the_example_runs_and_reports(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    example.main(["--frames", "5", "--steps", "2"])
    printed = capsys.readouterr().out
    assert "SpaceThenTime" in printed
    assert "the pattern asks for it" in printed
