"""The answer of a pattern, as data: for each query tile the list of key tiles that it sees."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from vidsparse_kernels.reference import token_mask
from vidsparse_kernels.tiles import TileLayout, tile_tokens

from vidsparse.grid import Tile, VideoGrid

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True, eq=False)
class BlockMap:
    """Which key tiles each query tile sees. A pair of tiles is in or out as a whole.

    Tiles are numbered in raster order over the tile grid of the video. Prefix and suffix tokens stand in no list: they
    always see everything and are always seen. The dense form is rebuilt by

        dense = torch.zeros(B, H, query_tiles, key_tiles, dtype=torch.bool)
        for b, h, q in every row:
            dense[b, h, q, indices[b, h, q, : counts[b, h, q]]] = True

    Attributes:
        grid: the tokens that the map speaks of.
        query_tile, key_tile: tile sides (frames, height, width) in tokens.
        counts: int32 [B|1, H|1, query tiles].
        indices: int32 [B|1, H|1, query tiles, W], ascending; entries past the count are undefined. W is the longest row.
    """

    grid: VideoGrid
    query_tile: Tile
    key_tile: Tile
    counts: torch.Tensor
    indices: torch.Tensor

    @classmethod
    def from_dense(cls, kept: torch.Tensor, grid: VideoGrid, query_tile: Tile, key_tile: Tile | None = None) -> BlockMap:
        """Build a map from a bool tensor [query tiles, key tiles] or [B|1, H|1, query tiles, key tiles].

        Raises:
            ValueError: the tensor's tiles are not those of the grid.
        """
        key_tile = key_tile or query_tile
        kept = kept[None, None] if kept.ndim == 2 else kept
        expected = tuple(torch.Size(grid.tiles(t)).numel() for t in (query_tile, key_tile))
        if kept.ndim != 4 or kept.dtype != torch.bool or kept.shape[-2:] != expected:
            raise ValueError(
                f"got {kept.dtype} {tuple(kept.shape)}, expected bool [..., {expected[0]}, {expected[1]}]: "
                f"{grid} with query tile {query_tile} and key tile {key_tile} has that many tiles"
            )
        counts = kept.sum(dim=-1, dtype=torch.int32)
        width = max(1, int(counts.max()))
        # A stable sort of "not kept" puts the kept tiles first, in ascending order.
        indices = (~kept).to(torch.uint8).argsort(dim=-1, stable=True)[..., :width].to(torch.int32)
        return cls(grid, query_tile, key_tile, counts, indices)

    @property
    def view(self) -> tuple[int, int, int]:
        """(frames, height, width) of the grid."""
        return self.grid.view

    @property
    def layout(self) -> TileLayout:
        """The geometry that kernels take."""
        return TileLayout(self.view, self.query_tile, self.key_tile, self.grid.prefix, self.grid.suffix)

    @property
    def key_tiles(self) -> int:
        return torch.Size(self.grid.tiles(self.key_tile)).numel()

    def to_dense(self) -> torch.Tensor:
        """bool [B|1, H|1, query tiles, key tiles]."""
        width = self.indices.shape[-1]
        listed = torch.arange(width, device=self.counts.device) < self.counts[..., None]
        # Undefined entries may be any number: send them to a column that is cut off.
        columns = torch.where(listed, self.indices, self.key_tiles).long()
        dense = torch.zeros(*self.counts.shape, self.key_tiles + 1, dtype=torch.bool, device=self.counts.device)
        return dense.scatter_(-1, columns, True)[..., :-1]

    def transpose(self) -> BlockMap:
        """The map that lists, for each key tile, the query tiles that see it."""
        return BlockMap.from_dense(self.to_dense().mT.contiguous(), self.grid, self.key_tile, self.query_tile)

    def to(self, device: torch.device | str) -> BlockMap:
        """The same map on another device."""
        return BlockMap(self.grid, self.query_tile, self.key_tile, self.counts.to(device), self.indices.to(device))

    @cached_property
    def density(self) -> float:
        """Kept pairs of video tiles / all pairs of video tiles."""
        return float(self.counts.double().mean()) / self.key_tiles

    @cached_property
    def token_density(self) -> float:
        """Kept pairs of tokens / all pairs of tokens, text rows and columns included."""
        rows, columns = (
            torch.tensor([len(t) for t in tile_tokens(self.view, tile)], dtype=torch.float64)
            for tile in (self.query_tile, self.key_tile)
        )
        video = torch.einsum("bhqk,q,k->bh", self.to_dense().double().cpu(), rows, columns).mean().item()
        extra = self.grid.prefix + self.grid.suffix
        return (video + extra * (self.grid.tokens + self.grid.video_tokens)) / self.grid.tokens**2

    def token_mask(self, extra_valid: torch.Tensor | None = None) -> torch.Tensor:
        """The meaning of the map: bool [B|1, H|1, tokens, tokens], for small grids."""
        return token_mask(self.to_dense(), self.layout, extra_valid)

    def to_flex(self, extra_valid: torch.Tensor | None = None) -> BlockMask:
        """The same mask for `torch.nn.attention.flex_attention`, an independent oracle."""
        from torch.nn.attention.flex_attention import create_block_mask

        mask = self.token_mask(extra_valid)
        batch, heads = mask.shape[:2]

        def keeps(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
            return mask[b % batch, h % heads, q, kv]

        tokens = self.grid.tokens
        return create_block_mask(
            keeps, batch if batch > 1 else None, heads if heads > 1 else None, tokens, tokens, device=mask.device
        )
