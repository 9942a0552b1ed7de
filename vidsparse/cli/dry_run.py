"""What a request will run, from the settings of the model alone: a line before it runs, or all with `--dry-run`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Any

from vidsparse.cli.frames import note_frames
from vidsparse.cli.messages import counted, say
from vidsparse.cli.numbers import bytes_text, flops_text, sides_text
from vidsparse.cli.request import Request

if TYPE_CHECKING:
    from vidsparse import Pattern
    from vidsparse.generation.forecast import Forecast

DRY_RUN_HELP = "Show what would run; load no weights and write nothing."


def say_header(request: Request, pattern: Pattern, arguments: dict[str, Any]) -> None:
    """Print the header of a request."""
    say(header(request, pattern, arguments))


def header(request: Request, pattern: Pattern, arguments: dict[str, Any]) -> str:
    """A line that says what will be sampled, where, and how much faster attention can be at most."""
    from vidsparse.patterns.names import name_of

    what = [name_of(pattern)]
    if (found := request.forecast(pattern, arguments)) is not None:
        what.insert(0, f"{found.grid.tokens:,} tokens")
        if found.sparse_steps:
            what[1] += f" of density {found.density:.2f}"
            what.append(f"{found.sparse_steps} of {len(found.sparse)} steps sparse")
            what.append(f"attention at most {found.bound:.2f}x faster")
    device, dtype = request.place
    return f"{request.model} on {device}, {dtype}: {', '.join(what)}"


def print_plan(request: Request) -> None:
    """Print the resolved settings of a request and what it would cost, after all checks that need no weights.

    Raises: see `Request.checked`.
    """
    import torch
    from rich.console import Console
    from rich.table import Table

    from vidsparse.generation.forecast import weight_bytes
    from vidsparse.generation.frames import geometry
    from vidsparse.generation.pipeline import check_loras

    pattern, correction, arguments = request.checked()
    if request.lora:
        check_loras(request.lora, request.known.transformers)
    known, (device, dtype) = request.known, request.place
    frames, height, width = request.size(arguments)
    found = request.forecast(pattern, arguments)
    made = frames if found is None else found.frames
    guidance = arguments.get("guidance_scale", known.default("guidance_scale"))
    weights = weight_bytes(request.model, getattr(torch, dtype))
    held = ", ".join(f"{bytes_text(size)} of {name}" for name, size in weights.items())
    positions, sampler = request.positions or request.recipe.positions, request.sampler or request.recipe.sampler
    rows: list[tuple[str, Any]] = [
        ("model", f"{request.model}, {known.pipeline_class.__name__}"),
        ("device", f"{device}, {dtype}" + (", offloaded" if request.offload else "")),
        ("weights", f"{held}; text encoder and VAE are not counted"),
        ("prompt", arguments["prompt"]),
        *([("negative prompt", arguments["negative_prompt"])] if arguments.get("negative_prompt") else []),
        ("video", f"{made or '?'} frames of {width or '?'}x{height or '?'}, {request.frame_rate} a second"),
        *(
            (name.replace("_", " "), f"{file.path}, {file.width}x{file.height}")
            for name, file in request.plan.files.items()
        ),
        ("sampling", f"{_steps(request)}, guidance {guidance}, seed {request.seed}"),
        *([("sampler", sampler)] if sampler else []),
        *([("positions", positions)] if positions else []),
        *(("LoRA", f"{name}: {recipe.summary}") for name, recipe in request.loras.items()),
        *([("preset", request.chosen.name)] if request.chosen else []),
        *([("profile", request.profile)] if request.profile else []),
        ("pattern", repr(pattern)),
        ("correction", "none" if correction is None else repr(correction)),
    ]
    if found is None:
        rows.append(("cost", "unknown: the pipeline decides the size; give --frames, --height and --width"))
    else:
        note_frames(frames or found.frames, geometry(request.model))
        rows += _cost(found)
    table = Table.grid(padding=(0, 2))
    for name, text in rows:
        table.add_row(f"[bold]{name}", str(text).replace("[", r"\["))
    Console(highlight=False).print(table)
    print("nothing was loaded: leave out --dry-run to run it")


def _steps(request: Request) -> str:
    """The steps that run, and of how many where a strength leaves out the first."""
    run, asked = request.denoising_steps, request.asked_steps
    return counted(run, "step") if run == asked else f"the last {run} of {asked} steps"


def _cost(found: Forecast) -> list[tuple[str, str]]:
    """Title and text of what a forecast says."""
    steps = len(found.sparse)
    rows = [
        ("grid", f"{sides_text(found.grid.view)} (latent frames x height x width), {found.grid.tokens:,} tokens"),
        ("dense steps", f"{ranges(found.dense_steps)}: {len(found.dense_steps)} of {steps}"),
    ]
    if found.skipped:
        rows.append(("skipped steps", f"{ranges(found.skipped)}: {len(found.skipped)} of {steps}"))
    if not found.sparse_steps:
        return [*rows, ("attention FLOPs", f"{flops_text(found.dense_flops)} a call of the transformer, all dense")]
    sparse = found.dense_flops * (1 - max(found.sparse) / found.layers * (1 - found.token_density))
    return [
        *rows,
        ("sparse steps", f"{found.sparse_steps} of {steps}, {max(found.sparse)} of {found.layers} layers in each"),
        ("density", f"{found.density:.4f} of tile pairs, {found.token_density:.4f} of token pairs, in sparse layers"),
        (
            "attention FLOPs",
            f"{flops_text(found.dense_flops)} a dense call of the transformer, {flops_text(sparse)} a sparse one",
        ),
        ("saved", f"{found.saved:.0%} of attention's FLOPs over all steps"),
        ("bound", f"attention at most {found.bound:.2f}x faster over all steps"),
    ]


def ranges(numbers: Iterable[int]) -> str:
    """Rising whole numbers in short, such as "0-3, 9"; "none" without any."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs) or "none"
