"""`vidsparse.plot`: a map, a pattern or a run as a figure of matplotlib."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vidsparse.block_map import BlockMap, HeadGroup, Plan
from vidsparse.grid import VideoGrid
from vidsparse.patterns import Context, Pattern
from vidsparse.pictures.map_picture import Place, map_figure
from vidsparse.pictures.report_picture import report_figure
from vidsparse.runtime.chosen import ChosenMap
from vidsparse.runtime.report import Report
from vidsparse.runtime.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(
    what: Pattern | Plan | ChosenMap | Report | Run,
    *,
    grid: VideoGrid | None = None,
    context: Context | None = None,
    head: int = 0,
    query: Place | None = None,
    title: str | None = None,
) -> Figure:
    """Draw what a pattern keeps, or what ran.

        vidsparse.plot(vidsparse.Radial(density=0.2), grid=vidsparse.VideoGrid(21, 30, 52)).savefig("radial.png")

    A map is drawn as pairs of tiles, as pairs of frames, and as what one marked query tile sees in its own frame, along
    time and in other frames. A report is drawn as the density of each layer in each step, with the reasons of dense
    calls.

    Args:
        what: a pattern that needs only the size of the video, a `BlockMap`, the `HeadGroup`s of a plan, one of
            `run.maps`, a report or a run.
        grid: the tokens of the video; a pattern needs it. For a map, that of the map: give the video's for a map in
            raster order.
        context: layer, step and heads that the pattern is asked for; by default the first ones.
        head: which head of the map.
        query: (frame, row, column) of a token: its tile is marked. By default the middle of the video.
        title: above the picture, in place of what is drawn.

    Returns:
        A figure of matplotlib; notebooks show it, `savefig` writes it.

    Raises:
        TypeError: something that has no picture.
        ValueError: a pattern without a grid, or one that chooses by content; a grid, head or query that does not fit;
            a report without a call.
        ImportError: matplotlib is missing.
    """
    if isinstance(what, Run):
        what = what.report()
    if isinstance(what, Report):
        return report_figure(what, title)
    plan, grid, name = _plan(what, grid, context or Context(heads=head + 1))
    block_map = _of_head(plan, head)
    of_head = "" if block_map is plan and block_map.counts.shape[1] == 1 else f", head {head}"
    return map_figure(_single(block_map), grid or block_map.grid, title or f"{name}{of_head}", query)


def _plan(what: object, grid: VideoGrid | None, context: Context) -> tuple[Plan, VideoGrid | None, str]:
    """The plan to draw, the grid of its video and its name."""
    if isinstance(what, Pattern):
        if grid is None:
            raise ValueError(f"plot({what!r}) needs the size of a video, such as grid=vidsparse.VideoGrid(21, 30, 52)")
        if what.reads_content:
            raise ValueError(
                f"{what!r} chooses tiles by content, so that its map needs queries and keys; keep what it chooses with "
                "run.record(layers=..., steps=...) and plot one of run.maps"
            )
        return what.plan(grid, context), grid, f"{what!r}"
    if isinstance(what, ChosenMap):
        name = f"{what.transformer}, layer {what.layer}, step {what.step}, branch {what.branch}"
        return what.plan, grid or what.grid, name
    if isinstance(what, HeadGroup):
        return (what,), grid, "HeadGroup"
    if isinstance(what, BlockMap):
        return what, grid, "BlockMap"
    if isinstance(what, tuple) and what and all(isinstance(group, HeadGroup) for group in what):
        return what, grid, "HeadGroups"
    raise TypeError(
        f"plot draws a pattern, a map or HeadGroups, one of run.maps, a report or a run, not a {type(what).__name__}"
    )


def _of_head(plan: Plan, head: int) -> BlockMap:
    """The map of one head.

    Raises:
        ValueError: the plan has no such head.
    """
    groups = (HeadGroup(tuple(range(plan.counts.shape[1])), plan),) if isinstance(plan, BlockMap) else plan
    if isinstance(plan, BlockMap) and plan.counts.shape[1] == 1:
        return plan
    for group in groups:
        if head in group.heads:
            return group.block_map.of_heads((group.heads.index(head),))
    known = sorted(known for group in groups for known in group.heads)
    raise ValueError(f"head={head} is not in the map, which has heads {', '.join(map(str, known))}")


def _single(block_map: BlockMap) -> BlockMap:
    """The first sample, on the CPU."""
    return replace(block_map, counts=block_map.counts[:1].cpu(), indices=block_map.indices[:1].cpu())
