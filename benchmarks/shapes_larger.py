"""What a `shapes` model makes of a video twice as high and wide as those of its training: dense, windows, FreeSwim.

python benchmarks/shapes_larger.py
python benchmarks/shapes_larger.py --scale 1 --ways dense    # the size of training, beside it

The seconds are those of one process's CPU time, denoising and decoding together, so that other processes on the machine
do not count. `objects` is the mean of `judge.count` over the frames; the prompt says how many are right.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from subject import add_model, results_of, sampling_of

import vidsparse
from vidsparse import Dense, FreeSwim, InwardWindow, Pattern, ShiftedWindows
from vidsparse.atomic import replacing
from vidsparse.shapes import judge, model
from vidsparse.shapes.scene import held_out_scenes


def ways(scale: float) -> dict[str, Pattern]:
    windows = InwardWindow(scale=scale)
    return {
        "dense": Dense(),
        "shifted-windows": ShiftedWindows(),
        "inward-window": windows,
        "free-swim": FreeSwim(windows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--scale", type=int, default=2, help="times the height and width of training")
    parser.add_argument("--ways", nargs="+", choices=ways(2.0), default=[*ways(2.0)])
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, help="default: that of the model; 1 is one call in each step")
    parser.add_argument("--prompts", type=int, default=2, help="how many of the 64 held-out ones, evenly spaced")
    parser.add_argument("--out", type=Path, help="JSON file (default: results/MODEL/shapes_larger_SCALE.json)")
    parser.add_argument("--strip", type=Path, help="also write a PNG: a row for each video, three frames each")
    arguments = parser.parse_args()

    sampling = sampling_of(arguments.model)
    guidance = sampling["guidance_scale"] if arguments.guidance is None else arguments.guidance
    native = sampling["height"]
    size = native * arguments.scale
    pipe = model.load_pipeline(model=arguments.model)
    pipe.set_progress_bar_config(disable=True)
    scenes = held_out_scenes()[:: 64 // arguments.prompts][: arguments.prompts]
    rows, strips = [], []
    for number, scene in enumerate(scenes):
        for way in arguments.ways:
            started = time.process_time()
            with vidsparse.sparsify(pipe, ways(float(arguments.scale))[way]) as run:
                frames = pipe(
                    scene.caption,
                    height=size,
                    width=size,
                    num_frames=arguments.frames,
                    num_inference_steps=arguments.steps,
                    guidance_scale=guidance,
                    max_sequence_length=model.MAX_WORDS,
                    generator=torch.Generator().manual_seed(number),
                    output_type="pt",
                ).frames[0]
                report = run.report()
            seconds = time.process_time() - started
            video = frames.float().transpose(0, 1) * 2 - 1
            counts = judge.count(video, native)
            row = {
                "prompt": scene.caption,
                "asked": len(scene.objects),
                "way": way,
                "objects": round(sum(counts) / len(counts), 2),
                "score": round(judge.score(video, scene).mean, 3),
                "seconds": round(seconds, 1),
                "density": round(report.density, 3),
                "flops_saved": round(report.flops_saved, 3),
            }
            rows.append(row)
            print(row, flush=True)
            strips.append(video[:, torch.linspace(0, video.shape[1] - 1, 3).long()].transpose(1, 2).flatten(2))
            save(arguments, guidance, rows, strips)


def save(
    arguments: argparse.Namespace, guidance: float, rows: list[dict[str, object]], strips: list[torch.Tensor]
) -> None:
    settings = {name: getattr(arguments, name) for name in ("model", "scale", "frames", "steps")}
    settings["guidance"] = guidance
    path = arguments.out or results_of(arguments.model) / f"shapes_larger_{arguments.scale}.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({**settings, "torch": torch.__version__, "videos": rows}, indent=1) + "\n")
    if arguments.strip:
        import imageio.v3 as imageio

        picture = (torch.cat(strips, dim=1).clamp(-1, 1) + 1) * 127.5
        imageio.imwrite(arguments.strip, picture.byte().permute(1, 2, 0).numpy())


if __name__ == "__main__":
    main()
