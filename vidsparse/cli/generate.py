"""`vidsparse generate`: one video from a prompt, under a pattern."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from vidsparse.cli.files import check_distinct, check_output, write_json
from vidsparse.cli.messages import counted, is_first, sampling_bar
from vidsparse.cli.request import MACHINE, Request, fitted

if TYPE_CHECKING:
    from vidsparse.generation.sample import Sample


def generate(
    request: Request,
    output: Annotated[Path, Option("--output", "-o", help="Where the video goes.")] = Path("out.mp4"),
    report: Annotated[Path | None, Option(help="Also write what ran, layer by layer, as JSON.")] = None,
    ulysses: Annotated[
        int | None,
        Option(min=2, help="GPUs that share the video; start it with torchrun.", rich_help_panel=MACHINE),
    ] = None,
) -> None:
    """Generate a video with sparse attention."""
    check_output(output, ".mp4")
    check_output(report)
    check_distinct(output, report)
    if ulysses is None:
        done = _sampled(request, shared=False)
    else:
        from vidsparse.generation.processes import check_processes, joined

        request = replace(request, device=check_processes(ulysses, request.device))
        request.check_shared(ulysses)
        with joined(str(request.device)):
            done = _sampled(request, shared=True)
    if is_first():
        _write(done, request, output, report)


def _sampled(request: Request, shared: bool) -> Sample:
    """Sample the video, on all GPUs together if it is shared."""
    pattern, correction, arguments = request.checked()
    pipe, correction = request.load(pattern, correction)
    arguments = fitted(pipe, arguments)
    from vidsparse import enable_parallelism
    from vidsparse.generation.sample import sample
    from vidsparse.patterns.names import name_of

    if shared:
        enable_parallelism(pipe)
    with sampling_bar() as bar:
        name = name_of(pattern)
        return sample(
            pipe,
            pattern,
            arguments,
            correction=correction,
            impl=request.impl,
            seed=request.seed,
            on_step=lambda step, steps: bar(name, step, steps),
        )


def _write(done: Sample, request: Request, output: Path, report: Path | None) -> None:
    from vidsparse.generation.video import default_scale, to_pixels, write_video

    scale = request.scale or default_scale(done.frames)
    write_video(output, to_pixels(done.frames, scale), request.fps or request.known.fps)
    score = request.known.judge(done.frames, request.prompt)
    if report is not None:
        write_json(
            report,
            {
                "request": asdict(request),
                "loras": {name: recipe.to_data() for name, recipe in request.loras.items()},
                "seconds": {
                    "total": done.seconds,
                    "denoising": done.denoising_seconds,
                    "attention": done.attention_seconds,
                },
                "judge": score,
                "attention": done.report.to_dict(),
            },
        )
    _print(done, request, score, scale)
    print(f"wrote {output}" + (f" and {report}" if report else ""))


def _print(done: Sample, request: Request, score: dict[str, float] | None, scale: int) -> None:
    from rich.console import Console
    from rich.table import Table

    report = done.report
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
