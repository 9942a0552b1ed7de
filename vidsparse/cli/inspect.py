"""`vidsparse inspect`: what a pattern does to a video of some size, from shapes alone; no model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from vidsparse.cli.files import check_output
from vidsparse.cli.messages import live_console, note
from vidsparse.cli.patterns import DENSITY_HELP, SET_HELP, build_pattern
from vidsparse.cli.sampling import fit_frames

if TYPE_CHECKING:
    from vidsparse import BlockMap, VideoGrid


@dataclass(frozen=True)
class Family:
    """How a model makes tokens of pixels, and how wide its attention is."""

    frame_stride: int
    vae_stride: int
    patch: int
    heads: int
    head_dim: int

    @property
    def side(self) -> int:
        """Pixels that a token covers in height and in width."""
        return self.vae_stride * self.patch


FAMILIES = {
    "shapes": Family(frame_stride=4, vae_stride=4, patch=1, heads=3, head_dim=64),
    "wan": Family(frame_stride=4, vae_stride=8, patch=2, heads=40, head_dim=128),
    "wan-5b": Family(frame_stride=4, vae_stride=16, patch=2, heads=24, head_dim=128),
}


def inspect(
    model_family: Annotated[str, Option(help=f"{', '.join(FAMILIES)}.")] = "wan",
    frames: Annotated[int, Option(min=1, help="Of the video.")] = 81,
    height: Annotated[int, Option(min=1, help="Pixels.")] = 720,
    width: Annotated[int, Option(min=1, help="Pixels.")] = 1280,
    pattern: Annotated[str, Option(help="See `vidsparse patterns`.")] = "radial",
    density: Annotated[float | None, Option(help=DENSITY_HELP, show_default="of the pattern")] = None,
    settings: Annotated[list[str] | None, Option("--set", help=SET_HELP)] = None,
    heads: Annotated[int | None, Option(min=1, show_default="of the family; wan: 40, as in the 14B model")] = None,
    head_dim: Annotated[int | None, Option(min=1, show_default="of the family")] = None,
    png: Annotated[Path | None, Option(help="Also draw the map.")] = None,
) -> None:
    """Show grid, tile, density and predicted FLOPs of a pattern for a size of video."""
    from vidsparse import Context, head_groups

    check_output(png, ".png")
    if model_family not in FAMILIES:
        raise ValueError(f"model family {model_family!r} is unknown; choose one of {', '.join(FAMILIES)}")
    family = FAMILIES[model_family]
    chosen = build_pattern(pattern, density, settings)
    grid = token_grid(family, frames, height, width)
    heads, head_dim = heads or family.heads, head_dim or family.head_dim
    groups = head_groups(chosen.plan(grid, Context(heads=heads)), heads)
    for group in groups:
        name = f"{chosen!r}" if len(groups) == 1 else f"{chosen!r}, heads {', '.join(map(str, group.heads))}"
        _print(grid, group.block_map, name, len(group.heads) * head_dim)
    if png is not None:
        from vidsparse.cli.map_picture import draw_map

        with live_console().status("drawing the map"):
            block_map = max(groups, key=lambda group: len(group.heads)).block_map
            draw_map(png, block_map, grid, f"{pattern} on {_sides(grid.view)} tokens of {model_family}")
        print(f"wrote {png}")


def token_grid(family: Family, frames: int, height: int, width: int) -> VideoGrid:
    """The grid of a video, with a note where its size does not fit the family's strides.

    Raises:
        ValueError: a frame smaller than one token.
    """
    from vidsparse import VideoGrid

    fitting = fit_frames(frames, family.frame_stride)
    rows, columns = height // family.side, width // family.side
    if not rows or not columns:
        raise ValueError(f"{width}x{height} is smaller than one token, which covers {family.side}x{family.side} pixels")
    if height % family.side or width % family.side:
        used = f"{columns * family.side}x{rows * family.side}"
        note(f"{width}x{height} is no multiple of {family.side}, the side of a token; using {used}")
    return VideoGrid((fitting - 1) // family.frame_stride + 1, rows, columns)


def _print(grid: VideoGrid, block_map: BlockMap, pattern: str, channels: int) -> None:
    from rich.console import Console
    from rich.table import Table

    tile = block_map.query_tile
    # The map's own grid: patterns in raster order see the tokens as one line.
    seen, tiles = block_map.grid, block_map.grid.tiles(tile)
    dense = 4.0 * grid.tokens**2 * channels
    longest, shortest = int(block_map.counts.max()), int(block_map.counts.min())
    rows = {
        "pattern": pattern,
        "grid": f"{_sides(grid.view)} (latent frames x height x width), {grid.tokens:,} tokens",
        "tile": f"{_sides(tile)}, {_sides(tiles)} = {block_map.key_tiles:,} tiles"
        + ("" if seen.view == grid.view else " of the tokens in raster order"),
        "padding": f"{seen.padding(tile):.1%} of the slots of tiles are empty",
        "density": f"{block_map.density:.4f} of tile pairs, {block_map.token_density:.4f} of token pairs",
        "rows": f"a query tile sees {shortest:,} to {longest:,} of {block_map.key_tiles:,} key tiles",
        "attention FLOPs": f"{_flops(dense)} dense, {_flops(dense * block_map.token_density)} sparse a layer",
        "bound": f"attention at most {1 / block_map.token_density:.2f}x faster",
    }
    table = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        table.add_row(f"[bold]{name}", text)
    Console(highlight=False).print(table)


def _sides(sides: tuple[int, int, int]) -> str:
    return "x".join(map(str, sides))


def _flops(number: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if number < 1000:
            return f"{number:.3g} {unit}FLOP"
        number /= 1000
    return f"{number:.3g} PFLOP"
