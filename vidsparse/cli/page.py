"""The pages of one video and of one comparison: `--report page.html`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsparse.cli.words import given_command, request_words
from vidsparse.webpage.page import Clip, Page, Scene, Setting, memory_text, time_split

if TYPE_CHECKING:
    from vidsparse import Correction, Pattern
    from vidsparse.cli.request import Request
    from vidsparse.generation.compare import Comparison
    from vidsparse.generation.sample import Sample

SPLIT_NOTE = (
    "Attention layers are measured with their projections, and without the choice of tiles. Text and decoding is all "
    "before and after the denoising."
)
MEMORY = "of the process, with libraries and weights", "of PyTorch on the GPU"


def video_page(done: Sample, request: Request, video: Path, report: Mapping[str, Any]) -> Page:
    """The page of one video.

    Args:
        done: the video. video: its file. report: of it, as `--report` writes it as JSON.
    """
    ran, attention = done.report, report["attention"]
    figures = {"seconds": f"{done.seconds:.1f}", "peak memory": memory_text(done.peak_bytes)}
    if ran.sparse_calls:
        figures |= {"density": f"{ran.density:.3f}", "attention FLOPs saved": f"{ran.flops_saved:.0%}"}
    split = time_split(done.seconds, done.denoising_seconds, done.attention_seconds, done.choosing_seconds)
    setting = Setting(
        "video",
        "sparse" if ran.sparse_calls else "dense",
        {heading: text for heading, text in figures.items() if text},
        *copied(request, request.build_pattern(), request.build_correction()),
        split=split,
        attention=attention,
    )
    calls = ran.sparse_calls + ran.dense_calls
    headlines = {"seconds": f"{done.seconds:.1f}", "attention calls sparse": f"{ran.sparse_calls} of {calls}"}
    if ran.sparse_calls:
        headlines |= {"density of tile pairs": f"{ran.density:.2f}"}
    return Page(
        title=request.prompt,
        headlines=headlines,
        scenes=(Scene("video", request.prompt, request.frame_rate, (Clip("video", video, len(done.frames)),)),),
        settings=(setting,),
        facts=facts(request, report, done.peak_bytes) | {"pattern": ran.pattern, "ran": "; ".join(ran.ran) or "dense"},
        command=given_command(),
        report=report,
        split_note=SPLIT_NOTE,
    )


def comparison_page(
    both: Comparison,
    request: Request,
    attention: tuple[Pattern, Correction | None],
    files: Mapping[str, Path | None],
    report: Mapping[str, Any],
) -> Page:
    """The page of a dense and a sparse video.

    Args:
        attention: pattern and correction of the sparse side. files: of the videos, by side.
        report: the comparison, as `--json` writes it.
    """
    from vidsparse import Dense
    from vidsparse.cli.settings import dense_request

    apart, clock = both.difference, "denoising_seconds" if "denoising_seconds" in both.clocks else "seconds"
    name = "denoising" if clock == "denoising_seconds" else "in all"
    clocks = {clock: name, "seconds": "in all"}
    psnr = "identical" if apart.psnr is None else f"{apart.psnr:.1f} dB"
    settings, clips = [], []
    for side, asked, (pattern, correction) in (
        ("dense", dense_request(request), (Dense(), None)),
        ("sparse", request, attention),
    ):
        one = both.typical(side)
        figures = {f"seconds {clocked}": f"{both.seconds(side, c):.2f}" for c, clocked in clocks.items()}
        if side == "sparse":
            figures |= {"density": f"{one.report.density:.3f}", f"speed-up {name}": f"{both.speedup(clock):.2f}x"}
            figures |= {"PSNR": psnr, "SSIM": f"{apart.ssim:.3f}"}
            figures |= {"MS-SSIM": f"{apart.ms_ssim:.3f}"} if apart.ms_ssim is not None else {}
            figures |= {"flicker": f"{apart.flicker:.4f}"} if apart.flicker is not None else {}
            figures |= {"LPIPS": f"{apart.lpips:.3f}"} if apart.lpips is not None else {}
        if (score := report[side]["judge"]) is not None:
            figures |= {"judge": f"{score['mean']:.2f}"}
        figures |= {"peak memory": memory} if (memory := memory_text(both.peak_bytes(side))) else {}
        split = time_split(one.seconds, one.denoising_seconds, one.attention_seconds, one.choosing_seconds)
        ran = one.report.to_dict() if side == "sparse" else None
        settings.append(Setting(side, side, figures, *copied(asked, pattern, correction), split=split, attention=ran))
        path, frames = files[side], len(one.frames)
        assert path is not None
        if side == "sparse":
            clips.append(Clip(side, path, frames, apart.frame_psnr, apart.frame_ssim, apart.worst_frame))
        else:
            clips.append(Clip(side, path, frames))
    headlines = {f"speed-up {name}": f"{both.speedup(clock):.2f}x", "PSNR to dense": psnr}
    headlines |= {"density of tile pairs": f"{both.sparse[0].report.density:.2f}"}
    headlines |= {"of attention's FLOPs saved": f"{both.sparse[0].report.flops_saved:.0%}"}
    known = facts(request, report, both.peak_bytes("sparse"))
    known |= {"dense attention": both.backend, "pattern": both.sparse[0].report.pattern}
    known |= {"ran": "; ".join(both.sparse[0].report.ran) or "dense"}
    known |= {"times": f"medians of {len(both.dense)}, by turns; {report['warm_up']}"}
    return Page(
        title=request.prompt,
        headlines=headlines,
        scenes=(Scene("videos", request.prompt, request.frame_rate, tuple(clips)),),
        settings=tuple(settings),
        facts=known,
        command=given_command(),
        report=report,
        split_note=f"{SPLIT_NOTE} Of the sample of each side that took the median of seconds.",
    )


def facts(request: Request, report: Mapping[str, Any], peak: int | None) -> dict[str, str]:
    """What made the videos, by headings.

    Args:
        report: with what `vidsparse.cli.versions.machine` returns. peak: of memory; None: unknown.
    """
    arguments = request.build_arguments()
    frames, height, width = request.size(arguments)
    found = {
        "model": request.model,
        "LoRA": ", ".join(f"{name}: {recipe.summary}" for name, recipe in request.loras.items()),
        "video": f"{frames} frames of {width}x{height}, {request.denoising_steps} steps, seed {request.seed}",
        "device": f"{report['device_name']} ({report['device']}), {report['dtype']}",
        "versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version),
        "peak memory is": "" if peak is None else MEMORY[report["device"].startswith("cuda")],
    }
    return {heading: text for heading, text in found.items() if text}


def copied(request: Request, pattern: Pattern, correction: Correction | None) -> tuple[str, str]:
    """What a reader copies to have a setting: a command, and the call of `sparsify`."""
    from vidsparse.ui.source import expression

    # Where it is written does not matter to another machine, nor does the device.
    words = shlex.join(["vidsparse", "generate", *request_words(replace(request, device=None))])
    added = "" if correction is None else f", correction={expression(correction)}"
    return words, f"run = vidsparse.sparsify(pipe, {expression(pattern)}{added})"
