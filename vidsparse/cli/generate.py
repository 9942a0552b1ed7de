"""`vidsparse generate`: one video from a prompt, under a pattern."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from vidsparse.cli import sampling
from vidsparse.cli.files import check_distinct, check_output, write_json
from vidsparse.cli.patterns import name_of
from vidsparse.cli.request import Request
from vidsparse.cli.video import default_scale, to_pixels, write_video


def generate(
    request: Request,
    output: Annotated[Path, Option("--output", "-o", help="Where the video goes.")] = Path("out.mp4"),
    report: Annotated[Path | None, Option(help="Also write what ran, layer by layer, as JSON.")] = None,
) -> None:
    """Generate a video with sparse attention."""
    check_output(output, ".mp4")
    check_output(report)
    check_distinct(output, report)
    scene = request.read_prompt()
    pattern = request.build_pattern()
    request.build_correction()
    pipe = sampling.load_pipeline(request)
    arguments = sampling.call_arguments(pipe, request, scene)
    sample = sampling.sample(pipe, pattern, request, arguments, name_of(pattern))

    scale = request.scale or default_scale(sample.frames)
    write_video(output, to_pixels(sample.frames, scale), request.fps or (12 if scene else 16))
    score = sampling.judge(sample.frames, scene)
    if report is not None:
        seconds = {
            "total": sample.seconds,
            "denoising": sample.denoising_seconds,
            "attention": sample.report.seconds,
        }
        write_json(
            report,
            {
                "request": asdict(request),
                "loras": {name: recipe.to_data() for name, recipe in request.loras.items()},
                "seconds": seconds,
                "judge": score,
                "attention": sample.report.to_dict(),
            },
        )
    _print(sample, request, score, scale)
    print(f"wrote {output}" + (f" and {report}" if report else ""))


def _print(sample: sampling.Sample, request: Request, score: dict[str, float] | None, scale: int) -> None:
    from rich.console import Console
    from rich.table import Table

    report = sample.report
    frames, height, width = sample.frames.shape[:3]
    enlarged = f", each pixel shown {scale}x{scale}" if scale > 1 else ""
    rows: list[tuple[str, Any]] = [
        ("video", f"{frames} frames of {width}x{height}{enlarged}"),
        (
            "seconds",
            f"{sample.seconds:.1f} in all, {sample.denoising_seconds:.1f} of them denoising, "
            f"{report.seconds:.1f} in attention layers",
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
