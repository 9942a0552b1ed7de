"""`vidsparse generate`: a video from a prompt, or many from a file of prompts, under a pattern."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from vidsparse.cli.dry_run import DRY_RUN_HELP, print_plan, say_header
from vidsparse.cli.files import OUTPUTS, OVERWRITE_HELP, check_distinct, check_folder, check_output, free_video
from vidsparse.cli.frames import fitted
from vidsparse.cli.messages import counted, is_first
from vidsparse.cli.options import MACHINE, MANY
from vidsparse.cli.request import OneOrMany, Request
from vidsparse.cli.video import report_of, sample_video, scale_of, write_with_report

if TYPE_CHECKING:
    from vidsparse.cli.page import Attention
    from vidsparse.generation.sample import Sample

PROMPTS_HELP = (
    "Many videos: a .txt file with a prompt on each line, or a .jsonl file with objects such as "
    '{"prompt": "a fox", "name": "fox", "seed": 1, "frames": 81}. Processes that accelerate launch or torchrun start '
    "share the work."
)
OUT_HELP = (
    "With --prompts: the folder of the videos and their reports. The same command again makes what is missing or has "
    "failed. Videos that other options made are refused, not replaced."
)
REPORT_HELP = "Also write what ran, layer by layer: FILE.json, or FILE.html, a page with the video inside."


def generate(
    request: OneOrMany,
    output: Annotated[
        Path | None,
        Option("--output", "-o", help="Where the video goes.", show_default="a new name in outputs"),
    ] = None,
    report: Annotated[Path | None, Option(help=REPORT_HELP)] = None,
    overwrite: Annotated[bool, Option("--overwrite", help=OVERWRITE_HELP)] = False,
    dry_run: Annotated[bool, Option("--dry-run", help=DRY_RUN_HELP)] = False,
    prompts: Annotated[Path | None, Option(help=PROMPTS_HELP, rich_help_panel=MANY)] = None,
    out: Annotated[Path | None, Option(help=OUT_HELP, rich_help_panel=MANY)] = None,
    ulysses: Annotated[
        int | None,
        Option(min=2, help="GPUs that share the video; start it with torchrun.", rich_help_panel=MACHINE),
    ] = None,
) -> None:
    """Generate a video with sparse attention, or many."""
    if prompts is not None:
        from vidsparse.cli.batch import generate_all

        if request.prompt:
            raise ValueError("give a prompt or --prompts, not both")
        if output is not None or report is not None:
            raise ValueError("--prompts writes videos and reports into --out; leave out --output and --report")
        if overwrite:
            raise ValueError("--prompts replaces no video: leave out --overwrite, and remove those to be made again")
        if dry_run:
            raise ValueError("--dry-run is for one video; give a prompt instead of --prompts")
        if out is None:
            raise ValueError("--prompts needs --out, the folder that the videos go to")
        generate_all(request, prompts, out, ulysses)
        return
    if out is not None:
        raise ValueError("--out is the folder of --prompts; one video goes to --output FILE.mp4")
    if not request.prompt:
        raise ValueError("the prompt is empty; say what the video shows, or give --prompts FILE and --out FOLDER")
    check_distinct(output, report)
    check_output(output, ".mp4", overwrite=overwrite)
    check_output(report, ".json", ".html", overwrite=overwrite)
    if output is None:
        check_folder(OUTPUTS)
    if dry_run:
        if ulysses is not None:
            request.check_shared(ulysses)
        print_plan(request)
        return
    if ulysses is None:
        done, arguments, attention = _sampled(request, shared=False)
    else:
        from vidsparse.generation.processes import check_processes, joined

        request = replace(request, device=check_processes(ulysses, request.device))
        request.check_shared(ulysses)
        with joined(str(request.device)):
            done, arguments, attention = _sampled(request, shared=True)
    if is_first():
        # Chosen late: another process may have made a video of this name meanwhile.
        output = output or free_video(request.prompt, request.seed, overwrite=overwrite)
        as_page = report is not None and report.suffix.lower() == ".html"
        score = write_with_report(done, request, arguments, output, None if as_page else report)
        if report is not None and as_page:
            from vidsparse.cli.page import video_page
            from vidsparse.webpage.render import write_page

            write_page(report, video_page(done, request, attention, output, report_of(done, request, arguments, score)))
        _print(done, request, score)
        print(f"wrote {output}" + (f" and {report}" if report else ""))


def _sampled(request: Request, shared: bool) -> tuple[Sample, dict[str, Any], Attention]:
    """Sample the video, on all GPUs together if it is shared; also returns the arguments of the pipeline."""
    pattern, correction, arguments = request.checked()
    say_header(request, pattern, arguments)
    pipe, correction = request.load(pattern, correction)
    arguments = fitted(pipe, arguments)
    if shared:
        from vidsparse import enable_parallelism

        enable_parallelism(pipe)
    return sample_video(pipe, request, pattern, correction, arguments), arguments, (pattern, correction)


def _print(done: Sample, request: Request, score: dict[str, float] | None) -> None:
    from rich.console import Console
    from rich.table import Table

    report, scale = done.report, scale_of(done, request)
    frames, height, width = done.frames.shape[:3]
    enlarged = f", each pixel shown {scale}x{scale}" if scale > 1 else ""
    denoising = "" if done.denoising_seconds is None else f"{done.denoising_seconds:.1f} of them denoising, "
    rows: list[tuple[str, Any]] = [
        ("video", f"{counted(frames, 'frame')} of {width}x{height}{enlarged}"),
        (
            "seconds",
            f"{done.seconds:.1f} in all, {denoising}{report.seconds:.1f} in attention layers",
        ),
        *(("LoRA", f"{name}: {recipe.summary}") for name, recipe in request.loras.items()),
        ("pattern", report.pattern),
        ("attention calls", f"{report.sparse_calls} of {report.sparse_calls + report.dense_calls} sparse"),
    ]
    rows += [("", f"{count} dense: {reason}") for reason, count in report.dense_reasons.items()]
    rows += [("", f"{skipped.calls} skipped in step {skipped.step}, by {skipped.by}") for skipped in report.skipped]
    if report.biased_calls:
        rows.append(("temporal bias", f"in {counted(report.biased_calls, 'attention call')}"))
    if report.sparse_calls:
        rows.append(("density", f"{report.density:.3f} of video tile pairs, {report.token_density:.3f} of token pairs"))
        rows.append(("FLOPs saved", f"{report.flops_saved:.0%} of those of dense attention"))
        rows += [("ran", text) for text in report.ran]
    if not report.pattern.startswith("Dense("):
        rows += [("note", text) for text in report.advice]
    if score is not None:
        rows.append(("judge", "  ".join(f"{name} {value:.2f}" for name, value in score.items())))
    table = Table.grid(padding=(0, 2))
    for name, text in rows:
        table.add_row(f"[bold]{name}", str(text).replace("[", r"\["))
    Console(highlight=False).print(table)
