"""Sparse attention beside a cache of diffusers: the cache skips blocks, what still runs is sparse.

    python examples/with_a_cache.py

It runs `shapes`, the small model that comes with the package. For another one, load its pipeline instead;
docs/composing.md has the caches that work with each family.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import FirstBlockCacheConfig
from diffusers.utils import export_to_video

import vidsparse
from vidsparse.shapes.model import SAMPLING, load_pipeline


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=33, help="of the video, 4n + 1 (default: 33)")
    parser.add_argument("--steps", type=int, default=SAMPLING["num_inference_steps"], help="default: %(default)s")
    parser.add_argument("--threshold", type=float, default=0.1, help="of the cache; higher skips more (default: 0.1)")
    parser.add_argument("--out", type=Path, default=Path("with_a_cache.mp4"), help="default: with_a_cache.mp4")
    options = parser.parse_args(arguments)
    pipe = load_pipeline()
    settings = {**SAMPLING, "num_frames": options.frames, "num_inference_steps": options.steps}
    with vidsparse.sparsify(pipe) as run:
        # Not pipe.transformer.enable_cache: this one refuses, with the reason, what would fail or do nothing.
        vidsparse.enable_cache(pipe, FirstBlockCacheConfig(threshold=options.threshold))
        generator = torch.Generator().manual_seed(0)
        video = pipe("a red circle moving left on a blue background", generator=generator, **settings).frames[0]
    for transformer in (pipe.transformer, pipe.transformer_2):
        transformer.disable_cache()
    export_to_video(list(video), str(options.out), fps=12)
    print(run.report())


if __name__ == "__main__":
    main()
