"""`vidsparse compare`: the same video dense and sparse, with what was gained and what was lost; or a study of many."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from vidsparse.cli.dry_run import DRY_RUN_HELP, print_plan, say_header
from vidsparse.cli.files import (
    OUTPUTS,
    OVERWRITE_HELP,
    check_distinct,
    check_folder,
    check_output,
    check_suffix,
    free_video,
    write_json,
)
from vidsparse.cli.frames import fitted
from vidsparse.cli.messages import live_console, note, sampling_bar
from vidsparse.cli.options import MACHINE, MANY
from vidsparse.cli.page import comparison_page
from vidsparse.cli.request import OneOrMany, Request
from vidsparse.cli.versions import machine
from vidsparse.cli.video import comment_of

if TYPE_CHECKING:
    from vidsparse.generation.compare import Comparison

WARM_UP = "a step of each and a decoding ran before the clocks"
LPIPS_HELP = "Also measure LPIPS; its weights must be there already."
PROMPTS_HELP = (
    "A study: a .txt file with a prompt on each line, or a .jsonl file with objects such as "
    '{"prompt": "a fox", "name": "fox", "seed": 1}. Each is made dense once, and under every setting.'
)
REPORT_HELP = "Also write a page, FILE.html, with videos, curves and figures inside, also of a study."
OUT_HELP = (
    "With --prompts: the folder of the videos, summary.json and pareto.png. The same command again makes what is "
    "missing; videos that other options made are refused."
)
SETTINGS_HELP = "YAML: a name, then options, such as few: {pattern: radial, density: 0.1}."
SWEEP_HELP = "Settings by value, such as density=0.1,0.2,0.4; again for every combination."
RIVALS_HELP = "Also dense videos in fewer steps, and how far apart two seeds are."
BACKEND_HELP = "Attention that is not sparse: a name of diffusers' backends, such as native or flash."


def compare(
    request: OneOrMany,
    output: Annotated[
        Path | None,
        Option("--output", "-o", help="Both videos in one.", show_default="a new name in outputs"),
    ] = None,
    dense_output: Annotated[Path | None, Option(help="Also write the dense video alone.")] = None,
    sparse_output: Annotated[Path | None, Option(help="Also write the sparse video alone.")] = None,
    strip: Annotated[Path | None, Option(help="Also write a PNG with frames of both.")] = None,
    repeat: Annotated[
        int | None, Option(min=1, help="Samplings of each side, in turns; times are medians.", show_default="2")
    ] = None,
    json_output: Annotated[
        Path | None, Option("--json", help="Also write the comparison as JSON; - is stdout and nothing else there.")
    ] = None,
    report: Annotated[Path | None, Option(help=REPORT_HELP)] = None,
    overwrite: Annotated[bool, Option("--overwrite", help=OVERWRITE_HELP)] = False,
    dry_run: Annotated[bool, Option("--dry-run", help=DRY_RUN_HELP)] = False,
    lpips: Annotated[bool, Option("--lpips", help=LPIPS_HELP)] = False,
    prompts: Annotated[Path | None, Option(help=PROMPTS_HELP, rich_help_panel=MANY)] = None,
    out: Annotated[Path | None, Option(help=OUT_HELP, rich_help_panel=MANY)] = None,
    seeds: Annotated[
        int | None, Option(min=1, help="Videos of each prompt.", rich_help_panel=MANY, show_default="1")
    ] = None,
    settings_file: Annotated[Path | None, Option("--settings", help=SETTINGS_HELP, rich_help_panel=MANY)] = None,
    sweep: Annotated[list[str] | None, Option(help=SWEEP_HELP, rich_help_panel=MANY)] = None,
    rivals: Annotated[bool, Option("--rivals", help=RIVALS_HELP, rich_help_panel=MANY)] = False,
    dense_backend: Annotated[
        str | None, Option(help=BACKEND_HELP, rich_help_panel=MACHINE, show_default="the fastest")
    ] = None,
) -> None:
    """Compare sparse attention with dense: one video from one seed, or with --prompts many under several settings."""
    if dense_backend is not None:
        from vidsparse.generation.backends import dense_backend as on_backend

        with on_backend(dense_backend):  # refuses what is unknown or not installed
            pass
    if lpips:
        from vidsparse.generation.metrics import Lpips

        Lpips.check()
    if prompts is not None:
        from vidsparse.cli.study import study
        from vidsparse.cli.study_run import Asked

        if request.prompt:
            raise ValueError("give a prompt or --prompts, not both")
        one = dict(output=output, dense_output=dense_output, sparse_output=sparse_output, strip=strip, repeat=repeat)
        one |= {"json": json_output, "overwrite": overwrite, "dry_run": dry_run}
        if given := [f"--{name.replace('_', '-')}" for name, value in one.items() if value not in (None, False)]:
            raise ValueError(
                f"{', '.join(given)}: of one video; leave it out beside --prompts, which writes into --out"
            )
        if out is None:
            raise ValueError("--prompts needs --out, the folder that the videos and the summary go to")
        if report is not None and report.parent.resolve() == out.resolve():
            check_folder(out)  # which the study makes
            check_suffix(report, ".html")
        else:
            check_output(report, ".html", overwrite=True)  # like the summary, it is written again
        asked = Asked(prompts, out, settings_file, sweep or [], seeds or 1, rivals, lpips, dense_backend, report)
        study(request, asked)
        return
    many = {"out": out, "seeds": seeds, "settings": settings_file, "sweep": sweep or None, "rivals": rivals}
    if given := [f"--{name}" for name, value in many.items() if value not in (None, False)]:
        raise ValueError(f"{', '.join(given)}: of a study; give --prompts FILE too, or leave it out")
    if not request.prompt:
        raise ValueError("the prompt is empty; say what the video shows, or give --prompts FILE and --out FOLDER")
    to_stdout = json_output == Path("-")
    for path in (output, dense_output, sparse_output):
        check_output(path, ".mp4", overwrite=overwrite)
    check_output(strip, ".png", overwrite=overwrite)
    check_output(report, ".html", overwrite=overwrite)
    check_output(None if to_stdout else json_output, overwrite=overwrite)
    if output is None:
        check_folder(OUTPUTS)
    check_distinct(output, dense_output, sparse_output, strip, json_output, report)
    if dry_run:
        print_plan(request)
        return
    from vidsparse import Dense
    from vidsparse.generation.backends import fastest_backend
    from vidsparse.generation.compare import compare as run
    from vidsparse.generation.metrics import Lpips
    from vidsparse.generation.video import default_scale, side_by_side, to_pixels, write_strip, write_video
    from vidsparse.patterns.names import name_of
    from vidsparse.webpage.render import write_page

    pattern, correction, arguments = request.checked()
    if isinstance(pattern, Dense):
        note("comparing dense with itself")
    say_header(request, pattern, arguments)
    pipe, correction = request.load(pattern, correction)
    arguments = fitted(pipe, arguments)
    whole = arguments | request.pixels(arguments)
    if dense_backend is None:
        with live_console().status("choosing the fastest dense attention"):
            dense_backend, _ = fastest_backend(pipe, whole)
    with sampling_bar() as bar:
        both = run(
            pipe,
            pattern,
            whole,
            correction=correction,
            impl=request.impl,
            seed=request.seed,
            repeat=repeat or 2,
            backend=dense_backend,
            lpips=Lpips() if lpips else None,
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
        outputs, videos = {"dense": dense_output, "sparse": sparse_output}, {}
        with TemporaryDirectory() as folder:
            for (side, path), own, comment in zip(outputs.items(), pixels, comments, strict=True):
                if path is not None or report is not None:
                    videos[side] = path or Path(folder) / f"{side}.mp4"
                    write_video(videos[side], own, fps, comment)
            if report is not None:
                write_page(report, comparison_page(both, request, (pattern, correction), videos, result))
        if strip is not None:
            rows = {"dense": dense.frames, name: sparse.frames}
            write_strip(strip, rows, worst=both.difference.worst_frame)
    if to_stdout:
        print(json.dumps(result, indent=2, allow_nan=False))
        return
    if json_output is not None:
        write_json(json_output, result)
    _print(result, name, request)
    files = output, dense_output, sparse_output, strip, json_output, report
    written = [str(path) for path in files if path is not None]
    print("wrote", ", ".join(written))


def _result(both: Comparison, request: Request) -> dict[str, Any]:
    """The comparison as plain data."""
    dense, sparse = both.dense[0], both.sparse[0]
    sides = {
        side: {
            **{clock: both.seconds(side, clock) for clock in both.clocks},
            "spread": {clock: both.spread(side, clock) for clock in both.clocks},
            "peak_bytes": both.peak_bytes(side),
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
        "dense_backend": both.backend,
        **asdict(both.difference),
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
    backend = f"dense attention: {result['dense_backend']}"
    loras = [f"both with LoRA {name}, {recipe.summary}" for name, recipe in request.loras.items()]
    table = Table(
        "", "dense", "sparse", "ratio", title=f"dense and {name}", caption="; ".join((WARM_UP, times, backend, *loras))
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
    if (worst := result["worst_frame"]) is not None:
        table.add_row(f"PSNR of the worst frame ({worst})", "", f"{result['frame_psnr'][worst]:.1f} dB", "")
    shown = {"ssim": "SSIM to dense", "ms_ssim": "MS-SSIM to dense", "flicker": "flicker", "lpips": "LPIPS to dense"}
    for measure, title in shown.items():
        if (value := result[measure]) is not None:
            table.add_row(title, "", f"{value:.4f}" if measure == "flicker" else f"{value:.3f}", "")
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
