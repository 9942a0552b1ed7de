"""How long a folder of videos takes to become latents: looking at the files, decoding, resizing, and the VAE.

    python benchmarks/video_data.py FOLDER --size 832x480 --frames 81

It uses nothing that differs between versions: run it with the PYTHONPATH of each, in turns. With `--no-vae`, latents
are one number of each clip, so that what is measured is the way to the VAE.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vidsparse.finetune import folder_clips
from vidsparse.finetune.data.cache import encode
from vidsparse.finetune.data.encoders import Encoders
from vidsparse.shapes.model import load_pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="832x480")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--fps", type=float)
    parser.add_argument("--no-vae", action="store_true")
    asked = parser.parse_args()
    width, height = map(int, asked.size.split("x"))
    pipe = load_pipeline()
    if asked.no_vae:
        vars_of: Any = Encoders
        vars_of.encode_video = lambda self, video: video[:1, :1, :1, :1].clone()
    with tempfile.TemporaryDirectory() as folder:
        started, before = time.perf_counter(), _processor()
        clips, _ = folder_clips(asked.folder, [(height, width)], [asked.frames], asked.fps, cache=Path(folder))
        looked = time.perf_counter()
        torch.manual_seed(0)
        encode(pipe, clips, Path(folder))
        done = time.perf_counter()
    seconds = f"{looked - started:.2f} looking, {done - looked:.2f} encoding, {done - started:.2f} in all"
    print(f"{len(clips)} clips, seconds: {seconds}, {_processor() - before:.2f} of the processor")


def _processor() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    main()
