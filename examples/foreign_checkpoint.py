"""A checkpoint that was trained with sparse attention elsewhere: Wan with the gates of Video Sparse Attention.

    python examples/foreign_checkpoint.py

FastVideo's checkpoints have a gate in each layer, for which diffusers has no place; `load_gates` reads them.
docs/checkpoints.md says what was tested: no published checkpoint has run here. Those that are distilled to a few steps,
such as FastWan, also need their own sampler.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_video

import vidsparse

MODEL = "FastVideo/Wan2.1-VSA-T2V-14B-720P-Diffusers"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help=f"Hub id or folder (default: {MODEL})")
    parser.add_argument("--prompt", default="a red circle moving left on a blue background")
    parser.add_argument("--frames", type=int, default=81, help="of the video, 4n + 1 (default: 81)")
    parser.add_argument("--height", type=int, default=720, help="in pixels (default: 720)")
    parser.add_argument("--width", type=int, default=1280, help="in pixels (default: 1280)")
    parser.add_argument("--steps", type=int, default=50, help="of the denoising (default: 50)")
    parser.add_argument("--density", type=float, default=0.1, help="as in the training (default: 0.1)")
    parser.add_argument("--out", type=Path, default=Path("foreign.mp4"), help="default: foreign.mp4")
    options = parser.parse_args(arguments)
    gpu = torch.cuda.is_available()
    pipe = WanPipeline.from_pretrained(options.model, torch_dtype=torch.bfloat16 if gpu else torch.float32)
    vidsparse.load_gates(pipe.transformer, options.model)  # before offloading
    if gpu:
        pipe.enable_model_cpu_offload()
    size = {"num_frames": options.frames, "height": options.height, "width": options.width}
    pattern = vidsparse.VideoSparse(density=options.density)
    with vidsparse.sparsify(pipe, pattern, correction=vidsparse.GatedCoarse()) as run:
        video = pipe(options.prompt, num_inference_steps=options.steps, **size).frames[0]
    export_to_video(list(video), str(options.out), fps=16)
    print(run.report())


if __name__ == "__main__":
    main()
