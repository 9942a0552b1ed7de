"""The geometry of tiles: which tokens each holds, how many there are, and their lists. No token ever moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Tiling:
    """One sequence in tiles: `prefix` tokens, a video of `view` (frames, height, width), `suffix` tokens.

    The video is in raster order. Tiles are numbered in raster order over the grid of tiles. Tiles at the border may be
    ragged: smaller than the rest.
    """

    boxes: ClassVar[bool] = True  # whether each tile holds all tokens of its box, as kernels for GPUs expect

    view: Triple
    tile: Triple
    prefix: int = 0
    suffix: int = 0

    @property
    def video_tokens(self) -> int:
        return math.prod(self.view)

    @property
    def extra(self) -> int:
        """How many tokens are before and after the video."""
        return self.prefix + self.suffix

    @property
    def tokens(self) -> int:
        return self.video_tokens + self.extra

    @property
    def volume(self) -> int:
        """The tokens of a whole tile."""
        return math.prod(self.tile)

    @property
    def tiles(self) -> int:
        """The number of tiles that cover the video."""
        return tile_count(self.view, self.tile)

    @property
    def extra_blocks(self) -> int:
        """How many blocks of `volume` tokens hold the prefix and suffix tokens."""
        return math.ceil(self.extra / self.volume)

    @property
    def ragged(self) -> bool:
        """Whether the border of the video cuts tiles."""
        return any(size % side for size, side in zip(self.view, self.tile, strict=True))

    @property
    def numbers(self) -> list[int]:
        """All fields as a list, as an operator of PyTorch takes them."""
        return [*self.view, *self.tile, self.prefix, self.suffix]

    @classmethod
    def of_numbers(cls, numbers: Sequence[int]) -> Tiling:
        """The inverse of `numbers`."""
        a, b, c, d, e, f, prefix, suffix = numbers
        return cls((a, b, c), (d, e, f), prefix, suffix)

    @property
    def tile_tokens(self) -> tuple[torch.Tensor, ...]:
        """Positions of each tile's tokens in the sequence: see the function `tile_tokens`."""
        return tile_tokens(self.view, self.tile, self.prefix)

    @property
    def tile_of_token(self) -> torch.Tensor:
        """The tile that holds each video token: int64 [video tokens], on the CPU."""
        return tile_of_token(self.view, self.tile)

    def tile_sizes(self, device: torch.device | None = None) -> torch.Tensor:
        """The number of tokens in each tile: int64 [tiles] on `device` (default: the CPU)."""
        return tile_sizes(self.view, self.tile, device)

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


@dataclass(frozen=True)
class TileLayout:
    """Geometry of a call: the sequence of its queries, and that of its keys and values. Both may be the same tokens."""

    query: Tiling
    key: Tiling

    def padding_mask(self, extra_valid: torch.Tensor | None) -> torch.Tensor | None:
        """`Tiling.padding_mask` of the keys."""
        return self.key.padding_mask(extra_valid)


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


def check_lists(counts: torch.Tensor, indices: torch.Tensor, tiles: int) -> None:
    """Validate every entry, which synchronises with a GPU.

    Args:
        counts: int32 [..., rows], the length of each list.
        indices: int32 [..., rows, W], numbers of key tiles; entries past the count may be anything.
        tiles: how many key tiles there are.

    Raises:
        ValueError: a count beyond the width of the lists, a tile that does not exist, or a list that does not ascend.
    """
    width = indices.shape[-1]
    if not bool(((counts >= 0) & (counts <= width)).all()):
        raise ValueError(
            f"counts hold {int(counts.min())} to {int(counts.max())}, expected 0 to {width}, the width of the lists"
        )
    listed = torch.arange(width, device=indices.device) < counts[..., None]
    wrong = listed & ((indices < 0) | (indices >= tiles))
    if bool(wrong.any()):
        raise ValueError(f"indices hold {int(indices[wrong][0])}, but the grid has key tiles 0 to {tiles - 1}")
    if bool((listed[..., 1:] & (indices[..., 1:] <= indices[..., :-1])).any()):
        raise ValueError("indices must ascend within each list: a tile that is listed twice would count twice")
