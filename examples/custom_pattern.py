"""A pattern of your own, run on the model that ships: even layers look at their own frame, odd layers along time.

    python examples/custom_pattern.py --frames 9 --steps 4
    vidsparse generate "a red circle moving up on a blue background" --pattern examples/custom_pattern.py:SpaceThenTime

`compare`, `inspect`, `bench` and `finetune` take the pattern in the same way. It is the factorised attention of
TimeSformer (Bertasius et al., arXiv 2102.05095), here without training for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

import vidsparse
from vidsparse.shapes.model import SAMPLING, load_pipeline


@dataclass(frozen=True)
class SpaceThenTime(vidsparse.Pattern):
    """Two layers, and every token has heard from every other: all of its frame first, then its place in all frames.

    Attributes:
        tile: sides of the tiles in tokens; one frame long, so that a row of tiles is a frame.
    """

    tile: tuple[int, int, int] = (1, 8, 8)

    def plan(self, grid: vidsparse.VideoGrid, context: vidsparse.Context | None = None) -> vidsparse.BlockMap:
        return plan(grid, self.tile, along_time=context is not None and context.layer % 2 == 1)


@lru_cache  # layers that ask for the same get the same object, and share what is computed from it
def plan(grid: vidsparse.VideoGrid, tile: tuple[int, int, int], along_time: bool) -> vidsparse.BlockMap:
    frames, rows, columns = grid.tiles(tile)  # border tiles may be ragged: any grid works
    number = torch.arange(frames * rows * columns)
    group = number % (rows * columns) if along_time else number // (rows * columns)
    return vidsparse.BlockMap.from_dense(group[:, None] == group, grid, tile)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="a red circle moving left on a blue background")
    parser.add_argument("--frames", type=int, default=9, help="frames of the video, 4n + 1 (default: 9)")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps, the first one dense (default: 4)")
    options = parser.parse_args(arguments)
    pipe = load_pipeline()
    settings = {**SAMPLING, "num_frames": options.frames, "num_inference_steps": options.steps}
    with vidsparse.sparsify(pipe, vidsparse.StepSchedule(SpaceThenTime(), dense_steps=1)) as run:
        pipe(options.prompt, generator=torch.Generator().manual_seed(0), **settings)
    print(run.report())


if __name__ == "__main__":
    main()
