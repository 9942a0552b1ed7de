"""The key tiles that get most of the true attention of each query tile, in shares for near and far frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch

from vidsparse.block_map import BlockMap
from vidsparse.grid import Tile, VideoGrid
from vidsparse.patterns.base import ContentPattern, Context
from vidsparse.patterns.fields import check_sides, check_whole, is_share
from vidsparse_kernels.layout import tile_sizes, tile_tokens


@dataclass(frozen=True)
class ExactBlocks(ContentPattern):
    """Computes the attention of every token, and keeps the tiles that get most of it: costly, so made for `Reuse`.

    The score of a pair of tiles is the softmax over all video tokens, summed over its keys and averaged over its
    queries. The key tiles of a query tile form three groups: the first frames (the sink), those at the same time, and
    the rest. Each group keeps its own best, so no group crowds out another: SparseD calls this isolated selection.

    Paper: Wang et al., SparseD, arXiv 2509.24014 (language models). Code: INV-WZQ/SparseD at 52155b4. Differences: its
    two groups are prompt and generated tokens; the prompt of a video is text, which is exact here. A group keeps
    ratio * n of its n tiles, rounded, at least one, as in the paper; the code keeps one more, and chooses its prompt
    tiles among all. The query's own tile is always kept, and counts in its group.

    Attributes:
        ratio: the fraction of each group to keep; or three fractions: for the sink, the same time, and the rest.
        sink: how many first frames form the sink, rounded up to whole tiles.
        tile: sides of the tiles; by default the grid's best of 128 tokens.
    """

    ratio: float | tuple[float, float, float] = 0.3
    sink: int = 1
    tile: Tile | None = None

    density_field = "ratio"

    def __post_init__(self) -> None:
        if len(self._ratios) != 3 or not all(map(is_share, self._ratios)):
            raise ValueError(
                f"ratio={self.ratio!r} must be in (0, 1]: the fraction of each group of tiles to keep, or three of them"
            )
        check_whole(self, "sink")
        check_sides(self, "tile", optional=True)

    @property
    def _ratios(self) -> tuple[float, ...]:
        return self.ratio if isinstance(self.ratio, tuple) else (self.ratio,) * 3

    def plan(self, grid: VideoGrid, context: Context | None = None) -> BlockMap:
        """The map for attention that is the same everywhere, without computing attention."""
        tile, heads = self.tile or grid.best_tile(), 1 if context is None else context.heads
        sizes = tile_sizes(grid.view, tile) / grid.video_tokens
        return self._keep(sizes.expand(1, heads, len(sizes), -1), grid, tile)

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> BlockMap:
        tile = self.tile or grid.best_tile()
        return self._keep(pooled_attention(query, key, grid, tile), grid, tile)

    def _keep(self, attention: torch.Tensor, grid: VideoGrid, tile: Tile) -> BlockMap:
        own = torch.eye(attention.shape[-1], dtype=torch.bool, device=attention.device)
        ranked = attention.masked_fill(own, math.inf)
        kept = torch.zeros_like(attention, dtype=torch.bool)
        for members, ratio in zip(self._groups(grid, tile), self._ratios, strict=True):
            members = members.to(attention.device)
            size = members.sum(dim=-1, keepdim=True)
            number = (size.double() * ratio).round().clamp(min=1).minimum(size)
            order = ranked.where(members, -1.0).argsort(dim=-1, descending=True, stable=True)
            kept |= order.argsort(dim=-1) < number
        return BlockMap.from_dense(kept, grid, tile)

    def _groups(self, grid: VideoGrid, tile: Tile) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Masks of the key tiles that are sink, same time and rest for each query tile: bool [tiles, tiles] each."""
        times, rows, columns = grid.tiles(tile)
        time = torch.arange(times).repeat_interleave(rows * columns)
        sink = (time < math.ceil(self.sink / tile[0])).expand(len(time), -1)
        own = (time[:, None] == time) & ~sink
        return sink, own, ~sink & ~own


class TiledKeys(NamedTuple):
    """The video keys of one head in the order of tiles.

    Attributes:
        keys: float32 [B, tiles * slots, head_dim].
        bias: float32 [tiles, slots]: 0, or -inf for the empty slots of ragged tiles.
    """

    keys: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def of(cls, key: torch.Tensor, grid: VideoGrid, tile: Tile) -> TiledKeys:
        """Reorder the keys of one head, [B, tokens, head_dim]."""
        slots = _slots(grid.view, tile, grid.prefix).to(key.device)
        bias = torch.zeros(slots.shape, device=key.device).masked_fill(slots < 0, -math.inf)
        return cls(key.detach()[:, slots.clamp(min=0).flatten()].float(), bias)

    def shares(self, query: torch.Tensor) -> torch.Tensor:
        """The fraction of its attention to the video that each query gives each tile: float32 [B, n, tiles].

        `query` is [B, n, head_dim].
        """
        scaled = query.detach().float() * query.shape[-1] ** -0.5
        logits: torch.Tensor = (scaled @ self.keys.mT).unflatten(-1, self.bias.shape)
        return (logits + self.bias).logsumexp(dim=-1).softmax(dim=-1)


def pooled_attention(
    query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, tile: Tile, rows: Sequence[int] | None = None
) -> torch.Tensor:
    """The attention of query tiles to key tiles: the softmax over the video's tokens, summed over the keys of a tile
    and averaged over the queries of a tile.

    Holds the logits of one head and one query tile at a time: tokens of a tile x tokens of the video.

    Args:
        query, key: [B, tokens, H, head_dim].
        grid: of the tokens. tile: sides of the tiles.
        rows: indices of the query tiles; None: all.

    Returns:
        float32 [B, H, rows, tiles]; each row adds up to 1.
    """
    members = tile_tokens(grid.view, tile, grid.prefix)
    chosen = [members[row].to(query.device) for row in (range(len(members)) if rows is None else rows)]
    heads = []
    for q, k in zip(query.unbind(dim=2), key.unbind(dim=2), strict=True):
        keys = TiledKeys.of(k, grid, tile)
        heads.append(torch.stack([keys.shares(q[:, tokens]).mean(dim=1) for tokens in chosen], dim=1))
    return torch.stack(heads, dim=1)


@lru_cache(maxsize=32)
def _slots(view: Tile, tile: Tile, prefix: int) -> torch.Tensor:
    """The token in each slot of each tile: int64 [tiles, slots], -1 for empty slots."""
    return torch.nn.utils.rnn.pad_sequence(list(tile_tokens(view, tile, prefix)), batch_first=True, padding_value=-1)
