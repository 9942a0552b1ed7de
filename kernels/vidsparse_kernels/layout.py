"""The geometry of tiles: which tokens each holds, how many there are, and their lists. No token ever moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class TileLayout:
    """Geometry of a call: `prefix` tokens, a video of `view` (frames, height, width) in raster order, `suffix` tokens.

    Tiles are numbered in raster order over the grid of tiles. Tiles at the border may be ragged: smaller than the rest.
    """

    view: Triple
    query_tile: Triple
    key_tile: Triple
    prefix: int = 0
    suffix: int = 0

    @property
    def tokens(self) -> int:
        return self.prefix + math.prod(self.view) + self.suffix

    @property
    def extra_tokens(self) -> torch.Tensor:
        """Positions of prefix and suffix tokens, int64 [prefix + suffix]."""
        end = self.tokens
        return torch.cat((torch.arange(self.prefix), torch.arange(end - self.suffix, end)))

    def valid_extra_tokens(self, valid: int | None) -> torch.Tensor:
        """The first `valid` prefix and suffix tokens (all for None)."""
        return self.extra_tokens if valid is None else self.extra_tokens[:valid]

    def padding_mask(self, extra_valid: torch.Tensor | None) -> torch.Tensor | None:
        """True for tokens that are padding, not keys: bool [B, tokens], or None where there is no padding.

        Of the prefix and suffix tokens only the first `extra_valid` (int [B]) are keys.
        """
        if extra_valid is None:
            return None
        padding = torch.zeros(len(extra_valid), self.tokens, dtype=torch.bool, device=extra_valid.device)
        extra = self.extra_tokens.to(extra_valid.device)
        padding[:, extra] = torch.arange(len(extra), device=extra_valid.device) >= extra_valid[:, None]
        return padding


def tile_counts(view: Sequence[int], tile: Sequence[int]) -> Triple:
    """The number of tiles along each axis; the last tile of an axis may be ragged."""
    frames, height, width = (-(-size // side) for size, side in zip(view, tile, strict=True))
    return frames, height, width


def tile_count(view: Sequence[int], tile: Sequence[int]) -> int:
    """The number of tiles that cover a video."""
    return math.prod(tile_counts(view, tile))


def place_bits(view: Triple, tile: Triple) -> tuple[int, int]:
    """The bits for a tile's row and for its column when its place in the grid of tiles is packed into an int32.

    Raises:
        ValueError: the places of so many tiles do not fit an int32.
    """
    frames, rows, columns = ((tiles - 1).bit_length() for tiles in tile_counts(view, tile))
    if frames + rows + columns > 31:
        raise ValueError(f"a video of {view} tokens has too many tiles of {tile} for an int32; use larger tiles")
    return rows, columns


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # the cached tensors may be used by a training later
def tile_tokens(view: Triple, tile: Triple, offset: int = 0) -> tuple[torch.Tensor, ...]:
    """Positions of each tile's tokens in the sequence: one int64 tensor per tile, in the raster order of the tile.

    `offset` is the number of tokens before the video. All callers share the tensors: do not write to them.
    """
    positions = torch.arange(math.prod(view)).view(view) + offset
    boxes = [positions]
    for axis, side in enumerate(tile):
        boxes = [part for box in boxes for part in box.split(side, dim=axis)]
    # Splitting axis by axis leaves the boxes in raster order of the tile grid.
    return tuple(box.reshape(-1) for box in boxes)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def tile_of_token(view: Triple, tile: Triple) -> torch.Tensor:
    """The tile that holds each video token: int64 [frames * height * width], on the CPU, shared by all callers."""
    owner = torch.empty(math.prod(view), dtype=torch.int64)
    for number, tokens in enumerate(tile_tokens(view, tile)):
        owner[tokens] = number
    return owner


# The device is part of the key: a copy from the CPU in each call would synchronise.
@lru_cache(maxsize=64)
@torch.inference_mode(False)
def tile_sizes(view: Triple, tile: Triple, device: torch.device | None = None) -> torch.Tensor:
    """The number of tokens in each tile: int64 [tiles] on `device` (default: the CPU), shared by all callers."""
    return torch.bincount(tile_of_token(view, tile)).to(device or "cpu")


def lists_of(kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The lists of a dense map.

    Args:
        kept: bool [..., rows, columns].

    Returns:
        counts int32 [..., rows], and indices int32 [..., rows, columns] whose first `count` entries are the kept
        columns in ascending order; the rest of each list is the columns that are not kept.
    """
    # A stable sort of "not kept" moves the kept columns to the front and preserves their order.
    indices = (~kept).to(torch.uint8).argsort(dim=-1, stable=True).to(torch.int32)
    return kept.sum(dim=-1, dtype=torch.int32), indices
