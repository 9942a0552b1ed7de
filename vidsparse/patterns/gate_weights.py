"""What a learned gate computes: projections of the pooled queries and keys of a layer, and scores of their tiles."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vidsparse.grid import Tile, VideoGrid
from vidsparse_kernels.layout import tile_sizes
from vidsparse_kernels.selection.pooling import tile_extremes, tile_means

POOLINGS = 3  # of keys: the mean, the largest and the least of a tile in each channel


class Pooled(NamedTuple):
    """What the gate sees of a call.

    Attributes:
        query: the mean of each query tile, float32 [B, H, tiles, head_dim].
        key: mean, largest and least of each key tile, float32 [B, H, tiles, 3 * head_dim].
        log_sizes: log of the number of tokens of each tile, float32 [tiles].
    """

    query: torch.Tensor
    key: torch.Tensor
    log_sizes: torch.Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, tile: Tile) -> Pooled:
        """Pool queries and keys [B, tokens, H, head_dim]. No gradient flows."""
        mean = tile_means(key, grid.view, tile, grid.prefix)
        features = torch.cat((mean, *tile_extremes(key, grid.view, tile, grid.prefix)), dim=-1)
        sizes = tile_sizes(grid.view, tile, key.device)
        return cls(tile_means(query, grid.view, tile, grid.prefix), features, sizes.log())


class GateWeights(NamedTuple):
    """The projections of one layer.

    Attributes:
        query: of the mean query, [heads, width, head_dim].
        key: of the pooled keys, [heads, width, 3 * head_dim].
    """

    query: torch.Tensor
    key: torch.Tensor

    @classmethod
    def untrained(cls, heads: int, head_dim: int) -> GateWeights:
        """Projections that leave the means as they are: the score is that of `TopBlocks`, without its `variance`."""
        same = torch.eye(head_dim).expand(heads, -1, -1)
        return cls(same.clone(), torch.cat((same, same.new_zeros(heads, head_dim, 2 * head_dim)), dim=-1))

    def of_heads(self, heads: torch.Tensor) -> GateWeights:
        """Those of some heads, int64 [n]."""
        return GateWeights(self.query.index_select(0, heads), self.key.index_select(0, heads))

    def scores(self, pooled: Pooled) -> torch.Tensor:
        """The log, up to a constant of the row, of the attention that the gate expects: float32 [B, H, tiles, tiles].

            log n_j + (W_q mean(q)) . (W_k [mean(k), max(k), min(k)]) / sqrt(head_dim)

        with n_j the tokens of key tile j. Gradients flow to the weights.
        """
        rows = pooled.query @ self.query.mT
        columns = pooled.key @ self.key.mT
        scores: torch.Tensor = rows @ columns.mT * pooled.query.shape[-1] ** -0.5 + pooled.log_sizes
        return scores
