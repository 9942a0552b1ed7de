"""One video made by several GPUs: each holds a part of the tokens and attends with some of the heads (Ulysses).

    torchrun --standalone --nproc-per-node 3 examples/with_ulysses.py

It runs `shapes`, whose three heads 3 processes can share, on GPUs or on a CPU. For another model, load its pipeline
instead, with as many processes as divide its heads; docs/composing.md has the families that can be shared.
"""

from __future__ import annotations

import argparse
import os
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
    parser.add_argument("--out", type=Path, default=Path("with_ulysses.mp4"), help="default: with_ulysses.mp4")
    options = parser.parse_args(arguments)
    if "LOCAL_RANK" not in os.environ:
        parser.error("torchrun starts it: torchrun --standalone --nproc-per-node 3 examples/with_ulysses.py")
    gpus = torch.cuda.is_available()
    torch.distributed.init_process_group("nccl" if gpus else "gloo")
    device = f"cuda:{os.environ['LOCAL_RANK']}" if gpus else "cpu"
    if gpus:
        torch.cuda.set_device(device)
    pipe = load_pipeline().to(device)
    vidsparse.enable_parallelism(pipe)
    settings = {**SAMPLING, "num_frames": options.frames, "num_inference_steps": options.steps}
    with vidsparse.sparsify(pipe) as run:
        generator = torch.Generator().manual_seed(0)  # the same noise in every process
        video = pipe("a red circle moving left on a blue background", generator=generator, **settings).frames[0]
    if torch.distributed.get_rank() == 0:  # all processes have the whole video
        export_to_video(list(video), str(options.out), fps=12)
        print(run.report())
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
