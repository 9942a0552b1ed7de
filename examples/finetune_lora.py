"""Train a LoRA for videos four times as long as those that `shapes-64` was trained on, with radial attention.

    python examples/finetune_lora.py --out runs/shapes-long
    torchrun --nproc-per-node 8 examples/finetune_lora.py --out runs/shapes-long

`vidsparse finetune` is this with all the options, for folders of videos and for Wan.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vidsparse import Radial
from vidsparse.finetune import Bucket, Settings, drawn_clips, finetune
from vidsparse.shapes.model import load_pipeline
from vidsparse.shapes.shipped import SHIPPED

MODEL = "shapes-64"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/shapes-long"))
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--frames", type=int, default=129)
    parser.add_argument("--videos", type=int, default=2048)
    arguments = parser.parse_args()

    settings = Settings(
        pattern=Radial(density=0.2),
        positions="yarn",
        trained_frames=33,
        rank=64,
        learning_rate=2e-3,
        decay=0.6,
        ema=0.98,
        steps=arguments.steps,
        batch=2,
    )
    bucket = Bucket(arguments.frames, height=64, width=64)
    clips = drawn_clips(arguments.videos, bucket, world=SHIPPED[MODEL].world)
    finetune(load_pipeline(model=MODEL), clips, settings, arguments.out, base=MODEL)


if __name__ == "__main__":
    main()
