"""The lists of key tiles as kernels walk them: each tile as its packed place, whole tiles before ragged ones.

A map that stays the same from call to call keeps its lists for both directions (`MapLists`).

Names, besides those of primitives.py:
    counts, indices   the map: int32 [rows] and [rows, list_width], numbers of key tiles
    places            the lists, int32 [rows, list_width], packed places of key tiles
    whole_counts      int32 [rows], how many tiles of a list are inside the grid: its first ones
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl

from vidsparse_kernels.gpu.columns import Columns, transpose
from vidsparse_kernels.gpu.primitives import box_origin, pack, tile_place
from vidsparse_kernels.layout import TileLayout, Triple, place_bits, tile_count


@triton.jit(do_not_specialize=["frames", "height", "width", "row_bits", "column_bits", "list_width"])
def key_lists_kernel(
    counts,
    indices,
    places,
    whole_counts,
    frames,
    height,
    width,
    row_bits,
    column_bits,
    list_width,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (rows of the map): one list, of at most BLOCK tiles."""
    view = (frames, height, width)
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    listed = i < tl.load(counts + row)
    # [BLOCK] numbers of tiles
    place = tile_place(tl.load(indices + row * list_width + i, mask=listed, other=0), view, TILE)
    first = box_origin(place, 0, TILE, TILE)
    whole = listed & (first[0] + TILE[0] <= frames) & (first[1] + TILE[1] <= height) & (first[2] + TILE[2] <= width)
    ragged = listed & (whole == 0)
    wholes = tl.sum(whole.to(tl.int32))
    position = tl.where(whole, tl.cumsum(whole.to(tl.int32)), wholes + tl.cumsum(ragged.to(tl.int32))) - 1
    tl.store(places + row * list_width + position, pack(place, (row_bits, column_bits)), mask=listed)
    tl.store(whole_counts + row, wholes)


def whole_first(
    counts: torch.Tensor, indices: torch.Tensor, view: Triple, tile: Triple
) -> tuple[torch.Tensor, torch.Tensor]:
    """Move the tiles that are inside the grid before those that its border cuts; each kind stays ascending.

    Args:
        counts: int32 [..., rows], the length of each list.
        indices: int32 [..., rows, W], numbers of tiles.

    Returns:
        int32 [..., rows], how many whole tiles each list has; and the lists, int32 [..., rows, W] packed places.
    """
    whole_counts, places = torch.empty_like(counts), torch.empty_like(indices)
    list_width = indices.shape[-1]
    key_lists_kernel[(counts.numel(),)](
        counts,
        indices,
        places,
        whole_counts,
        *view,
        *place_bits(view, tile),
        list_width,
        TILE=tile,
        BLOCK=triton.next_power_of_2(list_width),
    )
    return whole_counts, places


# A custom operator, so that `torch.compile` keeps the launches out of its graphs.
@torch.library.custom_op("vidsparse::key_lists", mutates_args=())
def _key_lists(
    counts: torch.Tensor, indices: torch.Tensor, view: Sequence[int], tile: Sequence[int], every: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    (a, b, c), (d, e, f) = view, tile
    tiles = tile_count(view, tile) if every else 0
    # The result is cached with the map, and a training may use it later.
    with torch.cuda.device_of(counts), torch.inference_mode(False):
        all_tiles = torch.arange(tiles, device=counts.device, dtype=torch.int32)[None]
        if every:
            all_tiles = whole_first(all_tiles.new_full((1,), tiles), all_tiles, (a, b, c), (d, e, f))[1]
        return *whole_first(counts, indices, (a, b, c), (d, e, f)), all_tiles[0]


@_key_lists.register_fake
def _(counts, indices, view, tile, every):
    tiles = tile_count(view, tile) if every else 0
    return torch.empty_like(counts), torch.empty_like(indices), counts.new_empty(tiles)


@dataclass(frozen=True)
class KeyLists:
    """The lists that the forward and the gradient of the queries walk.

    Attributes:
        counts: int32 [B|1, H|1, query tiles], the length of each list.
        whole_counts: int32 [B|1, H|1, query tiles], how many tiles of each list are inside the grid.
        places: int32 [B|1, H|1, query tiles, W], packed places of key tiles, whole tiles first.
        every_place: int32 [key tiles], the list of the extra queries, which see all tiles; empty without such queries.
    """

    counts: torch.Tensor
    whole_counts: torch.Tensor
    places: torch.Tensor
    every_place: torch.Tensor

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The attributes, as an operator takes them."""
        return [self.counts, self.whole_counts, self.places, self.every_place]


def provisional() -> bool:
    """Whether a CUDA graph is recorded or a model compiled: tensors made now exist only there and cannot be cached."""
    return torch.compiler.is_compiling() or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


@dataclass(frozen=True, eq=False)
class MapLists:
    """A block map's lists on a device, and the forms that kernels walk, each made at its first use.

    Attributes:
        counts: int32 [B|1, H|1, query tiles], contiguous.
        indices: int32 [B|1, H|1, query tiles, W], numbers of key tiles, ascending, contiguous.
        layout: the geometry of the map.

    Raises:
        TypeError, ValueError: lists of another dtype, device or shape.
    """

    counts: torch.Tensor
    indices: torch.Tensor
    layout: TileLayout
    _keys: list[KeyLists] = field(default_factory=list, init=False, repr=False)
    _columns: dict[int, Columns] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, x, rank in (("counts", self.counts, 3), ("indices", self.indices, 4)):
            if x.dtype != torch.int32 or x.device != self.counts.device:
                raise TypeError(f"{name} must be int32 on {self.counts.device}, got {x.dtype} on {x.device}")
            if x.ndim != rank or x.shape[:3] != self.counts.shape or not x.is_contiguous():
                raise ValueError(
                    f"{name} has shape {tuple(x.shape)} and strides {x.stride()}; contiguous counts [B|1, H|1, query "
                    "tiles] and indices [..., W] are expected"
                )

    def keys(self) -> KeyLists:
        """The lists of key tiles."""
        if self._keys:
            return self._keys[0]
        key, every = self.layout.key, self.layout.query.extra > 0
        made = _key_lists(self.counts, self.indices, list(key.view), list(key.tile), every)
        keys = KeyLists(self.counts, *made)
        if not provisional():
            self._keys.append(keys)
        return keys

    def columns(self, programs: int) -> Columns:
        """The lists of query tiles, divided into pieces of work for `programs` = batch * heads."""
        if programs in self._columns:
            return self._columns[programs]
        columns = transpose(self.counts, self.indices, self.layout, programs)
        if not provisional():
            self._columns[programs] = columns
        return columns
