"""Sparse attention in compiled blocks: dense and sparse calls are one graph each, whatever layer, step and map.

    python examples/with_compile.py

It runs `shapes`, the small model that comes with the package; the compiler needs a C++ compiler on a CPU. For another
model, load its pipeline instead; docs/composing.md has the families whose blocks compile without a break.
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
    parser.add_argument("--frames", type=int, default=33, help="of the video, 4n + 1 (default: 33)")
    parser.add_argument("--steps", type=int, default=SAMPLING["num_inference_steps"], help="default: %(default)s")
    parser.add_argument("--backend", default="inductor", help="of torch.compile (default: inductor)")
    parser.add_argument("--out", type=Path, default=Path("with_compile.mp4"), help="default: with_compile.mp4")
    options = parser.parse_args(arguments)
    pipe = load_pipeline()
    for transformer in (pipe.transformer, pipe.transformer_2):  # before sparsify, or after it
        transformer.compile_repeated_blocks(fullgraph=True, backend=options.backend)
    settings = {**SAMPLING, "num_frames": options.frames, "num_inference_steps": options.steps}
    with vidsparse.sparsify(pipe) as run:
        generator = torch.Generator().manual_seed(0)
        video = pipe("a red circle moving left on a blue background", generator=generator, **settings).frames[0]
    export_to_video(list(video), str(options.out), fps=12)
    print(run.report())


if __name__ == "__main__":
    main()
