"""What stands for dropped tiles: one key and one value for each box of tokens, to which every query attends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from vidsparse.attention import merge
from vidsparse.block_map import BlockMap
from vidsparse.corrections.base import SparseCall
from vidsparse.grid import Tile, VideoGrid
from vidsparse_kernels.layout import tile_count, tile_of_token

SCORES = 1 << 24  # scores computed at a time: 64 MiB in float32


class Columns(NamedTuple):
    """The M keys and values of boxes and text tokens that queries attend to, of Q query tiles."""

    keys: torch.Tensor  # [B, H, M, head_dim]
    values: torch.Tensor  # [B, H, M, head_dim]
    bias: torch.Tensor  # [B|1, H|1, 1, M], added to the logits
    spread: torch.Tensor | None  # [B, H, M, head_dim], variance of the keys
    kept: torch.Tensor  # bool [B|1, H|1, Q, M]

    def logits(self, query: torch.Tensor) -> torch.Tensor:
        """The logits [B, H, rows, M] of queries [B, rows, H, head_dim]."""
        scaled = query.transpose(1, 2).float() * query.shape[-1] ** -0.5
        logits: torch.Tensor = scaled @ self.keys.mT + self.bias
        return logits if self.spread is None else logits + 0.5 * scaled**2 @ self.spread.mT

    def turns(self, grid: VideoGrid, query_tile: Tile) -> Iterator[tuple[slice, torch.Tensor]]:
        """The video's tokens in parts whose scores fit into memory: rows of the sequence, and the tile of each."""
        owner = tile_of_token(grid.view, query_tile).to(self.keys.device)
        step = max(1, SCORES // self.keys[..., 0].numel())
        for start in range(0, grid.video_tokens, step):
            tiles = owner[start : start + step]
            yield slice(grid.prefix + start, grid.prefix + start + len(tiles)), tiles

    def with_dropped(self, call: SparseCall, rows: slice, tiles: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Some rows of the output merged with attention to their dropped boxes: [B, rows, H, head_dim].

        Args:
            rows, tiles: from `turns`. logits: of these rows.
        """
        pooled, lse = attend(logits, ~self.kept[:, :, tiles], self.values)
        return merge(call.out[:, rows], call.lse[:, :, rows], pooled.transpose(1, 2), lse)[0]


def kept_boxes(block_map: BlockMap, box: Tile, device: torch.device) -> torch.Tensor:
    """Whether each query tile keeps the tile that holds a box: bool [B|1, H|1, query tiles, boxes]."""
    view = block_map.grid.view
    parent = torch.empty(tile_count(view, box), dtype=torch.int64)
    parent[tile_of_token(view, box)] = block_map.key_tile_of_token
    return block_map.to_dense().to(device)[..., parent.to(device)]


def attend(logits: torch.Tensor, seen: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to the columns that are seen: out [B, H, rows, head_dim] and lse [B, H, rows].

    A row that sees no column has a finite out and lse -inf.
    """
    alive = seen.any(dim=-1, keepdim=True)
    logits = logits.masked_fill(~seen & alive, float("-inf"))
    lse = logits.logsumexp(dim=-1, keepdim=True)
    out = (logits - lse).exp() @ values
    return out, lse.masked_fill(~alive, float("-inf")).squeeze(-1)
