"""What the judge says of a `shapes` model on the 64 held-out prompts: dense, with a pattern, or with a LoRA.

python benchmarks/shapes_judge.py
python benchmarks/shapes_judge.py --model shapes-64
python benchmarks/shapes_judge.py --pattern radial --density 0.2 --dense-steps 4 --prompts 16
python benchmarks/shapes_judge.py --frames 129 --positions yarn --prompts 16    # a length that the model has not seen
python benchmarks/shapes_judge.py --frames 129 --lora shapes-long --prompts 16  # with the pattern of its training
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from subject import (
    add_attention_options,
    add_model_options,
    build_attention,
    load_model,
    name_of,
    results_of,
    sampling_of,
    size_of,
)

import vidsparse
from vidsparse.atomic import replacing
from vidsparse.shapes import judge, model
from vidsparse.shapes.scene import held_out_scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    add_attention_options(parser)
    parser.add_argument("--steps", type=int, help="default: those of the model")
    parser.add_argument("--guidance", type=float, help="default: that of the model")
    parser.add_argument("--prompts", type=int, default=64, help="how many of the 64, evenly spaced")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path, help="JSON file (default: results/MODEL/shapes_judge_....json)")
    parser.add_argument("--strip", type=Path, help="also write a PNG with nine frames of the first 16 videos")
    arguments = parser.parse_args()

    pipe, recipe = load_model(arguments)
    sampling = sampling_of(arguments.model)
    steps = arguments.steps or recipe.inference_steps or sampling["num_inference_steps"]
    guidance = sampling["guidance_scale"] if arguments.guidance is None else arguments.guidance
    pattern, correction = build_attention(arguments, recipe)
    scenes = held_out_scenes()[:: max(1, 64 // arguments.prompts)][: arguments.prompts]
    scores, strips, seconds = [], [], 0.0
    with vidsparse.sparsify(pipe, pattern, correction=correction) as run:
        for first in range(0, len(scenes), arguments.batch):
            group = scenes[first : first + arguments.batch]
            vidsparse.seed_steps(first)
            started = time.perf_counter()
            videos = pipe(
                [s.caption for s in group],
                **size_of(arguments.model),
                num_frames=arguments.frames,
                num_inference_steps=steps,
                guidance_scale=guidance,
                max_sequence_length=model.MAX_WORDS,
                generator=[torch.Generator().manual_seed(first + i) for i in range(len(group))],
                output_type="pt",
            ).frames
            seconds += time.perf_counter() - started
            for scene, video in zip(group, videos, strict=True):
                video = video.float().transpose(0, 1) * 2 - 1
                scores.append({"prompt": scene.caption} | judge.score(video, scene).__dict__)
                strips.append(video[:, torch.linspace(0, video.shape[1] - 1, 9).long()].transpose(1, 2).flatten(2))
            report = run.report()
            run.reset()
            print(f"{len(scores)} of {len(scenes)}: {means(scores)}", flush=True)
    result = {
        "model": arguments.model,
        "pattern": repr(pattern),
        "lora": arguments.lora,
        "positions": arguments.positions,
        "correction": None if correction is None else repr(correction),
        "frames": arguments.frames,
        "sampler": type(pipe.scheduler).__name__,
        "flow_shift": pipe.scheduler.config.flow_shift,
        "steps": steps,
        "guidance": guidance,
        "dtype": arguments.dtype,
        "torch": torch.__version__,
        "prompts": len(scores),
        "seconds_per_video": round(seconds / len(scores), 2),
        "density": round(report.density, 4),
        "flops_saved": round(report.flops_saved, 4),
        "mean": means(scores),
        "scores": scores,
    }
    path = arguments.out or results_of(arguments.model) / f"shapes_judge_{name_of(arguments)}.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.strip:
        import imageio.v3 as imageio

        picture = (torch.cat(strips[:16], dim=1).clamp(-1, 1) + 1) * 127.5
        imageio.imwrite(arguments.strip, picture.byte().permute(1, 2, 0).numpy())


def means(scores: list[dict[str, float]]) -> dict[str, float]:
    keys = [k for k in scores[0] if k != "prompt"]
    return {k: round(sum(s[k] for s in scores) / len(scores), 3) for k in keys}


if __name__ == "__main__":
    main()
