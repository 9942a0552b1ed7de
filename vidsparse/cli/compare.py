"""`vidsparse compare`: the same video dense and sparse, side by side, with what was gained and what was lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from vidsparse.cli.dry_run import DRY_RUN_HELP, print_plan, say_header
from vidsparse.cli.files import (
    OUTPUTS,
    OVERWRITE_HELP,
    check_distinct,
    check_folder,
    check_output,
    free_video,
    write_json,
)
from vidsparse.cli.frames import fitted
from vidsparse.cli.messages import live_console, note, sampling_bar
from vidsparse.cli.request import Request
from vidsparse.cli.versions import machine
from vidsparse.cli.video import comment_of

if TYPE_CHECKING:
    from vidsparse.generation.compare import Comparison

WARM_UP = "a step of each and a decoding ran before the clocks"


def compare(
    request: Request,
    output: Annotated[
        Path | None,
        Option("--output", "-o", help="Both videos in one.", show_default="a new name in outputs"),
    ] = None,
    dense_output: Annotated[Path | None, Option(help="Also write the dense video alone.")] = None,
    sparse_output: Annotated[Path | None, Option(help="Also write the sparse video alone.")] = None,
    strip: Annotated[Path | None, Option(help="Also write a PNG with frames of both.")] = None,
    repeat: Annotated[int, Option(min=1, help="Sample each so often, by turns; times are medians.")] = 2,
    json_output: Annotated[
        Path | None, Option("--json", help="Also write the comparison as JSON; - is stdout and nothing else there.")
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help=OVERWRITE_HELP)] = False,
    dry_run: Annotated[bool, Option("--dry-run", help=DRY_RUN_HELP)] = False,
) -> None:
    """Generate a video dense and sparse from one seed, and compare the two."""
    to_stdout = json_output == Path("-")
    for path in (output, dense_output, sparse_output):
        check_output(path, ".mp4", overwrite=overwrite)
    check_output(strip, ".png", overwrite=overwrite)
    check_output(None if to_stdout else json_output, overwrite=overwrite)
    if output is None:
        check_folder(OUTPUTS)
    check_distinct(output, dense_output, sparse_output, strip, json_output)
    if dry_run:
        print_plan(request)
        return
    from vidsparse import Dense
    from vidsparse.generation.compare import compare as run
    from vidsparse.generation.video import default_scale, side_by_side, to_pixels, write_strip, write_video
    from vidsparse.patterns.names import name_of

    pattern, correction, arguments = request.checked()
    if isinstance(pattern, Dense):
        note("comparing dense with itself")
    say_header(request, pattern, arguments)
    pipe, correction = request.load(pattern, correction)
    arguments = fitted(pipe, arguments)
    with sampling_bar() as bar:
        both = run(
            pipe,
            pattern,
            arguments | request.pixels(arguments),
            correction=correction,
            impl=request.impl,
            seed=request.seed,
            repeat=repeat,
            on_step=bar,
        )
    dense, sparse = both.dense[0], both.sparse[0]
    name = f"{name_of(pattern)}, density {sparse.report.density:.2f}"
    output = output or free_video(request.prompt, request.seed, "-compare", overwrite=overwrite)
    with live_console().status("judging and writing"):
        result = _result(both, request) | {"arguments": request.resolved(arguments), **machine(*request.place)}
        fps, scale = request.frame_rate, request.scale or default_scale(dense.frames)
        pixels = to_pixels(dense.frames, scale), to_pixels(sparse.frames, scale)
        comments = [comment_of(side, request, arguments) for side in (dense, sparse)]
        write_video(output, side_by_side(*pixels, ("dense", name)), fps, comments[1])
        for path, own, comment in zip((dense_output, sparse_output), pixels, comments, strict=True):
            if path is not None:
                write_video(path, own, fps, comment)
        if strip is not None:
            write_strip(strip, {"dense": dense.frames, name: sparse.frames})
    if to_stdout:
        print(json.dumps(result, indent=2, allow_nan=False))
        return
    if json_output is not None:
        write_json(json_output, result)
    _print(result, name, request)
    written = [str(path) for path in (output, dense_output, sparse_output, strip, json_output) if path is not None]
    print("wrote", ", ".join(written))


def _result(both: Comparison, request: Request) -> dict[str, Any]:
    """The comparison as plain data."""
    dense, sparse = both.dense[0], both.sparse[0]
    sides = {
        side: {
            **{clock: both.seconds(side, clock) for clock in both.clocks},
            "spread": {clock: both.spread(side, clock) for clock in both.clocks},
            "judge": request.known.judge(one.frames, request.prompt),
        }
        for side, one in (("dense", dense), ("sparse", sparse))
    }
    report = sparse.report.to_dict()
    del report["calls"], report["seconds"]
    return {
        "prompt": request.prompt,
        "model": request.model,
        "loras": {name: recipe.to_data() for name, recipe in request.loras.items()},
        "seed": request.seed,
        **dict(zip(("frames", "height", "width"), dense.frames.shape, strict=False)),
        "dense": sides["dense"],
        "sparse": {**sides["sparse"], **report},
        "speedup": {clock: both.speedup(clock) for clock in both.clocks},
        "psnr": both.psnr,
        "ssim": both.ssim,
        "repeat": len(both.dense),
        "warm_up": WARM_UP,
    }


def _print(result: dict[str, Any], name: str, request: Request) -> None:
    from rich.console import Console
    from rich.table import Table

    from vidsparse.generation.compare import CLOCKS

    dense, sparse, repeat = result["dense"], result["sparse"], result["repeat"]
    times = (
        "each sampled once: --repeat 3 shows how far times vary" if repeat == 1 else f"medians of {repeat}, by turns"
    )
    loras = [f"both with LoRA {name}, {recipe.summary}" for name, recipe in request.loras.items()]
    table = Table(
        "", "dense", "sparse", "ratio", title=f"dense and {name}", caption="; ".join((WARM_UP, times, *loras))
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for clock, speedup in result["speedup"].items():
        table.add_row(CLOCKS[clock], _time(dense, clock), _time(sparse, clock), f"{speedup:.2f}x")
    table.add_section()
    table.add_row("density of tile pairs", "1", f"{sparse['density']:.3f}", "")
    table.add_row("density of token pairs", "1", f"{sparse['token_density']:.3f}", "")
    table.add_row("attention FLOPs", "1", f"{1 - sparse['flops_saved']:.3f}", "")
    calls = sparse["sparse_calls"], sparse["sparse_calls"] + sparse["dense_calls"]
    table.add_row("sparse attention calls", "0", f"{calls[0]} of {calls[1]}", "")
    table.add_section()
    psnr = "identical" if result["psnr"] is None else f"{result['psnr']:.1f} dB"
    table.add_row("PSNR to dense", "", psnr, "")
    table.add_row("SSIM to dense", "", f"{result['ssim']:.3f}", "")
    if dense["judge"] is not None:
        table.add_section()
        for attribute, value in dense["judge"].items():
            table.add_row(f"judge: {attribute}", f"{value:.2f}", f"{sparse['judge'][attribute]:.2f}", "")
    Console(highlight=False).print(table)
    for text in sparse["advice"]:
        note(text)


def _time(side: dict[str, Any], clock: str) -> str:
    """The median, and from when to when it varied if there is more than one time."""
    low, high = side["spread"][clock]
    return f"{side[clock]:.2f}" if low == high else f"{side[clock]:.2f} ({low:.2f}-{high:.2f})"
