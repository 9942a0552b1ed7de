"""Attention among the voxels of a sphere's shell: dense, in neighbouring tiles, and in tiles chosen by content.

    python examples/sparse_volume.py --side 32 --density 0.2

It prints the seconds of a forward and a backward pass, and how far each output is from the dense one. Queries and keys
are waves of the voxel's place, so that near voxels attend to each other, as in a model of 3-D objects. Everything else
of the grid is empty: neither its voxels nor its tiles are computed.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

import vidsparse


def shell(side: int, thickness: float = 0.12) -> torch.Tensor:
    """The voxels of a sphere's shell in a cube: bool [side, side, side]; `thickness` is a share of the radius."""
    line = torch.linspace(-1, 1, side)
    radius = torch.stack(torch.meshgrid(line, line, line, indexing="ij")).norm(dim=0)
    return (radius <= 1) & (radius > 1 - thickness)


def waves(volume: vidsparse.SparseVolume, heads: int, head_dim: int, sharpness: float = 6.0) -> torch.Tensor:
    """Features whose products fall with the distance of two voxels: [1, tokens, heads, head_dim]."""
    place = torch.stack(torch.unravel_index(volume.positions, volume.grid.view), dim=1) / max(volume.grid.view)
    phase = place @ torch.randn(3, heads * head_dim // 2) * 2 * math.pi
    both = torch.cat((phase.cos(), phase.sin()), dim=1).view(1, volume.tokens, head_dim, heads)
    return both.transpose(2, 3) * sharpness / head_dim**0.25


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Every voxel sees every voxel."""
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value))).transpose(1, 2)


def timed(attention: Callable[..., torch.Tensor], tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, float, float]:
    """The output, and the seconds of a forward and of a backward pass, each the shorter of two."""
    forward, backward = [], []
    for _ in range(2):
        leaves = [x.clone().requires_grad_() for x in tensors]
        start = time.perf_counter()
        out = attention(*leaves)
        middle = time.perf_counter()
        out.sum().backward()
        forward.append(middle - start)
        backward.append(time.perf_counter() - middle)
    return out.detach(), min(forward), min(backward)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32, help="voxels along each side of the cube (default: 32)")
    parser.add_argument("--density", type=float, default=0.2, help="share of tiles chosen by content (default: 0.2)")
    parser.add_argument("--heads", type=int, default=2, help="attention heads of 64 channels (default: 2)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)

    grid, tile = vidsparse.VideoGrid(options.side, options.side, options.side), (4, 4, 4)
    volume = vidsparse.SparseVolume.from_mask(grid, shell(options.side))
    query = key = waves(volume, options.heads, 64)
    tensors = query, key, torch.randn(1, volume.tokens, options.heads, 64)
    neighbours = vidsparse.SlidingTile(window=(12, 12, 12), tile=tile)
    content = vidsparse.TopBlocks(density=options.density, tile=tile)
    maps = {
        "neighbouring tiles": volume.restrict(neighbours.plan(grid)),
        "tiles by content": content.select(query, key, volume, vidsparse.Context()),
    }

    held, boxes = len(volume.held_tiles(tile)), math.prod(grid.tiles(tile))
    print(f"{volume.tokens} of {grid.video_tokens} voxels, in {held} of {boxes} tiles")
    exact, *seconds = timed(dense, tensors)
    print(f"dense: forward {seconds[0]:.3f} s, backward {seconds[1]:.3f} s")
    for name, block_map in maps.items():
        out, *seconds = timed(lambda q, k, v, m=block_map: vidsparse.sparse_attention(q, k, v, m), tensors)
        error = float((out - exact).norm() / exact.norm())
        print(
            f"{name}: forward {seconds[0]:.3f} s, backward {seconds[1]:.3f} s, "
            f"{block_map.token_density:.1%} of pairs of voxels, relative error {error:.1e}"
        )
    filled = volume.scatter(out)  # zeros where there is no voxel: [1, side**3, heads, 64]
    print(f"back in the cube: {tuple(filled.shape)}")


if __name__ == "__main__":
    main()
