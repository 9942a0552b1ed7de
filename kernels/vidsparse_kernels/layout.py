"""Which tokens a tile holds: the tile is the permutation, so the sequence never changes its order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class TileLayout:
    """Geometry of a call: `prefix` tokens, a video of `view` (frames, height, width) in raster order, `suffix` tokens.

    Tiles are numbered in raster order over the grid of tiles; border tiles may be ragged.
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

    def hidden_tokens(self, extra_valid: torch.Tensor | None) -> torch.Tensor | None:
        """Which tokens are no keys, bool [B, tokens]: of prefix and suffix only the first `extra_valid` [B] are."""
        if extra_valid is None:
            return None
        hidden = torch.zeros(len(extra_valid), self.tokens, dtype=torch.bool, device=extra_valid.device)
        extra = self.extra_tokens.to(extra_valid.device)
        hidden[:, extra] = torch.arange(len(extra), device=extra_valid.device) >= extra_valid[:, None]
        return hidden


def tile_counts(view: Triple, tile: Triple) -> Triple:
    """How many tiles stand along each axis; the last may be ragged."""
    frames, height, width = (math.ceil(size / side) for size, side in zip(view, tile, strict=True))
    return frames, height, width


def place_bits(view: Triple, tile: Triple) -> tuple[int, int]:
    """How many bits a tile's row and column take where its place in the grid of tiles is packed into an int32."""
    frames, rows, columns = ((tiles - 1).bit_length() for tiles in tile_counts(view, tile))
    if frames + rows + columns > 31:
        raise ValueError(f"a video of {view} tokens has too many tiles of {tile}: larger tiles are needed")
    return rows, columns


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept serves a later training too
def tile_tokens(view: Triple, tile: Triple, offset: int = 0) -> tuple[torch.Tensor, ...]:
    """Positions of each tile's tokens in the sequence: one int64 tensor a tile, ascending within the tile's raster.

    `offset` is the number of tokens before the video. The tensors are shared by all callers: do not write to them.
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
    """The tile that holds each video token: int64 [frames * height * width]."""
    owner = torch.empty(math.prod(view), dtype=torch.int64)
    for number, tokens in enumerate(tile_tokens(view, tile)):
        owner[tokens] = number
    return owner
