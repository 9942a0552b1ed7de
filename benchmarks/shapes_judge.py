"""What the judge says of the `shapes` model on its 64 held-out prompts, dense or with a pattern.

python benchmarks/shapes_judge.py
python benchmarks/shapes_judge.py --density 0.2 --dense-steps 4 --frames 129 --prompts 16
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path

import torch

import vidsparse
from vidsparse.shapes import judge, model
from vidsparse.shapes.scene import held_out_scenes

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--density", type=float, help="radial attention at this density; dense without")
    parser.add_argument("--dense-steps", type=int, default=4)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=model.SAMPLING["guidance_scale"])
    parser.add_argument("--prompts", type=int, default=64, help="how many of the 64, evenly spaced")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--model", type=Path, default=model.FOLDER)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--out", type=Path, help="JSON file (default: benchmarks/results/shapes_judge_....json)")
    parser.add_argument("--strip", type=Path, help="also write a PNG with nine frames of the first 16 videos")
    arguments = parser.parse_args()

    pipe = model.load_pipeline(getattr(torch, arguments.dtype), arguments.model)
    pipe.set_progress_bar_config(disable=True)
    pattern: vidsparse.Pattern = vidsparse.Dense()
    if arguments.density is not None:
        pattern = vidsparse.StepSchedule(vidsparse.Radial(density=arguments.density), dense_steps=arguments.dense_steps)
    scenes = held_out_scenes()[:: max(1, 64 // arguments.prompts)][: arguments.prompts]
    scores, strips, started = [], [], time.perf_counter()
    with vidsparse.sparsify(pipe, pattern) if arguments.density else contextlib.nullcontext():
        for first in range(0, len(scenes), arguments.batch):
            group = scenes[first : first + arguments.batch]
            videos = pipe(
                [s.caption for s in group],
                height=64,
                width=64,
                num_frames=arguments.frames,
                num_inference_steps=arguments.steps,
                guidance_scale=arguments.guidance,
                max_sequence_length=model.MAX_WORDS,
                generator=[torch.Generator().manual_seed(first + i) for i in range(len(group))],
                output_type="pt",
            ).frames
            for scene, video in zip(group, videos, strict=True):
                video = video.float().transpose(0, 1) * 2 - 1
                scores.append({"prompt": scene.caption} | judge.score(video, scene).__dict__)
                strips.append(video[:, torch.linspace(0, video.shape[1] - 1, 9).long()].transpose(1, 2).flatten(2))
            print(f"{len(scores)} of {len(scenes)}: {means(scores)}", flush=True)
    result = {
        "pattern": repr(pattern),
        "frames": arguments.frames,
        "steps": arguments.steps,
        "guidance": arguments.guidance,
        "dtype": arguments.dtype,
        "torch": torch.__version__,
        "prompts": len(scores),
        "seconds": round(time.perf_counter() - started, 1),
        "mean": means(scores),
        "scores": scores,
    }
    name = "dense" if arguments.density is None else f"radial_{arguments.density}"
    path = arguments.out or RESULTS / f"shapes_judge_{name}_{arguments.frames}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.strip:
        import imageio.v3 as imageio

        picture = (torch.cat(strips[:16], dim=1).clamp(-1, 1) + 1) * 127.5
        imageio.imwrite(arguments.strip, picture.byte().permute(1, 2, 0).numpy())


def means(scores: list[dict[str, float]]) -> dict[str, float]:
    keys = [k for k in scores[0] if k != "prompt"]
    return {k: round(sum(s[k] for s in scores) / len(scores), 3) for k in keys}


if __name__ == "__main__":
    main()
