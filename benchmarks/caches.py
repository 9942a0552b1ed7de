"""Dense, fewer steps, caches, sparse attention, and both under one budget: what each costs and what it changes.

Every way samples the same prompts and seeds of a `shapes` model, by turns. Seconds are a processor's in denoising, so
that other work on the machine counts less, relative to the dense video of the same prompt and seed. PSNR is against
that video; the judge says whether the prompt is shown.

python benchmarks/caches.py    # a quarter of an hour on one core; writes caches.json and caches.png in results/MODEL
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from subject import add_model, results_of

import vidsparse
from vidsparse.atomic import replacing
from vidsparse.generation.metrics import difference
from vidsparse.generation.models import find_model
from vidsparse.generation.sample import Sample, sample
from vidsparse.runtime.pipeline import transformers_of
from vidsparse.shapes.scene import held_out_scenes

# Prompt and seed -> the video, and processor seconds of its denoising.
Way = Callable[[str, int], tuple[Sample, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--fewer", type=int, default=6, help="steps of the way with fewer of them")
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--density", type=float, default=0.3)
    parser.add_argument("--sparse-cost", type=float, default=0.85, help="seconds of a sparse step over a dense one's")
    parser.add_argument("--budget", type=float, default=0.65)
    parser.add_argument("--threshold", type=float, default=0.4, help="of FirstBlockCache")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="default: results/MODEL/caches.json; the plot goes beside it")
    add_model(parser)
    arguments = parser.parse_args()
    out = arguments.out or results_of(arguments.model) / "caches.json"

    model = find_model(arguments.model)
    pipe = model.load(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    ends = dict(dense_steps=2, dense_last_steps=1)
    radial, dense = vidsparse.Radial(density=arguments.density), vidsparse.Dense()
    joint: dict[str, Any] = dict(budget=arguments.budget, sparse_cost=arguments.sparse_cost, skipped=0.0, **ends)
    settings = dict(model.sampling) | dict(num_frames=arguments.frames)

    def run(pattern: vidsparse.Pattern, steps: int = arguments.steps) -> Way:
        def way(prompt: str, seed: int) -> tuple[Sample, float]:
            clock: list[float] = []
            asked = settings | dict(prompt=prompt, num_inference_steps=steps)
            done = sample(pipe, pattern, asked, seed=seed, on_step=lambda *_: clock.append(time.process_time()))
            return done, clock[-1] - clock[0]

        return way

    def first_block_cache(prompt: str, seed: int) -> tuple[Sample, float]:
        vidsparse.enable_cache(pipe, diffusers.FirstBlockCacheConfig(threshold=arguments.threshold))
        try:
            return run(dense)(prompt, seed)
        finally:
            for transformer in transformers_of(pipe).values():
                transformer.disable_cache()

    patterns: dict[str, vidsparse.Pattern] = {
        "dense": dense,
        "schedule skips steps": vidsparse.StepBudget(dense, **joint | dict(sparse_cost=1.0)),
        "sparse": vidsparse.StepSchedule(radial, **ends),
        "both": vidsparse.StepBudget(radial, **joint),
    }
    ways = {name: run(pattern) for name, pattern in patterns.items()}
    ways[f"{arguments.fewer} steps"] = run(dense, arguments.fewer)
    ways["FirstBlockCache"] = first_block_cache

    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    scenes = held_out_scenes()[:: 64 // arguments.prompts][: arguments.prompts]
    run(dense, 1)(scenes[0].caption, 0)  # warm-up
    for seed in range(arguments.seeds):
        for scene in scenes:
            samples = {name: way(scene.caption, seed) for name, way in ways.items()}
            base, dense_seconds = samples["dense"]
            for name, (one, seconds) in samples.items():
                apart = difference(base.frames, one.frames)
                judged = model.judge(one.frames, scene.caption)
                report = one.report
                calls = report.dense_calls + report.sparse_calls
                found[name].append(
                    dict(
                        prompt=scene.caption,
                        seed=seed,
                        seconds=seconds,
                        relative_seconds=seconds / dense_seconds,
                        psnr=apart.psnr,
                        ssim=apart.ssim,
                        judge=None if judged is None else judged["mean"],
                        density=report.density,
                        attention_skipped=report.skipped_calls / (calls + report.skipped_calls),
                    )
                )
            print(json.dumps({name: _means(rows) for name, rows in found.items()}), flush=True)
    result = {
        "settings": {k: v for k, v in vars(arguments).items() if k != "out"},
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "scheduler": type(pipe.scheduler).__name__,
        "patterns": {name: repr(pattern) for name, pattern in patterns.items()},
        "plans": {
            name: pattern.ways(arguments.steps)
            for name, pattern in patterns.items()
            if isinstance(pattern, vidsparse.StepBudget)
        },
        "means": {name: _means(rows) for name, rows in found.items()},
        "samples": found,
    }
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    _plot(result["means"], out.with_suffix(".png"))


def _means(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Median of the relative seconds, means of the rest; PSNR is None where a video is the dense one itself."""
    means: dict[str, float | None] = {}
    for key in ("psnr", "ssim", "judge", "density", "attention_skipped"):
        values = [row[key] for row in rows]
        means[key] = None if None in values else round(statistics.fmean(values), 3)
    return {"relative_seconds": round(statistics.median(row["relative_seconds"] for row in rows), 3), **means}


def _plot(means: Any, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axes, key, label in ((left, "psnr", "PSNR against dense, dB"), (right, "judge", "judge, mean of its scores")):
        for index, (name, row) in enumerate(means.items()):
            if row[key] is not None:
                axes.scatter(row["relative_seconds"], row[key], color=f"C{index}")
                axes.annotate(name, (row["relative_seconds"], row[key]), xytext=(5, 4), textcoords="offset points")
        axes.set_xlabel("processor seconds of denoising, dense = 1")
        axes.set_ylabel(label)
        axes.margins(x=0.25)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


if __name__ == "__main__":
    main()
