"""A LoRA that was trained with sparse attention: it knows the pattern, the frames, the positions and the sampler.

    python examples/with_a_lora.py

It runs `shapes-long`, which comes with the package and is for videos of `shapes` twice as long. `vidsparse finetune`
trains such a LoRA for Wan; docs/training.md says how, and how good this one is: not yet.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.utils import export_to_video

import vidsparse
from vidsparse.shapes.model import SAMPLING, load_pipeline


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lora", default="shapes-long", help="a name, folder, file or Hub id (default: shapes-long)")
    parser.add_argument("--frames", type=int, help="of the video, 4n + 1 (default: those of the LoRA)")
    parser.add_argument("--steps", type=int, default=20, help="of the denoising (default: 20)")
    parser.add_argument("--out", type=Path, default=Path("with_a_lora.mp4"), help="default: with_a_lora.mp4")
    options = parser.parse_args(arguments)
    pipe = load_pipeline()
    recipe = vidsparse.load_lora(pipe, options.lora)  # weights, positions and scheduler; the rest is for us to apply
    print(recipe.summary)
    frames = options.frames or recipe.frames or SAMPLING["num_frames"]
    settings = {**SAMPLING, "num_frames": frames, "num_inference_steps": options.steps}
    with vidsparse.sparsify(pipe, recipe.pattern, correction=recipe.correction) as run:
        generator = torch.Generator().manual_seed(0)
        video = pipe("a red circle moving left on a blue background", generator=generator, **settings).frames[0]
    vidsparse.unload_lora(pipe)  # the pipeline is as it was before
    export_to_video(list(video), str(options.out), fps=12)
    print(run.report())


if __name__ == "__main__":
    main()
