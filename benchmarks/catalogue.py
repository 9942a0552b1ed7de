"""Every pattern on a `shapes` model at one density: what it saves, how near it stays to dense, what the judge says.

All patterns see the same prompts and seeds, with the same dense steps; the dense videos come first. One line of
`results/MODEL/catalogue.json` for each length and pattern is written as soon as it is known, and kept by later runs.

python benchmarks/catalogue.py --frames 33 --prompts 4
python benchmarks/catalogue.py --frames 129 --prompts 1 --lora shapes-long --sampler own --flow-shift 3
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from subject import add_model_options, grid_of, load_model, results_of, sampling_of
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

import vidsparse
from vidsparse import Pattern, VideoGrid
from vidsparse.atomic import replacing
from vidsparse.patterns.names import NONE, build_correction, correction_classes
from vidsparse.shapes import judge
from vidsparse.shapes.scene import Scene, held_out_scenes

LAYERS, HEADS = 6, 3


def catalogue(grid: VideoGrid, density: float) -> dict[str, Pattern]:
    """Every pattern at about this density of pairs of tokens; where it has no density, the nearest of some settings."""
    windows = [
        vidsparse.SlidingTile((f, h, h))
        for f in range(1, grid.frames + 1, max(1, grid.frames // 16))
        for h in range(4, grid.height + 1, 4)
    ]
    rasters = [
        vidsparse.RadialRaster(decay, sink, "half") for decay in (0.05, 0.1, 0.2, 0.4, 1.0) for sink in (False, True)
    ]
    lines = [vidsparse.Gridded((1, h, w), None, n) for h in (8, 16) for w in (4, 8, 16) for n in (0, 1, 2)]
    powers = [vidsparse.PowerOfTwo(axes, (w, w, w)) for axes in (1, 2, 3) for w in (1, 2)]
    halves = tuple("diagonal" if head % 2 else "temporal" for head in range(HEADS))
    modes = [
        vidsparse.HeadModes(((halves,) * LAYERS,), window=w, radius=r) for w in range(8) for r in (0, 1, 2, 4, 6, 8)
    ]
    blocks = [vidsparse.MixtureOfBlocks.training_free((k, 4 * k, 4 * k)) for k in (1, 2, 3)]
    thresholds = [vidsparse.MixtureOfBlocks.trained(t) for t in (0.1, 0.15, 0.2, 0.25)]
    # Tiles of 64 or 128 tokens are what kernels are fast with; smaller ones show what a pattern could keep.
    sixteen, eight = (1, 4, 4), (1, 2, 4)
    return {
        "Radial": vidsparse.Radial(density),
        "RadialRaster": _nearest(rasters, grid, density),
        "SlidingTile": _nearest(windows, grid, density),
        "Gridded": _nearest(lines, grid, density),
        "PowerOfTwo": _nearest(powers, grid, density),
        "HeadModes": _nearest(modes, grid, density),
        "SpatialTemporal": vidsparse.SpatialTemporal(density),
        "MixtureOfBlocks training-free": _nearest(blocks, grid, density),
        "MixtureOfBlocks trained": _nearest(thresholds, grid, density),
        "TopBlocks": vidsparse.TopBlocks(density),
        "TopBlocks variance": vidsparse.TopBlocks(density, variance=True, sink=1),
        "Reuse TopBlocks": vidsparse.Reuse(vidsparse.TopBlocks(density)),
        "Reuse ExactBlocks": vidsparse.Reuse(vidsparse.ExactBlocks(density)),
        "Radial, 16": vidsparse.Radial(density, tile=sixteen),
        "TopBlocks, 16": vidsparse.TopBlocks(density, tile=sixteen),
        "Reuse TopBlocks, 16": vidsparse.Reuse(vidsparse.TopBlocks(density, tile=sixteen)),
        "Reuse ExactBlocks, 16": vidsparse.Reuse(vidsparse.ExactBlocks(density, tile=sixteen)),
        "TopBlocks, 8": vidsparse.TopBlocks(density, tile=eight),
        "Reuse TopBlocks, 8": vidsparse.Reuse(vidsparse.TopBlocks(density, tile=eight)),
        "Reuse ExactBlocks, 8": vidsparse.Reuse(vidsparse.ExactBlocks(density, tile=eight)),
    }


def _nearest(patterns: list[Any], grid: VideoGrid, density: float) -> Pattern:
    def share(pattern: Pattern) -> float:
        groups = vidsparse.head_groups(pattern.plan(grid, vidsparse.Context(heads=HEADS, layers=LAYERS)), HEADS)
        return sum(len(group.heads) * group.block_map.token_density for group in groups) / HEADS

    nearest: Pattern = min(patterns, key=lambda pattern: abs(share(pattern) - density))
    return nearest


def generate(pipe: Any, scenes: list[Scene], arguments: argparse.Namespace) -> tuple[list[torch.Tensor], float]:
    """Videos float32 [3, frames, height, width] in [-1, 1], and the seconds that the denoising of one took."""
    videos, seconds = [], 0.0
    for number, scene in enumerate(scenes):
        asked = {"num_frames": arguments.frames, "num_inference_steps": arguments.steps}
        settings = sampling_of(arguments.model) | asked | {"guidance_scale": arguments.guidance}
        vidsparse.seed_steps(number)
        started = time.perf_counter()
        latents = pipe(
            scene.caption, generator=torch.Generator().manual_seed(number), output_type="latent", **settings
        ).frames
        seconds += time.perf_counter() - started
        videos.append(decode(pipe.vae, latents))
    return videos, seconds / len(scenes)


@torch.no_grad()
def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    std, mean = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (vae.config.latents_std, vae.config.latents_mean))
    video: torch.Tensor = vae.decode((latents.float() * std + mean).to(vae.dtype)).sample[0].float().clamp(-1, 1)
    return video


def compare(videos: list[torch.Tensor], dense: list[torch.Tensor], scenes: list[Scene]) -> dict[str, float | None]:
    """Means over the prompts: PSNR (None for equal videos) and SSIM against dense, and the judge's score."""
    pairs = [((v.transpose(0, 1) + 1) / 2, (d.transpose(0, 1) + 1) / 2) for v, d in zip(videos, dense, strict=True)]
    psnr = [float(peak_signal_noise_ratio(v, d, data_range=1.0)) for v, d in pairs]
    ssim = [float(structural_similarity_index_measure(v, d, data_range=1.0)) for v, d in pairs]
    score = [judge.score(video, scene).mean for video, scene in zip(videos, scenes, strict=True)]
    means = {name: round(sum(x) / len(x), 4) for name, x in (("psnr", psnr), ("ssim", ssim), ("judge", score))}
    return means if math.isfinite(means["psnr"]) else means | {"psnr": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser, dtype="bfloat16")
    parser.add_argument("--density", type=float, default=0.2)
    parser.add_argument("--correction", choices=[NONE, *correction_classes()], default="none")
    parser.add_argument("--dense-steps", type=int, default=4)
    parser.add_argument("--steps", type=int, help="default: those of the model")
    parser.add_argument("--guidance", type=float, help="default: that of the model")
    parser.add_argument("--prompts", type=int, default=4, help="how many of the 64 held-out ones, evenly spaced")
    parser.add_argument("--only", nargs="+", help="names of patterns; all by default")
    parser.add_argument("--out", type=Path, help="default: results/MODEL/catalogue.json")
    arguments = parser.parse_args()

    pipe, _ = load_model(arguments)
    sampling = sampling_of(arguments.model)
    arguments.steps = arguments.steps or sampling["num_inference_steps"]
    arguments.guidance = sampling["guidance_scale"] if arguments.guidance is None else arguments.guidance
    out = arguments.out or results_of(arguments.model) / "catalogue.json"
    correction = build_correction(arguments.correction)
    scenes = held_out_scenes()[:: max(1, 64 // arguments.prompts)][: arguments.prompts]
    settings = {key: value for key, value in vars(arguments).items() if key not in ("only", "out")}
    grid = grid_of(arguments.model, arguments.frames)
    rows = json.loads(out.read_text()) if out.is_file() else []

    def record(name: str, found: dict[str, Any]) -> None:
        row = {"name": name, "frames": arguments.frames} | found | {"settings": settings}
        rows[:] = [r for r in rows if (r["name"], r["frames"]) != (name, arguments.frames)] + [row]
        with replacing(out) as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n")
        print({key: value for key, value in row.items() if key != "settings"}, flush=True)

    generate(pipe, scenes[:1], argparse.Namespace(**(settings | {"frames": 5, "steps": 1})))  # warm-up
    dense, dense_seconds = generate(pipe, scenes, arguments)
    record("dense", {"seconds": round(dense_seconds, 2)} | compare(dense, dense, scenes))
    for name, pattern in catalogue(grid, arguments.density).items():
        if arguments.only and name not in arguments.only:
            continue
        schedule = vidsparse.StepSchedule(pattern, dense_steps=arguments.dense_steps)
        with vidsparse.sparsify(pipe, schedule, correction=correction) as run:
            videos, seconds = generate(pipe, scenes, arguments)
            report = run.report()
        found = {"pattern": repr(pattern), "density": round(report.density, 4)}
        found |= {"token_density": round(report.token_density, 4), "flops_saved": round(report.flops_saved, 4)}
        found |= {"seconds": round(seconds, 2), "dense_seconds": round(dense_seconds, 2)}  # of the same run
        title = name if correction is None else f"{name} + {type(correction).__name__}"
        record(title, found | compare(videos, dense, scenes))


if __name__ == "__main__":
    main()
