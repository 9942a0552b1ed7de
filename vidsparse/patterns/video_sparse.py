"""The key tiles whose mean key resembles the mean query most, as in models trained with Video Sparse Attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from vidsparse.block_map import BlockMap
from vidsparse.grid import Tile, VideoGrid
from vidsparse.patterns.base import ContentPattern, Context
from vidsparse.patterns.fields import check_share, check_sides
from vidsparse_kernels.selection.pooling import pooled_scores
from vidsparse_kernels.selection.rule import Rule
from vidsparse_kernels.selection.select import select_tiles


@dataclass(frozen=True)
class VideoSparse(ContentPattern):
    """Keeps, for each query tile, the k key tiles with the highest mean(q) . mean(k) / sqrt(head_dim).

    This is the fine branch of Video Sparse Attention (VSA); `GatedCoarse` is the coarse one. Of T tiles
    k = ceil(density * T), and no tile is kept for its place, not even the query's own: `TopBlocks` adds that, and the
    size of border tiles in the score. The mean of a border tile is over the tokens that it has.

        vidsparse.load_gates(pipe.transformer, "FastVideo/FastWan2.1-T2V-1.3B-Diffusers")
        vidsparse.sparsify(pipe, VideoSparse(density=0.2), correction=GatedCoarse())

    For such a model, dense means `VideoSparse(density=1.0)` with `GatedCoarse()`. The dense steps of `StepSchedule` run
    the model's own attention without the coarse branch, which is not what it was trained with.

    Paper: Zhang et al., VSA, arXiv 2505.13389. Code: hao-ai-lab/FastVideo at 13810cc
    (`fastvideo/attention/backends/video_sparse_attn.py`) and 47c1d6a (`fastvideo-kernel`, `ops.py`). Differences: means
    and scores are float32, while the official ones are rounded to the model's dtype, so that near ties may differ; the
    official k comes from `1 - sparsity`, which in floating point may give one tile more (sparsity 0.95 of 20 tiles: 2),
    as does density=1 - 0.95 here. Until its pull request 1517 (June 2026) the official code used tokens / 64 as the
    number of tiles, which is too few on grids with border tiles.

    Attributes:
        density: the fraction of the key tiles that each query tile keeps, rounded up: 1 - the official sparsity.
            FastWan 2.1 1.3B was trained with 0.2, the 14B models with 0.1.
        tile: sides of the tiles; published models have (4, 4, 4).
    """

    density: float = 0.1
    tile: Tile = (4, 4, 4)

    def __post_init__(self) -> None:
        check_share(self, "density")
        check_sides(self, "tile")

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> BlockMap:
        scores = pooled_scores(query, key, grid.view, self.tile, self.tile, grid.prefix)
        kept = math.ceil(self.density * scores.shape[-1])
        counts, indices = select_tiles(scores, Rule("top_k", kept))
        return BlockMap(grid, self.tile, self.tile, counts, indices)
