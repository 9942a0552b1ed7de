"""What `TemporalBias` does to a `shapes` video twice as long as those of training, and what it costs, with all tiles.

python benchmarks/shapes_temporal_bias.py

The seconds are those of one process's CPU time, denoising and decoding together, so that other processes on the machine
do not count. `change` is the mean absolute difference of pixels, from 0 to 255, between frames that are one training
length apart; `motion`, `permanence` and `mean` are scores of the judge.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from subject import add_model, results_of, sampling_of

import vidsparse
from vidsparse import Dense, TemporalBias
from vidsparse.atomic import replacing
from vidsparse.shapes import judge, model
from vidsparse.shapes.scene import held_out_scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 1.0, 2.0, 4.0])
    parser.add_argument("--width", type=float, default=TemporalBias.width, help="in latent frames")
    parser.add_argument("--frames", type=int, default=65)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=4, help="how many of the 64 held-out ones, evenly spaced")
    parser.add_argument("--out", type=Path, help="JSON file (default: results/MODEL/shapes_temporal_bias.json)")
    arguments = parser.parse_args()

    sampling = sampling_of(arguments.model)
    native = sampling["num_frames"]
    pipe = model.load_pipeline(model=arguments.model)
    pipe.set_progress_bar_config(disable=True)
    scenes = held_out_scenes()[:: 64 // arguments.prompts][: arguments.prompts]
    rows: list[dict[str, object]] = []
    for number, scene in enumerate(scenes):
        for strength in arguments.strengths:
            started = time.process_time()
            with vidsparse.sparsify(pipe, TemporalBias(Dense(), strength, arguments.width)) as run:
                frames = pipe(
                    scene.caption,
                    height=sampling["height"],
                    width=sampling["width"],
                    num_frames=arguments.frames,
                    num_inference_steps=arguments.steps,
                    guidance_scale=sampling["guidance_scale"],
                    max_sequence_length=model.MAX_WORDS,
                    generator=torch.Generator().manual_seed(number),
                    output_type="pt",
                ).frames[0]
                report = run.report()
            seconds = time.process_time() - started
            pixels = frames.float()
            score = judge.score(pixels.transpose(0, 1) * 2 - 1, scene)
            row = {
                "prompt": scene.caption,
                "strength": strength,
                "change": round((pixels[native:] - pixels[:-native]).abs().mean().item() * 255, 2),
                "motion": round(score.motion, 3),
                "permanence": round(score.permanence, 3),
                "mean": round(score.mean, 3),
                "seconds": round(seconds, 1),
                "biased_calls": report.biased_calls,
                "calls": report.sparse_calls + report.dense_calls,
            }
            rows.append(row)
            print(row, flush=True)
            save(arguments, rows)


def save(arguments: argparse.Namespace, rows: list[dict[str, object]]) -> None:
    settings = {name: getattr(arguments, name) for name in ("model", "width", "frames", "steps")}
    path = arguments.out or results_of(arguments.model) / "shapes_temporal_bias.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({**settings, "torch": torch.__version__, "videos": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
