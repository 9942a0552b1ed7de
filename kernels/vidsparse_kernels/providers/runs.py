"""A map as kernels that know no grid take it: the tokens sorted by tile, each tile a run of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vidsparse_kernels.layout import TileLayout, Tiling, lists_of


@dataclass(frozen=True)
class Order:
    """The tokens of a sequence in runs: one run for each tile of the video, then runs of prefix and suffix tokens.

    Attributes:
        length: rows of a run.
        tiles: how many runs are tiles.
        row_of_token: int64 [tokens], the row of each token.
        token_of_row: int64 [rows], the token of each row; that of a row without a token is 0.
        padding: bool [rows], true for rows without a token.
        sizes: int32 [runs], how many rows of each run, its first ones, have a token.
        full: whether every row has a token.
    """

    length: int
    tiles: int
    row_of_token: torch.Tensor
    token_of_row: torch.Tensor
    padding: torch.Tensor
    sizes: torch.Tensor
    full: bool

    @classmethod
    def of(cls, side: Tiling, device: torch.device) -> Order:
        """The order of one side of a call."""
        length, tiles, extra = side.volume, side.tiles, side.extra_tokens
        runs = tiles + side.extra_blocks
        owner, sizes = side.tile_of_token, side.tile_sizes()
        by_tile = owner.argsort(stable=True)
        place = torch.arange(len(owner)) - (sizes.cumsum(0) - sizes)[owner[by_tile]]
        rows = torch.empty(side.tokens, dtype=torch.int64)
        rows[side.prefix + by_tile] = owner[by_tile] * length + place
        rows[extra] = tiles * length + torch.arange(len(extra))
        tokens, padding = torch.zeros(runs * length, dtype=torch.int64), torch.ones(runs * length, dtype=torch.bool)
        tokens[rows], padding[rows] = torch.arange(side.tokens), False
        filled = (~padding).view(runs, length).sum(dim=1, dtype=torch.int32)
        rows, tokens, padding, filled = (x.to(device) for x in (rows, tokens, padding, filled))
        return cls(length, tiles, rows, tokens, padding, filled, runs * length == side.tokens)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """The rows of [batch, tokens, ...], contiguous; a row without a token repeats the first one."""
        return x.index_select(1, self.token_of_row)

    def gather_gradient(self, x: torch.Tensor) -> torch.Tensor:
        """The rows of a gradient [batch, tokens, ...]; a row without a token is zero."""
        return self.gather(x).masked_fill_(self.padding.view(-1, *[1] * (x.ndim - 2)), 0)

    def scatter(self, rows: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """The tokens of rows along a dimension, in the order of the sequence."""
        return rows.index_select(dim, self.row_of_token)


@dataclass(frozen=True)
class Runs:
    """A map over runs. Runs of prefix and suffix tokens are keys of every list, its last ones; their lists are whole.

    Attributes:
        query, key: the orders of queries and of keys.
        counts: int32 [B|1, H|1, query runs], the length of each list.
        indices: int32 [B|1, H|1, query runs, W], key runs in ascending order; 0 past the count.
    """

    query: Order
    key: Order
    counts: torch.Tensor
    indices: torch.Tensor

    @classmethod
    @torch.inference_mode(False)  # cached with the map, and a training may use it later
    def of(cls, counts: torch.Tensor, indices: torch.Tensor, layout: TileLayout) -> Runs:
        """Build the runs of a map.

        Args:
            counts: int32 [B|1, H|1, query tiles]. indices: int32 [B|1, H|1, query tiles, W], as a block map has them.
            layout: of the call.
        """
        device = counts.device
        query, key = (Order.of(side, device) for side in (layout.query, layout.key))
        extra, whole = (len(order.sizes) - order.tiles for order in (key, query))
        if extra == whole == 0:
            listed = torch.arange(indices.shape[-1], device=device) < counts[..., None]
            return cls(query, key, counts, torch.where(listed, indices, 0))
        columns = torch.arange(len(key.sizes), device=device, dtype=torch.int32)
        width = len(columns)
        place = torch.arange(width, device=device) - counts[..., None]
        tiles = torch.nn.functional.pad(indices, (0, width))[..., :width]
        lists = torch.where(place < 0, tiles, torch.where(place < extra, key.tiles + place, 0)).int()
        every = columns.expand(*counts.shape[:2], whole, width)
        lengths = torch.nn.functional.pad(counts + extra, (0, whole), value=width)
        return cls(query, key, lengths, torch.cat((lists, every), dim=2))

    def transposed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """For each key run the query runs that see it, as `counts` and `indices`."""
        return lists_of(self.dense().mT.contiguous())

    def dense(self) -> torch.Tensor:
        """The map as bool [B|1, H|1, query runs, key runs]."""
        listed = torch.arange(self.indices.shape[-1], device=self.counts.device) < self.counts[..., None]
        kept = torch.zeros(*self.counts.shape, len(self.key.sizes) + 1, dtype=torch.bool, device=self.counts.device)
        columns = torch.where(listed, self.indices, len(self.key.sizes)).long()
        return kept.scatter_(-1, columns, True)[..., :-1]

    def key_sizes(self, extra_valid: torch.Tensor | None) -> torch.Tensor:
        """How many rows of each key run are keys.

        Args:
            extra_valid: int [batch], how many prefix and suffix tokens of the keys are keys, in sequence order; None:
                all.

        Returns:
            int32 [runs], or [batch, runs] with `extra_valid`.
        """
        sizes = self.key.sizes
        if extra_valid is None:
            return sizes
        first = torch.arange(len(sizes), device=sizes.device) - self.key.tiles
        left = extra_valid.to(sizes.device)[:, None] - first * self.key.length
        return torch.where(first < 0, sizes, torch.minimum(left.clamp(min=0), sizes)).int()


def expanded(lists: Sequence[torch.Tensor], batch: int, heads: int) -> list[torch.Tensor]:
    """Lists with the batch and the heads of a call, contiguous."""
    return [x.expand(batch, heads, *x.shape[2:]).contiguous() for x in lists]
