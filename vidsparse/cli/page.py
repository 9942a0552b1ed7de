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

    Attention = tuple[Pattern, Correction | None]

SPLIT_NOTE = (
    "Attention layers are measured with their projections, and without the choice of tiles. Text and decoding is all "
    "before and after the denoising."
)
CLOCKS = ("seconds", "in all"), ("denoising_seconds", "denoising")  # of a comparison, and their names
MEMORY = "of the process, with libraries and weights", "of PyTorch on the GPU"


def video_page(done: Sample, request: Request, attention: Attention, video: Path, report: Mapping[str, Any]) -> Page:
    """The page of one video.

    Args:
        done: the video. attention: that made it. video: its file. report: of it, see `vidsparse.cli.video.report_of`.
    """
    ran = done.report
    figures = {"seconds": f"{done.seconds:.1f}", "peak memory": memory_text(done.peak_bytes)}
    if ran.sparse_calls:
        figures |= {"density": f"{ran.density:.3f}", "attention FLOPs saved": f"{ran.flops_saved:.0%}"}
    split = time_split(done.seconds, done.denoising_seconds, done.attention_seconds, done.choosing_seconds)
    setting = Setting(
        "video",
        "sparse" if ran.sparse_calls else "dense",
        {heading: text for heading, text in figures.items() if text},
        *copied(request, *attention),
        split=split,
        attention=report["attention"],
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
        facts=facts(request, report, done.peak_bytes, done.frames.shape[:3])
        | {"pattern": ran.pattern, "ran": "; ".join(ran.ran) or "dense"},
        command=given_command(),
        report=report,
        split_note=SPLIT_NOTE,
    )


def comparison_page(
    both: Comparison, request: Request, attention: Attention, files: Mapping[str, Path], report: Mapping[str, Any]
) -> Page:
    """The page of a dense and a sparse video.

    Args:
        attention: of the sparse side. files: of the videos, by side.
        report: the comparison, as `--json` writes it.
    """
    from vidsparse import Dense
    from vidsparse.cli.settings import dense_request

    apart, dense, sparse = both.difference, both.dense[0], both.sparse[0]
    clock, name = CLOCKS["denoising_seconds" in both.clocks]
    settings = [
        _side(both, side, report, *copied(asked, *chosen))
        for side, asked, chosen in (("dense", dense_request(request), (Dense(), None)), ("sparse", request, attention))
    ]
    frames = len(dense.frames)
    clips = (
        Clip("dense", files["dense"], frames),
        Clip("sparse", files["sparse"], frames, apart.frame_psnr, apart.frame_ssim, apart.worst_frame),
    )
    headlines = {
        f"speed-up {name}": f"{both.speedup(clock):.2f}x",
        "PSNR to dense": settings[1].figures["PSNR"],
        "density of tile pairs": f"{sparse.report.density:.2f}",
        "of attention's FLOPs saved": f"{sparse.report.flops_saved:.0%}",
    }
    known = facts(request, report, both.peak_bytes("sparse"), dense.frames.shape[:3])
    known |= {"dense attention": both.backend, "pattern": sparse.report.pattern}
    known |= {"ran": "; ".join(sparse.report.ran) or "dense"}
    known |= {"times": f"medians of {len(both.dense)}, by turns; {report['warm_up']}"}
    return Page(
        title=request.prompt,
        headlines=headlines,
        scenes=(Scene("videos", request.prompt, request.frame_rate, clips),),
        settings=tuple(settings),
        facts=known,
        command=given_command(),
        report=report,
        split_note=f"{SPLIT_NOTE} Each bar is the sample with the median of the seconds, of two the faster.",
    )


def _side(both: Comparison, side: str, report: Mapping[str, Any], options: str, python: str) -> Setting:
    """A side of a comparison, as a setting."""
    apart, one = both.difference, both.typical(side)
    clock, name = CLOCKS["denoising_seconds" in both.clocks]
    titles = {clock: name, "seconds": "in all"}
    figures = {f"seconds {title}": f"{both.seconds(side, which):.2f}" for which, title in titles.items()}
    if side == "sparse":
        figures |= {f"speed-up {name}": f"{both.speedup(clock):.2f}x", "density": f"{one.report.density:.3f}"}
        figures["PSNR"] = "identical" if apart.psnr is None else f"{apart.psnr:.1f} dB"
        measured = {"SSIM": apart.ssim, "MS-SSIM": apart.ms_ssim, "LPIPS": apart.lpips}
        figures |= {title: f"{value:.3f}" for title, value in measured.items() if value is not None}
        figures |= {} if apart.flicker is None else {"flicker": f"{apart.flicker:.4f}"}
    figures |= {} if (score := report[side]["judge"]) is None else {"judge": f"{score['mean']:.2f}"}
    figures |= {"peak memory": memory} if (memory := memory_text(both.peak_bytes(side))) else {}
    split = time_split(one.seconds, one.denoising_seconds, one.attention_seconds, one.choosing_seconds)
    attention = one.report.to_dict() if side == "sparse" else None
    return Setting(side, side, figures, options, python, split=split, attention=attention)


def facts(
    request: Request, report: Mapping[str, Any], peak: int | None, size: tuple[int, ...] | None = None
) -> dict[str, str]:
    """What made the videos, by headings.

    Args:
        report: with what `vidsparse.cli.versions.machine` returns. peak: of memory; None: unknown.
        size: frames, height and width of the one video; None: there are several.
    """
    steps = f"{request.denoising_steps} steps"
    frames, height, width = request.size(request.build_arguments()) if size is None else size
    found = {
        "model": request.model,
        "LoRA": ", ".join(f"{name}: {recipe.summary}" for name, recipe in request.loras.items()),
        "video": f"{frames} frames of {width}x{height}, {steps}" + (f", seed {request.seed}" if size else ""),
        "device": f"{report['device_name']} ({report['device']}), {report['dtype']}",
        "versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version),
        "peak memory is": "" if peak is None else MEMORY[report["device"].startswith("cuda")],
    }
    return {heading: text for heading, text in found.items() if text}


def copied(request: Request, pattern: Pattern, correction: Correction | None) -> tuple[str, str]:
    """What a reader copies to have a setting: a command, and the call of `sparsify`."""
    from vidsparse.ui.source import expression

    # Another machine has another device.
    words = shlex.join(["vidsparse", "generate", *request_words(replace(request, device=None))])
    added = "" if correction is None else f", correction={expression(correction)}"
    return words, f"run = vidsparse.sparsify(pipe, {expression(pattern)}{added})"
