"""A block map as a picture: its pairs of tiles, its pairs of frames, and what two query tiles see."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsparse.atomic import replacing

if TYPE_CHECKING:
    import torch

    from vidsparse import BlockMap, VideoGrid

DROPPED, KEPT, QUERY, INK = "#eef1f5", "#1f5f8b", "#f28e2b", "#2b2f36"
MOST_FRAMES = 9  # in a row of the lower half


def draw_map(path: Path, block_map: BlockMap, grid: VideoGrid, title: str) -> None:
    """Write the picture as PNG. `grid` is the video's; the map's own may be the raster line of the same tokens."""
    import torch
    from matplotlib import rc_context
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import FixedLocator, MaxNLocator

    kept = block_map.to_dense()[0, 0]
    owner = block_map.key_tile_of_token
    with rc_context({"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": "#9aa3ad"}):
        row_height = 1.25 * min(2.0, grid.height / grid.width) + 0.85
        figure = Figure(figsize=(12, 6.5 + 2 * row_height), dpi=120, facecolor="white")
        figure.set_layout_engine("constrained", rect=(0.008, 0.004, 0.984, 0.946), w_pad=0.06, h_pad=0.05)
        tile = "x".join(map(str, block_map.query_tile))
        figure.suptitle(title, y=0.985, va="top", fontsize=15, fontweight="bold")
        parts: Any = figure.subfigures(3, 1, height_ratios=(5.9, row_height, row_height))
        top, *rows = parts
        shades = LinearSegmentedColormap.from_list("kept", [DROPPED, "#8fb8d4", KEPT, "#0b2c45"])
        pairs, frames = top.subplots(1, 2)
        pairs.imshow(kept, cmap=LinearSegmentedColormap.from_list("pairs", [DROPPED, KEPT]), vmin=0, vmax=1)
        pairs.set(
            title=f"Pairs of tiles ({tile}): {block_map.density:.1%} kept", xlabel="key tile", ylabel="query tile"
        )
        share = torch.nn.functional.one_hot(owner.view(grid.frames, -1), len(kept)).double().mean(dim=1)
        shown = frames.imshow(share @ kept.double() @ share.T, cmap=shades, vmin=0, vmax=1)
        frames.set(
            title=f"Pairs of latent frames: {block_map.token_density:.1%} of token pairs kept",
            xlabel="key frame",
            ylabel="query frame",
        )
        for axis in (frames.xaxis, frames.yaxis):
            axis.set_major_locator(FixedLocator([0]) if grid.frames == 1 else MaxNLocator(integer=True))
        top.colorbar(shown, ax=frames, label="kept fraction of token pairs", shrink=0.82, pad=0.02)
        middle = (grid.frames // 2, grid.height // 2, grid.width // 2)
        places = {"in the centre": middle, "in the corner": (middle[0], 0, 0)}
        for row, (name, (frame, y, x)) in zip(rows, places.items(), strict=True):
            query = owner.view(grid.view)[frame, y, x]
            seen = kept[query][owner].view(grid.view).float()
            seen[owner.view(grid.view) == query] = 2
            _draw_frames(row, seen, frame, f"What a query tile {name} of latent frame {frame} sees")
        colours = {"query tile": QUERY, "key tiles kept": KEPT, "dropped": DROPPED}
        figure.legend(
            handles=[Patch(facecolor=c, edgecolor="#c5ccd3", label=name) for name, c in colours.items()],
            loc="outside lower center",
            ncols=3,
            frameon=False,
        )
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")


def _draw_frames(row: Any, seen: torch.Tensor, own: int, title: str) -> None:
    """A small picture for each of some frames: float32 [frames, height, width], 0 dropped, 1 kept, 2 the query."""
    from matplotlib.colors import ListedColormap

    row.suptitle(title, fontsize=10.5, x=0.01, ha="left")
    numbers = _spread(len(seen), own)
    for axes, number in zip(row.subplots(1, len(numbers), squeeze=False)[0], numbers, strict=True):
        axes.imshow(seen[number], cmap=ListedColormap([DROPPED, KEPT, QUERY]), vmin=0, vmax=2, interpolation="nearest")
        axes.set_title(f"frame {number}", fontsize=8.5, fontweight="bold" if number == own else "normal")
        axes.set_xlabel(f"{(seen[number] > 0).float().mean():.0%} kept", fontsize=8.5)
        axes.set(xticks=[], yticks=[])


def _spread(frames: int, own: int) -> list[int]:
    """Some frame numbers, evenly spaced over all, with the first, the last and `own` among them."""
    half = (MOST_FRAMES - 1) // 2
    before = {round(own * i / half) for i in range(half)}
    after = {round(own + (frames - 1 - own) * i / half) for i in range(half + 1)}
    return sorted(before | after)
