"""Train a LoRA for videos twice as long as those that `shapes` was trained on, with radial attention.

    python examples/finetune_lora.py --out runs/longer
    torchrun --nproc-per-node 8 examples/finetune_lora.py --out runs/longer

`vidsparse finetune` is this with all the options, for folders of videos and for Wan.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vidsparse import Radial
from vidsparse.finetune import Bucket, Settings, drawn_clips, finetune
from vidsparse.shapes.model import load_pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/longer"))
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--frames", type=int, default=65)
    parser.add_argument("--videos", type=int, default=160)
    arguments = parser.parse_args()

    settings = Settings(
        pattern=Radial(density=0.3),
        positions="yarn",
        trained_frames=33,
        rank=64,
        learning_rate=1e-3,
        decay=1.0,
        ema=0.98,
        steps=arguments.steps,
        batch=4,
        sampler="sde",
        flow_shift=8.0,
    )
    bucket = Bucket(arguments.frames, height=128, width=128)
    finetune(load_pipeline(), drawn_clips(arguments.videos, bucket), settings, arguments.out, base="shapes")


if __name__ == "__main__":
    main()
