"""`vidsparse estimate`: what sparse attention would gain a model, predicted without weights, download or GPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from vidsparse.cli.attention import PATTERN
from vidsparse.cli.inspect import token_grid
from vidsparse.cli.messages import counted, note
from vidsparse.cli.numbers import bytes_text, flops_text, height_and_width, sides_text
from vidsparse.cli.options import DENSE_STEPS_HELP, DTYPE_HELP, FRAMES, STEPS, read_dtype
from vidsparse.cli.patterns import DENSITY_HELP, SET_HELP

if TYPE_CHECKING:
    from vidsparse import Estimate, Pattern
    from vidsparse.estimation.published import KnownModel

MODEL_HELP = "A name or Hub id of the list, or the folder of a diffusers pipeline. Without it: the list."
GPU_HELP = "Also predict seconds on H100, H200, B200, A100, L40S, RTX 5090, RTX 4090 or RTX 3090."
OF_MODEL = "published for the model"
UTILIZATION_HELP = "With --gpu: the share of its peak that is reached."
CAVEAT = (
    "A prediction from FLOPs that no GPU has confirmed. Speed-ups are bounds: choosing tiles, corrections, norms and "
    "all beside the transformer cost time too. `vidsparse bench` measures attention on this machine."
)


def estimate(
    model: Annotated[str | None, Argument(help=MODEL_HELP, show_default=False)] = None,
    frames: Annotated[int | None, Option(*FRAMES, min=1, help="Of the video.", show_default=OF_MODEL)] = None,
    size: Annotated[str | None, Option(help="WIDTHxHEIGHT in pixels, such as 832x480.", show_default=OF_MODEL)] = None,
    steps: Annotated[int | None, Option(*STEPS, min=1, help="Denoising steps.", show_default=OF_MODEL)] = None,
    preset: Annotated[
        str | None, Option(help="See `vidsparse presets`.", show_default="that of the model, and Radial at 0.2 and 0.4")
    ] = None,
    pattern: Annotated[str | None, Option(help="See `vidsparse patterns`.", show_default=PATTERN)] = None,
    density: Annotated[float | None, Option(help=DENSITY_HELP, show_default="of the pattern")] = None,
    settings: Annotated[list[str] | None, Option("--set", help=SET_HELP)] = None,
    dense_steps: Annotated[
        int | None, Option(min=0, help="Dense steps at the start, for a pattern.", show_default=DENSE_STEPS_HELP)
    ] = None,
    dtype: Annotated[str, Option(help=DTYPE_HELP, callback=read_dtype)] = "bfloat16",
    gpu: Annotated[str | None, Option(help=GPU_HELP, show_default="no seconds")] = None,
    utilization: Annotated[float, Option(help=UTILIZATION_HELP)] = 0.5,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Predict what sparse attention would gain a model: time and memory, without weights or a download."""
    if model is None:
        _list(as_json)
        return
    from vidsparse import estimate as predict
    from vidsparse.estimation.known import known_model

    known = known_model(model)
    height, width = height_and_width(size) if size is not None else (None, None)
    found = predict(
        model,
        _asked(known, steps, preset, pattern, density, settings, dense_steps),
        frames=frames,
        height=height,
        width=width,
        steps=steps,
        dtype=dtype,
        gpu=gpu,
        utilization=utilization,
    )
    token_grid(found.geometry, found.frames, found.height, found.width)
    if as_json:
        print(json.dumps(found.to_dict()))
        return
    _print(found)


def _asked(
    known: KnownModel,
    steps: int | None,
    preset: str | None,
    pattern: str | None,
    density: float | None,
    settings: list[str] | None,
    dense_steps: int | None,
) -> dict[str, Pattern] | None:
    """The settings that options ask for; None: the usual ones.

    Raises:
        ValueError: an unknown preset or pattern, or options that exclude each other.
    """
    from vidsparse import StepSchedule, preset as named
    from vidsparse.generation.dense_steps import default_dense_steps
    from vidsparse.patterns.names import build_pattern

    changed = {"--pattern": pattern, "--density": density, "--set": settings or None, "--dense-steps": dense_steps}
    given = [option for option, value in changed.items() if value is not None]
    if preset is not None:
        if given:
            raise ValueError(f"--preset {preset} has a pattern and a schedule of its own; leave out {', '.join(given)}")
        return {preset: named(preset).pattern}
    if not given:
        return None
    inner = build_pattern(pattern or PATTERN, density, settings)
    first = default_dense_steps(steps or known.steps) if dense_steps is None else dense_steps
    return {pattern or PATTERN: StepSchedule(inner, first) if first else inner}


def _list(as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from vidsparse.estimation.published import MODELS

    if as_json:
        print(json.dumps([{"name": known.name, "models": known.models, "source": known.source} for known in MODELS]))
        return
    table = Table("model", "parameters", "video", "Hub ids", title="Models that estimate knows", box=None)
    for column in table.columns:
        column.no_wrap, column.overflow = column.header != "Hub ids", "fold"
    for known in MODELS:
        experts = f"{known.experts} x " if known.experts > 1 else ""
        size = "" if known.billions is None else f"{experts}{known.billions:g} billion"
        frames, height, width = known.video
        video = f"{frames} x {width}x{height}"
        table.add_row(known.name, size, video, "\n".join(known.models))
    console = Console()
    console.print(table)
    console.print("The folder of a diffusers pipeline works too: vidsparse estimate FOLDER", highlight=False)


def _print(found: Estimate) -> None:
    from rich.console import Console
    from rich.table import Table

    model, grid, of_call = found.model, found.settings[0].forecast.grid, found.work
    parts = {
        "attention among video tokens": of_call.attention,
        "attention with text": of_call.text,
        "projections of self-attention": of_call.projections,
        "feed-forward and other linear layers": of_call.others,
    }
    shares = ", ".join(f"{flops / of_call.total:.1%} {name}" for name, flops in parts.items())
    experts = f"{model.experts} transformers of " if model.experts > 1 else ""
    layers = counted(found.settings[0].forecast.layers, "layer")
    rows = {
        "model": f"{model.name}, {experts}{found.parameters / 1e9:.3g} billion parameters, {layers} of "
        f"{found.geometry.heads} heads of {found.geometry.head_dim}",
        "numbers from": model.source,
        "video": f"{found.frames} frames of {found.width}x{found.height}, {sides_text(grid.view)} = {grid.tokens:,} "
        f"tokens, {counted(found.steps, 'step')} of {counted(model.calls, 'call')}",
        "work": f"{flops_text(of_call.total)} a dense call: {shares}",
        "memory": f"{bytes_text(found.weights)} of weights in {found.dtype}, {bytes_text(found.activations)} of "
        "query, key, value and output of one layer; text encoder, VAE and other activations are not counted",
    }
    if found.gpu is not None:
        rows["GPU"] = (
            f"{found.gpu.name} at {found.utilization:.0%} of {found.gpu.teraflops:g} TFLOP/s ({found.gpu.source}); "
            f"weights read at {found.gpu.terabytes:g} TB/s where that takes longer"
        )
    facts = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        facts.add_row(f"[bold]{name}", text.replace("[", r"\["))
    headings = ["setting", "density", "sparse steps", "FLOPs saved", "attention", "denoising"]
    table = Table(
        *headings,
        *(["seconds"] if found.gpu else []),
        title="FLOPs of attention saved; attention and denoising at most so many times faster",
    )
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for one in found.settings:
        cells = [f"{one.forecast.density:.2f}", f"{one.forecast.sparse_steps} of {found.steps}"]
        cells += [f"{one.forecast.saved:.0%}", f"{one.attention:.2f}x", f"{one.denoising:.2f}x"]
        table.add_row(
            one.name,
            *cells,
            *([] if one.seconds is None else [f"{one.seconds:,.0f}" if one.seconds >= 10 else f"{one.seconds:.2g}"]),
        )
    console = Console(highlight=False)
    console.print(facts)
    console.print(table)
    console.print(CAVEAT)
    if found.gpu is not None and found.weights > found.gpu.gigabytes * 1e9:
        note(f"the weights do not fit the {found.gpu.gigabytes} GB of one {found.gpu.name}: offload or quantise them")
