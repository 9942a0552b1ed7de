"""The key tiles that matter most to each query tile, estimated from the tiles' means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch

from vidsparse.block_map import BlockMap
from vidsparse.grid import Tile, VideoGrid
from vidsparse.patterns.base import ContentPattern, Context
from vidsparse.patterns.fields import check_flag, check_share, check_sides, check_whole, check_wholes
from vidsparse.volume import SparseVolume
from vidsparse_kernels.layout import Tiling, tile_sizes
from vidsparse_kernels.selection.pooling import means_of_tiles
from vidsparse_kernels.selection.rule import Rule, forced_tiles
from vidsparse_kernels.selection.select import select_tiles

AMOUNTS = ("density", "top_k", "top_p", "threshold")


@dataclass(frozen=True)
class TopBlocks(ContentPattern):
    """Keeps, for each query tile, the key tiles with the highest estimated attention.

    A query q gives a tile of n keys the mass sum_j exp(s q.k_j), with s = 1/sqrt(head_dim). Expanding its logarithm
    around the mean key m, with v the variance of the keys in each channel, gives

        log n + s q.m + s^2/2 (q*q).v + ...

    The score of a pair of tiles is the mean of this over the tile's queries: the first two terms, and with `variance`
    the third. The third raises tiles whose keys differ, where a few keys can match although their mean does not;
    correlations between channels are ignored. log n lowers the tiles that the grid's border cuts. The softmax of the
    scores over a row estimates the fraction of attention that each tile gets.

    Papers: Lai et al., FlexPrefill, arXiv 2502.20766; Xu et al., XAttention, arXiv 2503.16428; Zhu et al., BiFormer,
    arXiv 2303.08810. Code: bytedance/FlexPrefill at 0dbb9a2, mit-han-lab/x-attention at 3185fb2, rayleizhu/BiFormer at
    1697bbb. Differences: not causal; FlexPrefill pools in some heads only, and applies `top_p` to a whole head, not to
    each row; XAttention (whose "threshold" is `top_p`) scores with strided anti-diagonals instead of means; BiFormer,
    whose heads share tiles, adds up their products, not their softmax. None has log n or `variance`.

    Attributes:
        density: the fraction of the key tiles that each query tile keeps, rounded, at least one tile. Or instead:
        top_k: how many key tiles it keeps.
        top_p: it keeps the fewest tiles whose estimated attention adds up to this.
        threshold: it keeps the tiles with at least this estimated attention, and the highest in any case.
        shared_heads: all heads keep the same tiles, chosen by the mean of their estimates.
        neighbours: (frames, height, width): tiles up to this many tiles away are kept whatever their score, as is the
            query's own tile. They count in the amount, and exceed it if there are more of them.
        sink: how many first frames all queries see, rounded up to whole tiles; they count in the amount, too.
        variance: whether the score has the third term, which reads queries and keys once more.
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

    named_defaults: ClassVar[dict[str, Any]] = {"density": 0.3}
    named_alternatives = ("top_k", "top_p", "threshold")

    def __post_init__(self) -> None:
        given = [f"{name}={getattr(self, name)}" for name in AMOUNTS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give one of {', '.join(AMOUNTS)}, such as TopBlocks(density=0.2), not {' and '.join(given) or 'none'}"
            )
        check_share(self, "density", "top_p", "threshold", optional=True)
        check_whole(self, "top_k", least=1, optional=True)
        check_flag(self, "shared_heads", "variance")
        check_wholes(self, "neighbours", "three distances (frames, height, width)", length=3, least=0)
        check_whole(self, "sink")
        check_sides(self, "tile", optional=True)

    def select(
        self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid | SparseVolume, context: Context
    ) -> BlockMap:
        """See `ContentPattern.select`. Of a `SparseVolume`, tiles are those that hold a voxel, and n counts voxels."""
        whole = grid.grid if isinstance(grid, SparseVolume) else grid
        tile = self.tile or whole.best_tile()
        sink = math.ceil(self.sink / tile[0])
        if isinstance(grid, SparseVolume):
            fixed = _fixed_of_volume(grid, tile, self.neighbours, sink, query.device)
        else:
            fixed = _fixed(grid.view, tile, self.neighbours, sink, query.device)
        scores = self._scores(query, key, grid.tiling(tile)) + fixed.log_sizes
        if self.shared_heads:
            # A share can underflow to 0, but no score may be -inf, which is never kept.
            scores = context.gather(scores.softmax(dim=-1)).mean(dim=1, keepdim=True).clamp(min=1e-30).log()
        rule = self._rule(scores.shape[-1])
        counts, indices = select_tiles(scores, rule, fixed.forced)
        # The length of top-k rows is known; for the other rules this synchronises the device once.
        longest = max(int(rule.amount), fixed.longest) if rule.kind == "top_k" else int(counts.max())
        return BlockMap(grid, tile, tile, counts, indices[..., :longest].contiguous())

    def _rule(self, tiles: int) -> Rule:
        if self.density is not None:
            return Rule("top_k", max(1, round(self.density * tiles)))
        if self.top_k is not None:
            return Rule("top_k", self.top_k)
        return Rule("threshold", self.threshold) if self.top_p is None else Rule("top_p", self.top_p)  # type: ignore[arg-type]

    @torch.no_grad()
    def _scores(self, query: torch.Tensor, key: torch.Tensor, side: Tiling) -> torch.Tensor:
        """The terms of the score that depend on content: float32 [B, H, tiles, tiles]."""
        scale = query.shape[-1] ** -0.5
        rows, columns = (means_of_tiles(x, side) for x in (query, key))
        scores: torch.Tensor = rows @ columns.mT * scale
        if not self.variance:
            return scores
        squares, key_squares = (_mean_squares(x, side) for x in (query, key))
        scores += squares @ (key_squares - columns.square()).clamp(min=0).mT * (scale**2 / 2)
        return scores


def _mean_squares(x: torch.Tensor, side: Tiling) -> torch.Tensor:
    """Mean of the squares of each tile's tokens: float32 [B, H, tiles, head_dim]."""
    # Head by head: the squares of all heads at once would be a copy of the tensor in float32.
    heads = [means_of_tiles(head.float().square(), side) for head in x.split(1, dim=2)]
    return torch.cat(heads, dim=1)


class _Fixed(NamedTuple):
    """The part of the selection that does not depend on content, on the device of the scores."""

    forced: torch.Tensor  # bool [1, 1, tiles, tiles]
    longest: int  # most forced tiles of a row
    log_sizes: torch.Tensor  # float32 [tiles]


@lru_cache(maxsize=32)
def _fixed(view: Tile, tile: Tile, reach: Tile, sink: int, device: torch.device) -> _Fixed:
    forced = forced_tiles(view, tile, tile, reach, sink)
    return _Fixed(forced.to(device), int(forced.sum(dim=-1).max()), tile_sizes(view, tile).log().to(device))


@lru_cache(maxsize=4)  # of the volumes in use
def _fixed_of_volume(volume: SparseVolume, tile: Tile, reach: Tile, sink: int, device: torch.device) -> _Fixed:
    held = volume.held_tiles(tile)
    forced = forced_tiles(volume.grid.view, tile, tile, reach, sink)[:, :, held][..., held]
    sizes = volume.tiling(tile).tile_sizes(device)
    return _Fixed(forced.to(device), int(forced.sum(dim=-1).max()), sizes.log())
