"""Run the launch path for a chip that is not there: bind, specialise and compile every argument, start nothing.

    python tests/support/dry_launch.py 90

Between the operator and the machine code stands Triton's binder, which gives the values 1 and None and multiples of 16
types of their own; the interpreter has none of that, and compiling ahead of time is told the types.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
import triton.runtime.driver
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from vidsparse import BlockMap, VideoGrid
from vidsparse.grid import Tile
from vidsparse_kernels.gpu import device, launch
from vidsparse_kernels.gpu.backward import backward
from vidsparse_kernels.gpu.forward import forward

CHIP = int(sys.argv[1])
run = JITFunction.run
compiled: list[JITFunction] = []


class Driver:
    """What the binder asks a driver for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CHIP, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def run_dry(self: JITFunction, *args: Any, warmup: bool, **kwargs: Any) -> Any:
    compiled.append(self)
    return run(self, *args, warmup=True, **kwargs)


def both_passes(
    grid: VideoGrid,
    query_tile: Tile,
    key_tile: Tile,
    head_dim: int,
    batch: int,
    heads: int,
    key_grid: VideoGrid | None = None,
) -> None:
    keys = key_grid or grid
    kept = torch.ones(math.prod(grid.tiles(query_tile)), math.prod(keys.tiles(key_tile)), dtype=torch.bool)
    block_map = BlockMap.from_dense(kept, grid, query_tile, key_tile, key_grid)
    lengths = grid.tokens, keys.tokens, keys.tokens, grid.tokens
    query, key, value, grad_out = (torch.randn(batch, n, heads, head_dim, dtype=torch.bfloat16) for n in lengths)
    lists = block_map.lists
    call = launch.Launch(query, block_map.counts.shape, None, block_map.layout)
    out, lse = forward(call, lists.keys(), query, key, value, 0.1)
    columns = lists.columns(batch * heads)
    backward(call, lists.keys(), columns, grad_out, torch.zeros_like(lse), query, key, value, out, lse, 0.1)


if __name__ == "__main__":
    triton.runtime.driver.set_active(Driver())
    JITFunction.run = run_dry
    device.capability = launch.capability = lambda device: CHIP
    both_passes(VideoGrid(2, 8, 8), (1, 8, 8), (1, 8, 8), 64, batch=1, heads=2)
    both_passes(VideoGrid(1, 1, 1), (1, 8, 8), (1, 8, 8), 32, batch=1, heads=1)
    both_passes(VideoGrid(1, 1, 300, prefix=1), (1, 1, 128), (1, 1, 128), 64, batch=1, heads=1)
    both_passes(VideoGrid(3, 9, 10, prefix=16, suffix=72), (2, 8, 8), (1, 8, 8), 128, batch=2, heads=2)
    both_passes(VideoGrid(3, 9, 10, suffix=1), (2, 8, 8), (4, 4, 8), 96, batch=2, heads=3)
    both_passes(VideoGrid(1, 9, 10), (1, 8, 8), (2, 8, 8), 64, 1, heads=2, key_grid=VideoGrid(16, 9, 10, prefix=1))
    both_passes(VideoGrid(2, 8, 8, suffix=16), (1, 8, 8), (1, 8, 8), 64, 1, heads=2, key_grid=VideoGrid(1, 7, 8))
    print(f"{len(compiled)} launches bound and compiled for sm_{CHIP}")
