"""A block map as a picture: its pairs of tiles, its pairs of frames, and what one query tile sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from vidsparse.grid import AnyGrid, Tile, VideoGrid
from vidsparse.pictures.style import DROPPED, INK, KEPT, QUERY, SHADES, colours, legend, new_figure
from vidsparse_kernels.layout import tile_of_token

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_FRAMES = 7  # in the last row
Place = tuple[int, int, int]


class Map(Protocol):
    """What a picture needs of a `BlockMap`."""

    @property
    def query_grid(self) -> AnyGrid: ...
    @property
    def key_grid(self) -> AnyGrid: ...
    @property
    def grid(self) -> VideoGrid: ...
    @property
    def square(self) -> bool: ...
    @property
    def query_tile(self) -> Tile: ...
    @property
    def key_tile(self) -> Tile: ...
    @property
    def density(self) -> float: ...
    @property
    def token_density(self) -> float: ...
    def to_dense(self) -> torch.Tensor: ...


def map_figure(block_map: Map, grid: VideoGrid, title: str, query: Place | None = None) -> Figure:
    """Draw a map of one sample and one head.

    Args:
        block_map: on the CPU, with one grid for queries and keys.
        grid: of the video; the map's own may be the line of the same tokens in raster order.
        title: the density comes below it.
        query: (frame, row, column) of a token: its tile is marked, and what it sees is shown. By default the middle.

    Raises:
        ValueError: a grid of other tokens, or a place outside of it.
    """
    if (grid.video_tokens, grid.prefix) != (block_map.grid.video_tokens, block_map.grid.prefix):
        raise ValueError(f"the map is for {block_map.grid}, so {grid} has other tokens; give the grid of its video")
    query = query or (grid.frames // 2, grid.height // 2, grid.width // 2)
    if len(query) != 3 or not all(0 <= at < size for at, size in zip(query, grid.view, strict=True)):
        raise ValueError(f"query={query} must be (frame, row, column) of a token of {grid}")
    kept = block_map.to_dense()[0, 0]
    rows, columns = (tile_of_token(block_map.grid.view, tile) for tile in (block_map.query_tile, block_map.key_tile))
    tile = int(rows.view(grid.view)[query])
    seen = kept[tile][columns].view(grid.view).float()
    seen[rows.view(grid.view) == tile] = 2
    shape = min(1.6, max(0.4, grid.height / grid.width))
    few = 1.0 * shape * (MOST_FRAMES / min(MOST_FRAMES, grid.frames)) ** 0.5
    heights = (4.2, 2.3, 0.7 + few)[: 3 if grid.frames > 1 else 2]
    share = frame_shares(block_map, grid)
    with new_figure(sum(heights) + 0.8, title) as figure:
        parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
        parts[0].suptitle(_densities(block_map), fontsize=9.5)
        pairs, frames = parts[0].subplots(1, 2)
        _draw_pairs(pairs, kept, block_map, tile)
        _draw_frame_pairs(parts[0], frames, share)
        _draw_slices(parts[1], seen, query)
        if grid.frames > 1:
            _draw_frames(parts[2], seen, query[0])
        marked = f"marked query tile {tile}: {_sides((rows.view(grid.view) == tile).nonzero())}"
        shown = {marked: QUERY, "key tiles that it sees": KEPT, "dropped": DROPPED}
        legend(figure, [(text, {"facecolor": colour}) for text, colour in shown.items()], 3)
    return figure


def _sides(places: torch.Tensor) -> str:
    """Where tokens are, such as "latent frame 4, rows 8 to 15, columns 8 to 15".

    Args:
        places: int64 [tokens, 3].
    """
    parts = []
    for noun, along in zip(("latent frame", "row", "column"), places.unbind(dim=1), strict=True):
        first, last = int(along.min()), int(along.max())
        parts.append(f"{noun} {first}" if first == last else f"{noun}s {first} to {last}")
    return ", ".join(parts)


def _densities(block_map: Map) -> str:
    sides = dict.fromkeys("x".join(map(str, tile)) for tile in (block_map.query_tile, block_map.key_tile))
    return (
        f"density {block_map.density:.1%} of pairs of tiles, {block_map.token_density:.1%} of pairs of tokens; "
        f"tiles of {' and '.join(sides)}"
    )


def _draw_pairs(axes: Any, kept: torch.Tensor, block_map: Map, tile: int) -> None:
    from matplotlib.patches import Rectangle

    axes.imshow(kept, cmap=colours(DROPPED, KEPT), vmin=0, vmax=1, aspect="auto", interpolation="auto")
    axes.add_patch(Rectangle((-0.5, tile - 0.5), kept.shape[1], 1, fill=False, edgecolor=QUERY, linewidth=1.4))
    axes.set(title="Pairs of tiles", xlabel="key tile", ylabel="query tile")
    whole_numbers(axes.xaxis, kept.shape[1])
    whole_numbers(axes.yaxis, kept.shape[0])


def _draw_frame_pairs(part: Any, axes: Any, share: torch.Tensor) -> None:
    shown = axes.imshow(share, cmap=colours(*SHADES), vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set(title="Pairs of latent frames", xlabel="key frame", ylabel="query frame")
    whole_numbers(axes.xaxis, len(share))
    whole_numbers(axes.yaxis, len(share))
    part.colorbar(shown, ax=axes, label="kept share of pairs of tokens", pad=0.02)


def frame_shares(block_map: Map, grid: VideoGrid) -> torch.Tensor:
    """Which share of the pairs of tokens each pair of frames keeps, in sample 0 and head 0: float64 [frames, frames].

    Args:
        grid: of the video, as for `map_figure`.
    """
    kept = block_map.to_dense()[0, 0]
    rows, columns = (
        _shares(tile_of_token(block_map.grid.view, tile), tiles, grid)
        for tile, tiles in zip((block_map.query_tile, block_map.key_tile), kept.shape, strict=True)
    )
    return rows @ kept.double() @ columns.T


def _shares(owner: torch.Tensor, tiles: int, grid: VideoGrid) -> torch.Tensor:
    """Which share of each frame's tokens a tile has: float64 [frames, tiles]."""
    frame = torch.arange(grid.frames).repeat_interleave(grid.height * grid.width)
    found = torch.zeros(grid.frames, tiles, dtype=torch.float64)
    found.index_put_((frame, owner), torch.ones(len(owner), dtype=torch.float64), accumulate=True)
    return found / (grid.height * grid.width)


def _draw_slices(part: Any, seen: torch.Tensor, query: Place) -> None:
    """The frame of the query, and two cuts along time through the query."""
    frame, row, column = query
    own, rows, columns = part.subplots(1, 3)
    _draw_seen(own, seen[frame], title=f"Its own frame, {frame}", xlabel="column", ylabel="row")
    _draw_seen(rows, seen[:, :, column].T, title=f"Across time, in column {column}", xlabel="frame", ylabel="row")
    _draw_seen(columns, seen[:, row].T, title=f"Across time, in row {row}", xlabel="frame", ylabel="column")


def _draw_frames(part: Any, seen: torch.Tensor, own: int) -> None:
    """A small picture of each of some frames."""
    numbers = _spread(len(seen), own)
    part.suptitle("What the marked query tile sees in other frames, and which share of each", fontsize=9.5)
    for axes, number in zip(part.subplots(1, len(numbers), squeeze=False)[0], numbers, strict=True):
        _draw_seen(axes, seen[number], xticks=[], yticks=[], aspect="equal")
        axes.set_title(f"frame {number}", fontsize=8.5, fontweight="bold" if number == own else "normal")
        axes.set_xlabel(f"{(seen[number] > 0).float().mean():.0%}", fontsize=8.5)


def _draw_seen(axes: Any, seen: torch.Tensor, aspect: str = "auto", **names: Any) -> None:
    """float32 [vertical, horizontal]: 0 dropped, 1 kept, 2 the query."""
    from matplotlib.colors import ListedColormap

    shown = ListedColormap([DROPPED, KEPT, QUERY])
    axes.imshow(seen, cmap=shown, vmin=0, vmax=2, interpolation="nearest", aspect=aspect)
    if "xticks" not in names:
        whole_numbers(axes.xaxis, seen.shape[1])
        whole_numbers(axes.yaxis, seen.shape[0])
    axes.set(**names)


def whole_numbers(axis: Any, count: int) -> None:
    """Ticks at whole numbers; a single one at 0."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    axis.set_major_locator(FixedLocator([0]) if count == 1 else MaxNLocator(nbins=6, integer=True))
    axis.set_tick_params(colors=INK, length=2.5)


def _spread(frames: int, own: int) -> list[int]:
    """Some frame numbers, evenly spaced over all, with the first, the last and `own` among them."""
    half = (MOST_FRAMES - 1) // 2
    before = {round(own * i / half) for i in range(half)}
    after = {round(own + (frames - 1 - own) * i / half) for i in range(half + 1)}
    return sorted(before | after)
