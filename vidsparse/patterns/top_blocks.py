"""The key tiles that matter most to each query tile, estimated from the tiles' means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch

from vidsparse.block_map import BlockMap
from vidsparse.grid import Tile, VideoGrid, check_tile
from vidsparse.patterns.base import ContentPattern, Context, check_density
from vidsparse_kernels.layout import tile_of_token
from vidsparse_kernels.selection.pooling import tile_means
from vidsparse_kernels.selection.rule import Rule, forced_tiles
from vidsparse_kernels.selection.select import select_tiles

AMOUNTS = ("density", "top_k", "top_p", "threshold")


@dataclass(frozen=True)
class TopBlocks(ContentPattern):
    """Keeps, for each query tile, the key tiles with the highest estimated attention.

    A query q gives a tile of n keys the mass sum_j exp(s q.k_j), with s = 1/sqrt(head_dim). Expanding its logarithm
    around the mean key m, with v the variance of the keys in each channel, gives

        log n + s q.m + s^2/2 (q*q).v + ...

    The score of a pair of tiles is the mean of this over the tile's queries: the first two terms, and the third with
    `variance`. It raises tiles whose keys differ, where a few keys can match though their mean does not; correlations
    between channels are left out. log n lowers the tiles that the grid's border cuts. The softmax of the scores over a
    row estimates the share of attention that each tile gets.

    Papers: Lai et al., FlexPrefill, arXiv 2502.20766; Xu et al., XAttention, arXiv 2503.16428; Zhu et al., BiFormer,
    arXiv 2303.08810. Code: bytedance/FlexPrefill at 0dbb9a2, mit-han-lab/x-attention at 3185fb2, rayleizhu/BiFormer at
    1697bbb. Differences: not causal; FlexPrefill pools in some heads only, and spends `top_p` on a whole head, not on
    each row; XAttention (whose "threshold" is `top_p`) scores with strided anti-diagonals instead of means; BiFormer,
    whose heads share tiles, adds up their products, not their shares. None has log n or `variance`.

    Attributes:
        density: the fraction of the key tiles that each query tile keeps, rounded, at least one.
        top_k: how many it keeps, instead of a density.
        top_p: it keeps the fewest whose shares sum up to this, instead.
        threshold: it keeps those with a share of at least this, and the highest, instead.
        shared_heads: all heads keep the same tiles, by the mean of their shares.
        neighbours: how many tiles further in (frames, height, width) are kept whatever their score. The query's own
            tile always is; all these count in the amount and exceed it where they are more.
        sink: how many first frames everybody sees, rounded up to whole tiles; they count in the amount, too.
        variance: whether the score has the third term. It reads queries and keys once more.
        tile: sides of the tiles; by default the grid's best of 128 tokens.
    """

    density: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    threshold: float | None = None
    shared_heads: bool = False
    neighbours: tuple[int, int, int] = (0, 0, 0)
    sink: int = 0
    variance: bool = False
    tile: Tile | None = None

    named_defaults: ClassVar = {"density": 0.3}
    named_alternatives = ("top_k", "top_p", "threshold")

    def __post_init__(self) -> None:
        given = [f"{name}={getattr(self, name)}" for name in AMOUNTS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give one of {', '.join(AMOUNTS)}, such as TopBlocks(density=0.2), not {' and '.join(given) or 'none'}"
            )
        if self.density is not None:
            check_density(self.density)
        self._rule(1)
        reach = self.neighbours
        if not isinstance(reach, tuple) or len(reach) != 3 or not all(isinstance(n, int) and n >= 0 for n in reach):
            raise ValueError(f"neighbours={reach} must be three whole numbers of at least 0: (frames, height, width)")
        if self.sink < 0:
            raise ValueError(f"sink={self.sink} must be at least 0: the first frames that everybody sees")
        if self.tile is not None:
            check_tile(self.tile)

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> BlockMap:
        tile = self.tile or grid.best_tile()
        fixed = _fixed(grid.view, tile, self.neighbours, math.ceil(self.sink / tile[0]), query.device)
        scores = self._scores(query, key, grid, tile) + fixed.log_sizes
        if self.shared_heads:
            # No score may be -inf, which is never kept: a share can be too small for float32.
            scores = scores.softmax(dim=-1).mean(dim=1, keepdim=True).clamp(min=1e-30).log()
        rule = self._rule(scores.shape[-1])
        counts, indices = select_tiles(scores, rule, fixed.forced)
        # Rows of top-k have a length that is known; for the others this waits for the device once.
        longest = max(int(rule.amount), fixed.longest) if rule.kind == "top_k" else int(counts.max())
        return BlockMap(grid, tile, tile, counts, indices[..., :longest].contiguous())

    def _rule(self, tiles: int) -> Rule:
        if self.density is not None:
            return Rule("top_k", max(1, round(self.density * tiles)))
        if self.top_k is not None:
            return Rule("top_k", self.top_k)
        return Rule("threshold", self.threshold) if self.top_p is None else Rule("top_p", self.top_p)  # type: ignore[arg-type]

    def _scores(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, tile: Tile) -> torch.Tensor:
        """The terms of the score that depend on content: float32 [B, H, tiles, tiles]."""
        scale = query.shape[-1] ** -0.5
        rows, columns = (tile_means(x, grid.view, tile, grid.prefix) for x in (query, key))
        scores: torch.Tensor = rows @ columns.mT * scale
        if not self.variance:
            return scores
        squares, key_squares = (_mean_squares(x, grid, tile) for x in (query, key))
        scores += squares @ (key_squares - columns.square()).clamp(min=0).mT * (scale**2 / 2)
        return scores


def _mean_squares(x: torch.Tensor, grid: VideoGrid, tile: Tile) -> torch.Tensor:
    """Mean of the squares of each tile's tokens: float32 [B, H, tiles, head_dim]."""
    # Head by head: the squares of all heads at once would be a copy of the tensor in float32.
    heads = [tile_means(head.float().square(), grid.view, tile, grid.prefix) for head in x.detach().split(1, dim=2)]
    return torch.cat(heads, dim=1)


class _Fixed(NamedTuple):
    """What does not depend on content, on the device of the scores."""

    forced: torch.Tensor  # bool [1, 1, tiles, tiles]
    longest: int  # most forced tiles of a row
    log_sizes: torch.Tensor  # float32 [tiles]


@lru_cache(maxsize=32)
def _fixed(view: Tile, tile: Tile, reach: Tile, sink: int, device: torch.device) -> _Fixed:
    forced = forced_tiles(view, tile, tile, reach, sink)
    sizes = torch.bincount(tile_of_token(view, tile))
    return _Fixed(forced.to(device), int(forced.sum(dim=-1).max()), sizes.log().to(device))
