"""`vidsparse.plot`: which picture it draws of what, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tiny_wan import SPARSE, call, tiny

from vidsparse import (
    BlockMap,
    Context,
    HeadGroup,
    Radial,
    RadialRaster,
    Reuse,
    StepSchedule,
    TopBlocks,
    VideoGrid,
    plot,
    sparsify,
)

GRID = VideoGrid(5, 8, 8)


def titles(figure: Figure) -> list[str]:
    return [text.get_text() for part in (figure, *figure.subfigs) for text in part.texts]


def pairs(figure: Figure) -> Any:
    """The map that is drawn."""
    (axes,) = (axes for axes in figure.get_axes() if axes.get_title() == "Pairs of tiles")
    return torch.from_numpy(axes.get_images()[0].get_array().data).bool()


def test_a_pattern_is_drawn_on_a_grid(tmp_path: Path) -> None:
    figure = plot(Radial(0.3), grid=GRID)
    expected = Radial(0.3).plan(GRID)
    assert titles(figure)[0] == repr(Radial(0.3)) and f"density {expected.density:.1%}" in titles(figure)[1]
    assert torch.equal(pairs(figure), expected.to_dense()[0, 0])
    figure.savefig(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.width == 800
    assert titles(plot(RadialRaster(block=16), grid=GRID, title="mine"))[0] == "mine"
    assert torch.equal(pairs(plot(StepSchedule(Radial(0.3), 4), grid=GRID)), expected.to_dense()[0, 0])


def test_heads_samples_and_groups() -> None:
    kept = torch.rand(2, 3, 5, 5) < 0.5
    kept |= torch.eye(5, dtype=torch.bool)
    block_map = BlockMap.from_dense(kept, GRID, (1, 8, 8))
    assert torch.equal(pairs(plot(block_map, head=2)), kept[0, 2])
    assert titles(plot(block_map, head=2))[0] == "BlockMap, head 2"
    one = Radial(0.4).plan(GRID)
    plan = (HeadGroup((4, 1), block_map.of_heads((0, 1))), HeadGroup((0,), one))
    assert torch.equal(pairs(plot(plan, head=1)), kept[0, 1])
    assert torch.equal(pairs(plot(plan, head=0)), one.to_dense()[0, 0])
    assert torch.equal(pairs(plot(plan[1])), one.to_dense()[0, 0])
    assert torch.equal(pairs(plot(one, head=7)), one.to_dense()[0, 0])  # all heads share it


def test_what_a_run_chose_and_what_it_ran() -> None:
    transformer = tiny()
    with sparsify(transformer, TopBlocks(0.3, tile=(1, 4, 4))) as run:
        run.record(layers=(1,), steps=(0,))
        call(transformer)
    (found,) = run.maps
    figure = plot(found, head=1)
    assert titles(figure)[0] == "transformer, layer 1, step 0, branch 0, head 1"
    assert torch.equal(pairs(figure), found.plan.to_dense()[0, 1])  # type: ignore[union-attr]
    for what in (run, run.report()):
        assert {"step", "density of pairs of tiles"} <= {
            text for axes in plot(what).get_axes() for text in (axes.get_xlabel(), axes.get_ylabel())
        }


@pytest.mark.parametrize(
    ("what", "options", "error", "says"),
    [
        (Radial(0.3), {}, ValueError, r"needs the size of a video, such as grid=vidsparse.VideoGrid\(21, 30, 52\)"),
        (TopBlocks(0.3), {"grid": GRID}, ValueError, "chooses tiles by content.*plot one of run.maps"),
        (Reuse(TopBlocks(0.3)), {"grid": GRID}, ValueError, "chooses tiles by content"),
        ((HeadGroup((0, 2), Radial(0.3).plan(GRID)),), {"head": 1}, ValueError, "not in the map, which has heads 0, 2"),
        (Radial(0.3).plan(GRID), {"grid": VideoGrid(5, 8, 9)}, ValueError, "has other tokens"),
        (Radial(0.3), {"grid": GRID, "query": (9, 0, 0)}, ValueError, "query="),
        ("radial", {}, TypeError, "plot draws a pattern, a map.*not a str"),
        ((), {}, TypeError, "not a tuple"),
        (Radial, {}, TypeError, "not a"),
    ],
    ids=str,
)
def test_what_is_refused(what: Any, options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        plot(what, **options)


def test_a_context_decides_which_layer() -> None:
    class ByLayer(Radial):
        def plan(self, grid: VideoGrid, context: Context | None = None) -> BlockMap:
            assert context is not None
            return Radial(0.2 if context.layer else 0.6).plan(grid)

    first, second = (pairs(plot(ByLayer(0.3), grid=GRID, context=Context(layer=n))) for n in (0, 1))
    assert first.sum() > second.sum()


def test_a_run_without_a_call() -> None:
    with sparsify(tiny(), SPARSE) as run, pytest.raises(ValueError, match="no attention has run"):
        plot(run)
