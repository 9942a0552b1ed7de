"""Geometries and maps for the tests of kernels of other packages."""

from __future__ import annotations

import math

import torch

from vidsparse import BlockMap, VideoGrid
from vidsparse_kernels.layout import TileLayout, Tiling, Triple, lists_of
from vidsparse_kernels.volume import VolumeTiling

TILE = (1, 8, 8)
CACHE = Tiling((5, 9, 8), TILE, prefix=2, suffix=65)
# Tiles of 37, 1, 64 and 3 voxels, which are not one after another in the sequence.
OWNER = torch.arange(4).repeat_interleave(torch.tensor([37, 1, 64, 3])).roll(29)
VOLUME = VolumeTiling((1, 1, 105), TILE, prefix=2, suffix=3, owner=OWNER)


def one_sequence(view: Triple, tile: Triple, key_tile: Triple, prefix: int = 0, suffix: int = 0) -> TileLayout:
    """The layout of a call whose queries and keys are the same tokens."""
    return TileLayout(*(Tiling(view, sides, prefix, suffix) for sides in (tile, key_tile)))


# Ragged, whole, with text before and after of more and of less than a run; other tiles for keys than for queries; keys
# of other tokens than queries, with text on both sides and on one; voxels of a volume.
CASES = (
    one_sequence((3, 11, 9), TILE, TILE),
    one_sequence((4, 8, 8), TILE, (4, 4, 4)),
    one_sequence((3, 9, 8), TILE, TILE, suffix=70),
    one_sequence((1, 13, 7), TILE, TILE, prefix=5),
    TileLayout(Tiling((2, 9, 8), TILE), Tiling((5, 9, 8), TILE)),
    TileLayout(Tiling((1, 13, 7), TILE), CACHE),
    TileLayout(Tiling((2, 8, 8), TILE, suffix=70), Tiling((1, 8, 9), TILE)),
    TileLayout(Tiling((2, 9, 8), TILE, prefix=3), CACHE),
    TileLayout(VOLUME, VOLUME),
)


def lists(case: TileLayout, heads: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A random map: bool [1, heads, query tiles, key tiles], its counts and indices. One query tile keeps nothing."""
    rows, columns = case.query.tiles, case.key.tiles
    kept = torch.rand(1, heads, rows, columns, generator=torch.Generator().manual_seed(rows)) < 0.5
    kept[:, 0, 0] = False
    counts, indices = lists_of(kept)
    return kept, counts, indices[..., : max(1, int(counts.max()))].contiguous()


def last_frames(block_map: BlockMap, frames: int) -> BlockMap:
    """The rows of the last frames, as queries without text, in tiles of one frame; the same map for all frames."""
    grid = block_map.grid
    if frames == grid.frames:
        return block_map
    queries = VideoGrid(frames, grid.height, grid.width)
    rows = math.prod(queries.tiles(block_map.query_tile))
    return BlockMap.from_dense(
        block_map.to_dense()[..., -rows:, :], queries, block_map.query_tile, block_map.key_tile, grid
    )
