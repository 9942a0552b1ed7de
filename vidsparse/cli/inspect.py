"""`vidsparse inspect`: what a pattern does to a video of some size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from vidsparse.cli.files import OVERWRITE_HELP, check_output
from vidsparse.cli.frames import fitted, note_frames
from vidsparse.cli.messages import live_console, note, sampling_bar
from vidsparse.cli.options import FRAMES
from vidsparse.cli.patterns import DENSITY_HELP, PATTERN_HELP, SET_HELP

if TYPE_CHECKING:
    from vidsparse import BlockMap, ChosenMap, HeadGroup, Pattern, VideoGrid
    from vidsparse.generation.frames import Geometry

MODEL_HELP = (
    "A family such as wan, wan-5b, hunyuanvideo or ltxvideo; 'shapes'; a folder or Hub id; or a class of transformers."
)
EMPTY = 0.25  # of the slots of tiles: with more, another tile is worth a try
SAMPLED_STEPS = 10  # of the generation whose middle step is drawn


def inspect(
    model: Annotated[str, Option("--model", "--model-family", help=MODEL_HELP)] = "wan",
    frames: Annotated[int, Option(*FRAMES, min=1, help="Of the video.")] = 81,
    height: Annotated[int, Option(min=1, help="Pixels.")] = 720,
    width: Annotated[int, Option(min=1, help="Pixels.")] = 1280,
    pattern: Annotated[str, Option(help=PATTERN_HELP)] = "radial",
    density: Annotated[float | None, Option(help=DENSITY_HELP, show_default="of the pattern")] = None,
    settings: Annotated[list[str] | None, Option("--set", help=SET_HELP)] = None,
    heads: Annotated[int | None, Option(min=1, show_default="of the model; wan: 40, as in the 14B model")] = None,
    head_dim: Annotated[int | None, Option(min=1, show_default="of the model")] = None,
    png: Annotated[Path | None, Option(help="Also draw the map.")] = None,
    overwrite: Annotated[bool, Option("--overwrite", help=OVERWRITE_HELP)] = False,
    prompt: Annotated[
        str | None,
        Option(help="Of the video in which a pattern chooses the map that is drawn.", show_default="one, for shapes"),
    ] = None,
) -> None:
    """Show grid, tile, density and predicted FLOPs of a pattern for a size of video.

    A pattern that chooses tiles by content is drawn as it chose them in the middle layer and step of a short
    generation, which needs the weights of --model: 'shapes', a folder or a Hub id.
    """
    from vidsparse import BlockMap, Context, head_groups, plot
    from vidsparse.atomic import replacing
    from vidsparse.generation.frames import check_map, geometry
    from vidsparse.patterns.names import build_pattern

    check_output(png, ".png", overwrite=overwrite)
    chosen = build_pattern(pattern, density, settings)
    by_content = chosen.reads_content
    if png is not None and by_content:
        _check_drawable(model, pattern)
    known = geometry(model)
    grid = token_grid(known, frames, height, width)
    check_map(grid, chosen)
    heads, head_dim = heads or known.heads, head_dim or known.head_dim
    planned = chosen.plan(grid, Context(heads=heads))
    groups = head_groups(planned, heads)
    for group in groups:
        name = f"{chosen!r}" if len(groups) == 1 else f"{chosen!r}, heads {', '.join(map(str, group.heads))}"
        _print(grid, group.block_map, name, len(group.heads) * head_dim)
    print(f"tokens of {model}: {known.adapter.layout}")
    if density is not None:
        _note_density(density, groups, heads)
    if png is None:
        return
    plan, where = planned, ""
    if by_content:
        found, where = _sampled(model, chosen, prompt, (frames, height, width))
        plan = found.plan
    head = 0 if isinstance(plan, BlockMap) else max(plan, key=lambda group: len(group.heads)).heads[0]
    with live_console().status("drawing the map"), replacing(png) as temporary:
        title = f"{pattern} on {grid.sides} tokens of {model}{where}, head {head}"
        plot(plan, grid=grid, head=head, title=title).savefig(temporary, format="png", dpi=150)
    print(f"wrote {png}")


def token_grid(known: Geometry, frames: int, height: int, width: int) -> VideoGrid:
    """The grid of a video, with a note where its size does not fit the model.

    Raises:
        ValueError: a frame smaller than one token.
    """
    grid = known.grid(frames, height, width)
    note_frames(frames, known)
    if height % known.side or width % known.side:
        used = f"{grid.width * known.side}x{grid.height * known.side}"
        note(f"{width}x{height} is not a multiple of {known.side}, the side of a token; using {used}")
    return grid


def _check_drawable(model: str, pattern: str) -> None:
    """Refuse to draw what only a real generation can tell.

    Raises:
        ValueError: says what can be drawn.
    """
    from vidsparse.generation.models import find_model

    try:
        find_model(model)
    except ValueError as error:
        raise ValueError(
            f"pattern {pattern!r} chooses its tiles by content, so a map needs queries and keys of a real model, and "
            f"{model!r} is only a size; give --model shapes, or the folder or Hub id of a pipeline, or leave out --png"
        ) from error


def _sampled(model: str, chosen: Pattern, prompt: str | None, size: tuple[int, int, int]) -> tuple[ChosenMap, str]:
    """The map that a pattern chose in the middle layer and step of a generation, and which one it is."""
    from vidsparse.generation.chosen_map import chosen_map
    from vidsparse.generation.models import find_model
    from vidsparse.generation.pipeline import load_pipeline
    from vidsparse.generation.transformers import attention_layers

    known = find_model(model)
    prompt = prompt or known.example_prompt
    if prompt is None:
        raise ValueError(f"give a --prompt: the map is drawn as {model} chooses it in a video")
    arguments = {
        **known.sampling,
        **dict(zip(("num_frames", "height", "width"), size, strict=True)),
        "prompt": known.read_prompt(prompt),
        "num_inference_steps": SAMPLED_STEPS,
    }
    known.check_arguments(arguments)
    layer, step = attention_layers(model) // 2, SAMPLED_STEPS // 2
    with live_console().status(f"loading {model}"):
        pipe = load_pipeline(known)
    with sampling_bar() as bar:
        found = chosen_map(
            pipe,
            chosen,
            fitted(pipe, arguments),
            layer=layer,
            step=step,
            on_step=lambda done, steps: bar("choosing tiles", done, steps),
        )
    return found, f", layer {layer}, step {step} of {SAMPLED_STEPS}"


def _note_density(asked: float, groups: tuple[HeadGroup, ...], heads: int) -> None:
    """Say where a density cannot be had, such as less than one tile in each row."""
    measured = sum(len(group.heads) * group.block_map.density for group in groups) / heads
    if measured > 1.25 * asked:
        tiles = groups[0].block_map.key_tiles
        note(
            f"density {asked:g} is not possible here: the pattern keeps at least {measured:.4f}, since each query tile "
            f"keeps whole tiles, one of {tiles:,} or more"
        )


def _print(grid: VideoGrid, block_map: BlockMap, pattern: str, channels: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from vidsparse.attention import dense_flops
    from vidsparse.generation.forecast import bound

    seen = block_map.grid  # patterns in raster order see the tokens as one line
    tiles = {"tile": block_map.query_tile}
    if block_map.key_tile != block_map.query_tile:
        tiles = {"query tile": block_map.query_tile, "key tile": block_map.key_tile}
    empty = {name: 1 - 1 / (1 + seen.padding(tile)) for name, tile in tiles.items()}
    dense = dense_flops(grid.tokens, channels)
    longest, shortest = int(block_map.counts.max()), int(block_map.counts.min())
    rows = {
        "pattern": pattern,
        "grid": f"{sides_text(grid.view)} (latent frames x height x width), {grid.tokens:,} tokens",
        **{
            name: f"{sides_text(tile)}, {sides_text(seen.tiles(tile))} = {math.prod(seen.tiles(tile)):,} tiles"
            + ("" if seen.view == grid.view else " of the tokens in raster order")
            for name, tile in tiles.items()
        },
        "padding": ", ".join(f"{share:.1%} of the slots of {name}s are empty" for name, share in empty.items()),
        "density": f"{block_map.density:.4f} of tile pairs, {block_map.token_density:.4f} of token pairs",
        "rows": f"a query tile sees {shortest:,} to {longest:,} of {block_map.key_tiles:,} key tiles",
        "attention FLOPs": f"{flops_text(dense)} dense, {flops_text(dense * block_map.token_density)} sparse a layer",
        "bound": f"attention at most {bound(block_map):.2f}x faster, with the empty slots of tiles computed too",
    }
    table = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        table.add_row(f"[bold]{name}", text)
    Console(highlight=False).print(table)
    for name, share in empty.items():
        if share > EMPTY:
            note(
                f"{share:.0%} of the slots of {name}s are empty, and kernels compute them too; another tile may fit "
                "better"
            )


def sides_text(sides: tuple[int, int, int]) -> str:
    """The sides of a box, such as "4x8x8"."""
    return "x".join(map(str, sides))


def flops_text(number: float) -> str:
    """Floating-point operations with a unit, such as "1.5 TFLOP"."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 1000:
            return f"{number:.3g} {unit}FLOP"
        number /= 1000
    return f"{number:.3g} PFLOP"
