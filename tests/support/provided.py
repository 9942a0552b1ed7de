"""Geometries and maps for the tests of kernels of other packages."""

from __future__ import annotations

import torch

from vidsparse_kernels.layout import TileLayout, lists_of, tile_count

# Ragged, whole, with text before and after of more and of less than a run; other tiles for keys than for queries.
CASES = (
    TileLayout((3, 11, 9), (1, 8, 8), (1, 8, 8)),
    TileLayout((4, 8, 8), (1, 8, 8), (4, 4, 4)),
    TileLayout((3, 9, 8), (1, 8, 8), (1, 8, 8), suffix=70),
    TileLayout((1, 13, 7), (1, 8, 8), (1, 8, 8), prefix=5),
)


def lists(case: TileLayout, heads: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A random map: bool [1, heads, query tiles, key tiles], its counts and indices. One query tile keeps nothing."""
    rows, columns = (tile_count(case.view, tile) for tile in (case.query_tile, case.key_tile))
    kept = torch.rand(1, heads, rows, columns, generator=torch.Generator().manual_seed(rows)) < 0.5
    kept[:, 0, 0] = False
    counts, indices = lists_of(kept)
    return kept, counts, indices[..., : max(1, int(counts.max()))].contiguous()
