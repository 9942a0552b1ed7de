"""`vidsparse inspect`: what a pattern does to a video of some size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from vidsparse.cli.files import OVERWRITE_HELP, check_distinct, check_output
from vidsparse.cli.frames import fitted, note_frames
from vidsparse.cli.messages import live_console, note, sampling_bar
from vidsparse.cli.numbers import bytes_text, flops_text, sides_text
from vidsparse.cli.options import FRAMES
from vidsparse.cli.patterns import DENSITY_HELP, PATTERN_HELP, SET_HELP
from vidsparse.generation.models import SHIPPING

if TYPE_CHECKING:
    from vidsparse import BlockMap, ChosenMap, HeadGroup, Pattern, VideoGrid
    from vidsparse.estimation.gpus import Gpu
    from vidsparse.generation.frames import Geometry

MODEL_HELP = (
    f"A family such as wan, wan-5b, hunyuanvideo or ltxvideo; {SHIPPING}; a folder or Hub id; or a class of "
    "transformers."
)
GPU_HELP = "Also predict the time of a layer's attention on H100, H200, B200, A100, L40S, RTX 5090, 4090 or 3090."
RECALL_HELP = (
    "Also sample a dense video, and draw which share of the attention's mass the kept tiles hold, by layer and step."
)
PREDICTED = "bfloat16"  # of the predictions of memory and time
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
    gpu: Annotated[str | None, Option(help=GPU_HELP, show_default="no time")] = None,
    png: Annotated[Path | None, Option(help="Also draw the map.")] = None,
    recall: Annotated[Path | None, Option(help=RECALL_HELP)] = None,
    overwrite: Annotated[bool, Option("--overwrite", help=OVERWRITE_HELP)] = False,
    prompt: Annotated[
        str | None,
        Option(help="Of the video that is sampled for --recall, or for --png.", show_default="one, for shapes"),
    ] = None,
) -> None:
    """Show grid, tile, density and predicted FLOPs of a pattern for a size of video.

    A pattern that chooses tiles by content is drawn as it chose them in the middle layer and step of a short
    generation, which needs the weights of --model: one that ships, a folder or a Hub id. So does --recall.
    """
    from vidsparse import Context, head_groups
    from vidsparse.estimation.gpus import find_gpu
    from vidsparse.generation.frames import check_map, geometry
    from vidsparse.patterns.names import build_pattern

    for path in (png, recall):
        check_output(path, ".png", overwrite=overwrite)
    check_distinct(png, recall)
    chip = None if gpu is None else find_gpu(gpu)
    chosen = build_pattern(pattern, density, settings)
    by_content = chosen.reads_content
    if png is not None and by_content:
        check_weights(model, f"pattern {pattern!r} chooses its tiles by content, so a map", "--png")
    if recall is not None:
        check_weights(model, "recall is measured in a video, so it", "--recall")
    known = geometry(model)
    grid = token_grid(known, frames, height, width)
    check_map(grid, chosen)
    heads, head_dim = heads or known.heads, head_dim or known.head_dim
    planned = chosen.plan(grid, Context(heads=heads))
    groups = head_groups(planned, heads)
    for group in groups:
        name = f"{chosen!r}" if len(groups) == 1 else f"{chosen!r}, heads {', '.join(map(str, group.heads))}"
        _print(grid, group.block_map, name, len(group.heads) * head_dim, chip)
    print(f"tokens of {model}: {known.adapter.layout}")
    if density is not None:
        _note_density(density, groups, heads)
    if png is not None:
        _draw(png, model, pattern, chosen, planned, grid, prompt, (frames, height, width))
    if recall is not None:
        from vidsparse.cli.recall import draw_recall

        draw_recall(recall, model, chosen, prompt, (frames, height, width))


def _draw(
    png: Path,
    model: str,
    pattern: str,
    chosen: Pattern,
    planned: BlockMap | tuple[HeadGroup, ...],
    grid: VideoGrid,
    prompt: str | None,
    size: tuple[int, int, int],
) -> None:
    """Draw the map of a pattern; a pattern that chooses by content chooses it in a video."""
    from vidsparse import BlockMap, plot
    from vidsparse.atomic import replacing

    plan, where = planned, ""
    if chosen.reads_content:
        found, where = _sampled(model, chosen, prompt, size)
        plan, grid = found.plan, found.grid
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


def check_weights(model: str, what: str, option: str) -> None:
    """Refuse a model without weights where only a real video can tell.

    Args:
        what: needs them, the beginning of a sentence. option: that asks for it.

    Raises:
        ValueError: says which models have weights.
    """
    from vidsparse.generation.models import find_model

    try:
        find_model(model)
    except ValueError as error:
        raise ValueError(
            f"{what} needs queries and keys of a real model, and {model!r} is only a size; give --model shapes, or the "
            f"folder or Hub id of a pipeline, or leave out {option}"
        ) from error


def _sampled(model: str, chosen: Pattern, prompt: str | None, size: tuple[int, int, int]) -> tuple[ChosenMap, str]:
    """The map that a pattern chose in the middle layer and step of a generation, and which one it is.

    Of two experts with tokens of different sizes, the middle step is that of the finer one.
    """
    from vidsparse.generation.cascade import step_costs
    from vidsparse.generation.chosen_map import chosen_map
    from vidsparse.generation.transformers import attention_layers

    fine = [step for step, cost in enumerate(step_costs(model, SAMPLED_STEPS)) if cost == 1]
    layer, step = attention_layers(model) // 2, fine[len(fine) // 2]
    pipe, arguments = short_video(model, prompt, size)
    with sampling_bar() as bar:
        found = chosen_map(
            pipe,
            chosen,
            arguments,
            layer=layer,
            step=step,
            on_step=lambda done, steps: bar("choosing tiles", done, steps),
        )
    return found, f", layer {layer}, step {step} of {SAMPLED_STEPS}"


def short_video(model: str, prompt: str | None, size: tuple[int, int, int]) -> tuple[Any, dict[str, Any]]:
    """The pipeline of a model, and the arguments of a generation of `SAMPLED_STEPS`.

    Args:
        prompt: None: the model's example. size: frames, height and width.

    Raises:
        ValueError: there is no prompt, or the pipeline does not take an argument.
    """
    from vidsparse.generation.models import find_model
    from vidsparse.generation.pipeline import load_pipeline

    known = find_model(model)
    prompt = prompt or known.example_prompt
    if prompt is None:
        raise ValueError(f"give a --prompt: queries and keys come from a video that {model} makes")
    arguments = {
        **known.sampling,
        **dict(zip(("num_frames", "height", "width"), size, strict=True)),
        "prompt": known.read_prompt(prompt),
        "num_inference_steps": SAMPLED_STEPS,
    }
    known.check_arguments(arguments)
    with live_console().status(f"loading {model}"):
        pipe = load_pipeline(known)
    return pipe, fitted(pipe, arguments)


def _note_density(asked: float, groups: tuple[HeadGroup, ...], heads: int) -> None:
    """Say where a density cannot be had, such as less than one tile in each row."""
    measured = sum(len(group.heads) * group.block_map.density for group in groups) / heads
    if measured > 1.25 * asked:
        tiles = groups[0].block_map.key_tiles
        note(
            f"density {asked:g} is not possible here: the pattern keeps at least {measured:.4f}, since each query tile "
            f"keeps whole tiles, one of {tiles:,} or more"
        )


def _print(grid: VideoGrid, block_map: BlockMap, pattern: str, channels: int, gpu: Gpu | None = None) -> None:
    import torch
    from rich.console import Console
    from rich.table import Table

    from vidsparse.attention import dense_flops
    from vidsparse.estimation.gpus import UTILIZATION
    from vidsparse.estimation.work import attention_bytes
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
    held = attention_bytes(grid.tokens, channels, getattr(torch, PREDICTED).itemsize)
    listed = block_map.counts.nbytes + block_map.indices.nbytes
    rows["memory"] = (
        f"{bytes_text(held)} of query, key, value and output of a layer in {PREDICTED}; {bytes_text(listed)} of map"
    )
    if gpu is not None:
        seconds = [gpu.seconds(dense / times, held) for times in (1.0, bound(block_map))]
        rows[f"time on {gpu.name}"] = (
            f"{seconds[0] * 1e3:.3g} ms dense, {seconds[1] * 1e3:.3g} ms sparse a layer: a roofline at "
            f"{UTILIZATION:.0%} of {gpu.teraflops:g} TFLOP/s and all of {gpu.terabytes:g} TB/s; no GPU has confirmed it"
        )
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
