"""The flow-matching loss of a `shapes` model on videos that no training saw, by level of noise.

It takes a minute where the judge takes ten, and tells where in the generation something is missing. Attention is dense
and sparse at the levels at which a generation of `--steps` would be.

python benchmarks/flow_loss.py --frames 65 --positions yarn --pattern radial --density 0.3 --dense-steps 0
python benchmarks/flow_loss.py --frames 65 --lora shapes-long
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

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
from vidsparse.finetune import Bucket, drawn_clips
from vidsparse.finetune.data.cache import Encoded, encode
from vidsparse.finetune.noise import by_noise
from vidsparse.finetune.objective import Example, flow_loss
from vidsparse.shapes import model

SEED = 777  # of the videos; trainings draw theirs from seeds near 0


def expert(pipe: Any, level: float) -> Any:
    """The transformer that a pipeline asks at a noise level."""
    boundary = pipe.config.get("boundary_ratio")
    return pipe.transformer if boundary is None or level >= boundary else pipe.transformer_2


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser, dtype="bfloat16")
    add_attention_options(parser)
    parser.add_argument("--steps", type=int, help="default: those of the model")
    parser.add_argument("--videos", type=int, default=6)
    parser.add_argument("--levels", type=float, nargs="+", default=[0.98, 0.93, 0.85, 0.7, 0.45, 0.2], help="of noise")
    parser.add_argument("--out", type=Path, help="JSON file (default: results/MODEL/flow_loss_....json)")
    arguments = parser.parse_args()

    pipe, recipe = load_model(arguments)
    pattern, correction = build_attention(arguments, recipe)
    steps = arguments.steps or sampling_of(arguments.model)["num_inference_steps"]
    bucket = Bucket(arguments.frames, **size_of(arguments.model))
    clips = drawn_clips(arguments.videos, bucket, SEED)
    with tempfile.TemporaryDirectory() as folder:
        encoders = model.load_pipeline(torch.float32, arguments.model)
        videos, _ = encode(encoders, clips, Path(folder))
        with vidsparse.sparsify(pipe, by_noise(pattern, pipe.scheduler, steps), correction=correction):
            losses = {level: mean_loss(expert(pipe, level), videos, level) for level in arguments.levels}
    result = {
        "model": arguments.model,
        "pattern": repr(pattern),
        "lora": arguments.lora,
        "positions": arguments.positions,
        "correction": None if correction is None else repr(correction),
        "frames": arguments.frames,
        "steps": steps,
        "videos": arguments.videos,
        "dtype": arguments.dtype,
        "torch": torch.__version__,
        "mean": round(sum(losses.values()) / len(losses), 4),
        "losses": {str(level): round(loss, 4) for level, loss in losses.items()},
    }
    print(json.dumps(result, indent=1))
    path = arguments.out or results_of(arguments.model) / f"flow_loss_{name_of(arguments)}.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")


def mean_loss(transformer: torch.nn.Module, videos: Encoded, level: float) -> float:
    """The mean over the videos, each with the noise that it has at every level and for every subject."""
    total = 0.0
    for index in range(len(videos)):
        latents = videos.latents(index)[None]
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(index))
        example = Example(latents, noise, videos.text(index)[None], torch.tensor([level]))
        total += float(flow_loss(transformer, example, transformer.dtype))
    return total / len(videos)


if __name__ == "__main__":
    main()
