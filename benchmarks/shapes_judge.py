"""What the judge says of a `shapes` model on the 64 held-out prompts: dense, with a pattern, or with a LoRA.

python benchmarks/shapes_judge.py --dtype bfloat16
python benchmarks/shapes_judge.py --dtype bfloat16 --preset shapes --strips runs/judged   # what `generate` makes
python benchmarks/shapes_judge.py --pattern radial --density 0.2 --dense-steps 4 --prompts 16
python benchmarks/shapes_judge.py --frames 65 --positions yarn --prompts 16    # a length that the model has not seen
python benchmarks/shapes_judge.py --frames 65 --lora shapes-long --prompts 16  # with the pattern of its training

Each video has a seed of its own, that of its prompt. The file of the results is written after each video, and the same
command goes on from it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
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
    parser.add_argument("--out", type=Path, help="JSON file (default: results/MODEL/shapes_judge_....json)")
    parser.add_argument("--strips", type=Path, help="also write nine frames of each video into a folder, as PNG")
    arguments = parser.parse_args()

    pipe, recipe = load_model(arguments)
    sampling = sampling_of(arguments.model)
    steps = arguments.steps or recipe.inference_steps or sampling["num_inference_steps"]
    guidance = sampling["guidance_scale"] if arguments.guidance is None else arguments.guidance
    pattern, correction = build_attention(arguments, recipe)
    path = arguments.out or results_of(arguments.model) / f"shapes_judge_{name_of(arguments)}.json"
    subject = {
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
    }
    scores = finished(path, subject)
    seeds = range(0, 64, max(1, 64 // arguments.prompts))[: arguments.prompts]
    left = [seed for seed in seeds if seed not in {score["seed"] for score in scores}]
    scenes = held_out_scenes()
    with vidsparse.sparsify(pipe, pattern, correction=correction) as run:
        for seed in left:
            vidsparse.seed_steps(seed)
            started = time.perf_counter()
            video = pipe(
                scenes[seed].caption,
                **size_of(arguments.model),
                num_frames=arguments.frames,
                num_inference_steps=steps,
                guidance_scale=guidance,
                max_sequence_length=model.MAX_WORDS,
                generator=torch.Generator().manual_seed(seed),
                output_type="pt",
            ).frames[0]
            shown = {"seed": seed, "prompt": scenes[seed].caption, "seconds": round(time.perf_counter() - started, 2)}
            report = run.report()
            run.reset()
            video = video.float().transpose(0, 1) * 2 - 1
            scores.append(shown | judge.score(video, scenes[seed]).__dict__)
            if arguments.strips:
                write_strip(video, arguments.strips / f"{seed:02d}.png")
            more = {"density": round(report.density, 4), "flops_saved": round(report.flops_saved, 4)}
            with replacing(path) as temporary:
                result = subject | more | {"prompts": len(scores), "mean": means(scores), "scores": scores}
                temporary.write_text(json.dumps(result, indent=1) + "\n")
            print(f"{len(scores)} of {len(seeds)}: {means(scores)} {scores[-1]['prompt']}", flush=True)


def finished(path: Path, subject: dict[str, Any]) -> list[dict[str, Any]]:
    """The scores that an earlier run of the same subject has left.

    Raises:
        SystemExit: the file is of another subject.
    """
    if not path.is_file():
        return []
    earlier = json.loads(path.read_text())
    other = [key for key, value in subject.items() if earlier.get(key) != value]
    if other:
        raise SystemExit(f"{path} differs in {', '.join(other)}: remove it, or give --out another name")
    scores: list[dict[str, Any]] = earlier["scores"]
    return scores


def write_strip(video: torch.Tensor, path: Path) -> None:
    """Write nine frames, evenly spaced, of a video [3, frames, height, width] in [-1, 1]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = video[:, torch.linspace(0, video.shape[1] - 1, 9).long()].transpose(1, 2).flatten(2)
    imageio.imwrite(path, ((chosen.clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0).numpy())


def means(scores: list[dict[str, Any]]) -> dict[str, float]:
    keys = [key for key in scores[0] if key not in ("prompt", "seed")]
    return {key: round(sum(score[key] for score in scores) / len(scores), 3) for key in keys}


if __name__ == "__main__":
    main()
