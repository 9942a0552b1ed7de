"""`vidsparse compare`: the same video dense and sparse, side by side, with what was gained and what was lost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from vidsparse.cli import sampling
from vidsparse.cli.files import check_distinct, check_output, write_json
from vidsparse.cli.patterns import name_of
from vidsparse.cli.request import Request
from vidsparse.cli.video import default_scale, side_by_side, to_pixels, write_strip, write_video

if TYPE_CHECKING:
    from vidsparse import Pattern
    from vidsparse.cli.video import Frames
    from vidsparse.shapes.scene import Scene

WARM_UP = "a step of each and a decoding ran before the clocks"
CLOCKS = {
    "seconds": "seconds in all",
    "denoising_seconds": "seconds denoising",
    "attention_seconds": "seconds in attention layers",
}


def compare(
    request: Request,
    output: Annotated[Path, Option("--output", "-o", help="Both videos in one.")] = Path("compare.mp4"),
    dense_output: Annotated[Path | None, Option(help="Also write the dense video alone.")] = None,
    sparse_output: Annotated[Path | None, Option(help="Also write the sparse video alone.")] = None,
    strip: Annotated[Path | None, Option(help="Also write a PNG with frames of both.")] = None,
    json_output: Annotated[
        Path | None, Option("--json", help="Also write the comparison as JSON; - is stdout and nothing else there.")
    ] = None,
) -> None:
    """Generate a video dense and sparse from one seed, and compare the two."""
    to_stdout = json_output == Path("-")
    for path in (output, dense_output, sparse_output):
        check_output(path, ".mp4")
    check_output(strip, ".png")
    check_output(None if to_stdout else json_output)
    check_distinct(output, dense_output, sparse_output, strip, json_output)
    scene = request.read_prompt()
    pattern = request.build_pattern()
    request.build_correction()
    pipe = sampling.load_pipeline(request)
    arguments = sampling.call_arguments(pipe, request, scene)
    dense, sparse = _sample_both(pipe, pattern, request, arguments)

    result = _result(dense, sparse, request, scene)
    name = f"{name_of(pattern)}, density {sparse.report.density:.2f}"
    fps, scale = request.fps or (12 if scene else 16), request.scale or default_scale(dense.frames)
    pixels = to_pixels(dense.frames, scale), to_pixels(sparse.frames, scale)
    write_video(output, side_by_side(*pixels, ("dense", name)), fps)
    for path, own in zip((dense_output, sparse_output), pixels, strict=True):
        if path is not None:
            write_video(path, own, fps)
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


def similarity(first: Frames, second: Frames) -> tuple[float | None, float]:
    """PSNR in dB over all frames (None when they are identical: it is infinite) and the mean SSIM of the frames."""
    import torch
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    # Both metrics take [frames, channels, height, width]; SSIM needs 300 bytes a pixel, so each frame is its own.
    a, b = (torch.from_numpy(frames).movedim(-1, 1) for frames in (first, second))
    psnr = float(peak_signal_noise_ratio(a, b, data_range=1.0))
    pairs = zip(a.split(1), b.split(1), strict=True)
    ssim = [float(structural_similarity_index_measure(*pair, data_range=1.0)) for pair in pairs]  # type: ignore[arg-type]
    return None if psnr == math.inf else psnr, sum(ssim) / len(ssim)


def _sample_both(
    pipe: Any, pattern: Pattern, request: Request, arguments: dict[str, Any]
) -> tuple[sampling.Sample, sampling.Sample]:
    """Dense, then sparse. Before that one step of each that nobody times, the sparse one without its schedule."""
    import vidsparse

    dense = vidsparse.Dense()
    bare = pattern.pattern if isinstance(pattern, vidsparse.StepSchedule) else pattern
    first = arguments | {"num_inference_steps": 1}
    sampling.sample(pipe, dense, request, first, "warming up")
    sampling.sample(pipe, bare, request, first | {"output_type": "latent"}, "warming up")
    return (
        sampling.sample(pipe, dense, request, arguments, "dense"),
        sampling.sample(pipe, pattern, request, arguments, name_of(pattern)),
    )


def _result(dense: sampling.Sample, sparse: sampling.Sample, request: Request, scene: Scene | None) -> dict[str, Any]:
    """The comparison as plain data."""
    psnr, ssim = similarity(dense.frames, sparse.frames)
    sides: dict[str, dict[str, Any]] = {}
    for name, side in (("dense", dense), ("sparse", sparse)):
        seconds = side.seconds, side.denoising_seconds, side.report.seconds
        sides[name] = {**dict(zip(CLOCKS, seconds, strict=True)), "judge": sampling.judge(side.frames, scene)}
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
        "speedup": {clock: sides["dense"][clock] / sides["sparse"][clock] for clock in CLOCKS},
        "psnr": psnr,
        "ssim": ssim,
        "warm_up": WARM_UP,
    }


def _print(result: dict[str, Any], name: str, request: Request) -> None:
    from rich.console import Console
    from rich.table import Table

    dense, sparse = result["dense"], result["sparse"]
    loras = [f"both with LoRA {name}, {recipe.summary}" for name, recipe in request.loras.items()]
    caption = "; ".join((WARM_UP, *loras))
    table = Table("", "dense", "sparse", "ratio", title=f"dense and {name}", caption=caption)
    for column in table.columns[1:]:
        column.justify = "right"
    for clock, text in CLOCKS.items():
        table.add_row(text, f"{dense[clock]:.2f}", f"{sparse[clock]:.2f}", f"{result['speedup'][clock]:.2f}x")
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
        print("note:", text)
