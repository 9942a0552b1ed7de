"""One video of a request: sampled with a progress bar, and written with its report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vidsparse.cli.dry_run import ranges
from vidsparse.cli.files import write_json
from vidsparse.cli.messages import sampling_bar, say, tells_all
from vidsparse.cli.request import Request
from vidsparse.cli.versions import machine, versions

if TYPE_CHECKING:
    from vidsparse import Correction, Pattern, Report
    from vidsparse.generation.sample import Sample


def sample_video(
    pipe: Any,
    request: Request,
    pattern: Pattern,
    correction: Correction | None,
    arguments: dict[str, Any],
    title: str | None = None,
) -> Sample:
    """Sample the video of a request; the bar has a title, by default the name of the pattern."""
    from vidsparse.generation.sample import sample
    from vidsparse.patterns.names import name_of

    title = title or name_of(pattern)

    def tell(step: int, report: Report) -> None:
        say(f"{title}: step {step + 1} of {request.denoising_steps}: {what_ran(report, step)}")

    with sampling_bar() as bar:
        return sample(
            pipe,
            pattern,
            arguments | request.pixels(arguments),
            correction=correction,
            impl=request.impl,
            seed=request.seed,
            on_step=(lambda step, steps: None) if tells_all() else lambda step, steps: bar(title, step, steps),
            on_report=tell if tells_all() else None,
        )


def what_ran(report: Report, step: int) -> str:
    """What attention did in one step, such as "layers 1-5 sparse, density 0.300; layers 0 dense: the pattern asks"."""
    calls = [call for call in report.calls if call.step == step]
    parts = []
    for reason in dict.fromkeys(call.reason for call in calls):
        alike = [call for call in calls if call.reason == reason]
        layers = ranges(sorted({call.layer for call in alike}))
        density = sum(call.density * call.calls for call in alike) / sum(call.calls for call in alike)
        parts.append(f"layers {layers} " + (f"sparse, density {density:.3f}" if reason is None else f"dense: {reason}"))
    parts += [f"{skipped.calls} calls skipped by {skipped.by}" for skipped in report.skipped if skipped.step == step]
    return "; ".join(parts)


def write_with_report(
    done: Sample,
    request: Request,
    arguments: dict[str, Any],
    output: Path,
    report: Path | None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, float] | None:
    """Write a video, then its report as JSON; returns what the model's judge says. `more`: see `report_of`."""
    from vidsparse.generation.video import to_pixels, write_video

    pixels = to_pixels(done.frames, scale_of(done, request))
    write_video(output, pixels, request.frame_rate, comment_of(done, request, arguments))
    score = request.known.judge(done.frames, request.prompt)
    if report is not None:
        write_json(report, report_of(done, request, arguments, score, more))
    return score


def report_of(
    done: Sample,
    request: Request,
    arguments: dict[str, Any],
    score: dict[str, float] | None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """What ran, what it took, and what made it, as plain data.

    Args:
        score: of the model's judge. more: what else there is to say.
    """
    seconds = {"total": done.seconds, "denoising": done.denoising_seconds, "attention": done.attention_seconds}
    return {
        "request": asdict(request),
        "arguments": request.resolved(arguments),
        **machine(*request.place),
        "loras": {name: recipe.to_data() for name, recipe in request.loras.items()},
        "seconds": seconds | {"choosing": done.choosing_seconds},
        "peak_bytes": done.peak_bytes,
        "judge": score,
        **more,
        "attention": done.report.to_dict(),
    }


def comment_of(done: Sample, request: Request, arguments: dict[str, Any]) -> str:
    """What a video was made with, as JSON, for the video itself; equal for equal requests, on whatever device."""
    recipe = request.recipe
    made = {
        "vidsparse": versions()["vidsparse"],
        "model": request.model,
        "pipeline": request.known.pipeline,
        **request.resolved(arguments),
        "seed": request.seed,
        "attention": done.report.pattern,
        "loras": list(request.loras),
        "sampler": request.sampler or recipe.sampler or "own",
        "flow_shift": request.flow_shift or recipe.flow_shift,
        "positions": request.positions or recipe.positions or "plain",
        "dtype": request.place[1],
    }
    # In ASCII, whatever the encoding of this system: the video is made, and must not fail for its comment.
    return json.dumps({name: value for name, value in made.items() if value not in (None, [])})


def scale_of(done: Sample, request: Request) -> int:
    """How many screen pixels a pixel of the video has."""
    from vidsparse.generation.video import default_scale

    return request.scale or default_scale(done.frames)
