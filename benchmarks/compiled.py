"""Seconds of denoising of a `shapes` model, dense and sparse, each as it is and with its blocks compiled.

Seconds are those of the processor, so that other work on the machine counts little. All four take turns in one process.
The first generation of each, which compiles, is reported on its own; the compiler's own processes are not counted in
it, and its cache on disk may save most of it. Graphs are counted over all generations with compiled blocks, dense and
sparse.

python benchmarks/compiled.py --frames 65 --density 0.2
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import nullcontext

import torch
from subject import add_model, results_of, size_of
from torch._dynamo.utils import counters

import vidsparse
from vidsparse.atomic import replacing
from vidsparse.runtime.pipeline import transformers_of
from vidsparse.shapes import model

PROMPT = "a red circle moving left on a blue background"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=65)
    parser.add_argument("--density", type=float, default=0.2)
    parser.add_argument("--dense-steps", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--guidance", type=float, default=1.0, help="1: one pass a step")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    add_model(parser)
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    pipes = {how: model.load_pipeline(dtype, arguments.model) for how in ("as it is", "compiled")}
    for transformer in transformers_of(pipes["compiled"]).values():
        transformer.compile_repeated_blocks(fullgraph=True)
    radial = vidsparse.StepSchedule(vidsparse.Radial(density=arguments.density), dense_steps=arguments.dense_steps)
    first: dict[str, float] = {}
    seconds: dict[str, list[float]] = {}
    latents = {}
    for turn in range(arguments.rounds + 1):
        for how, pipe in pipes.items():
            pipe.set_progress_bar_config(disable=True)
            for kind in ("dense", "sparse"):
                with vidsparse.sparsify(pipe, radial) if kind == "sparse" else nullcontext():
                    started = time.process_time()
                    video = pipe(
                        PROMPT,
                        **size_of(arguments.model),
                        num_frames=arguments.frames,
                        num_inference_steps=arguments.steps,
                        guidance_scale=arguments.guidance,
                        max_sequence_length=model.MAX_WORDS,
                        generator=torch.Generator().manual_seed(0),
                        output_type="latent",
                    ).frames
                    passed = time.process_time() - started
                name = f"{kind}, {how}"
                if turn:
                    seconds.setdefault(name, []).append(round(passed, 3))
                else:
                    first[name], latents[name] = round(passed, 3), video
                print(turn, name, round(passed, 3), flush=True)
    apart = {k: latents[f"{k}, compiled"] - latents[f"{k}, as it is"] for k in ("dense", "sparse")}
    # Each turn has its own speed on a machine that others use, so ratios are taken within turns.
    pairs = {
        "dense: as it is / compiled": ("dense, as it is", "dense, compiled"),
        "sparse: as it is / compiled": ("sparse, as it is", "sparse, compiled"),
        "as it is: dense / sparse": ("dense, as it is", "sparse, as it is"),
        "compiled: dense / sparse": ("dense, compiled", "sparse, compiled"),
        "dense, as it is / sparse, compiled": ("dense, as it is", "sparse, compiled"),
    }
    ratios = {
        name: round(statistics.median(x / y for x, y in zip(seconds[a], seconds[b], strict=True)), 3)
        for name, (a, b) in pairs.items()
    }
    results = {
        "first_s": first,
        "median_s": {name: statistics.median(found) for name, found in seconds.items()},
        "all_s": seconds,
        "median_ratio": ratios,
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
        "largest_difference": {kind: float(x.abs().max()) for kind, x in apart.items()},
        "largest_latent": float(latents["dense, as it is"].abs().max()),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "settings": vars(arguments),
    }
    print(json.dumps(results, indent=1))
    name = f"compiled_{arguments.frames}_{arguments.dtype}.json"
    with replacing(results_of(arguments.model) / name) as file:
        file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
