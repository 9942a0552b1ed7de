"""The transposed lists: for each key tile its column, the query tiles that see it, divided into pieces of work.

They are made on the device without synchronising, and do not depend on the order of threads.

Names, besides those of primitives.py and lists.py:
    group             a head of the map, of batch * heads of the map
    kept              int8 [groups, rows, columns], the map, dense
    starts            int32 [groups, columns], where each column's list starts in `places`
    capacity          entries of `places` in each group
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vidsparse_kernels.gpu.primitives import pack, tile_place
from vidsparse_kernels.layout import TileLayout, Triple, place_bits, tile_counts

# Split a column that is longer than SPLIT average ones and than the part SMALL of all work. Shorter ones finish with
# the rest even when scheduled last: SMALL is a sixteenth of what each of 256 programs, all that a large GPU runs at
# once, has to do.
SPLIT, SMALL = 4, 1 / 4096
# Slots per column: the sums of divided columns take an eighth of the memory of the gradients of keys and values.
SLOTS = 1 / 32


@triton.jit(do_not_specialize=["list_width", "columns"])
def mark_kernel(counts, indices, kept, list_width, columns, BLOCK: tl.constexpr):
    """Grid (rows): kept[row, tile] = 1 for each listed tile."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    listed = i < tl.load(counts + row)
    # [BLOCK] numbers of tiles
    tl.store(kept + row * columns + tl.load(indices + row * list_width + i, mask=listed, other=0), 1, mask=listed)


@triton.jit(do_not_specialize=["rows", "columns", "capacity", "frames", "height", "width", "row_bits", "column_bits"])
def column_lists_kernel(
    kept,
    starts,
    places,
    rows,
    columns,
    capacity,
    frames,
    height,
    width,
    row_bits,
    column_bits,
    QUERY_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Grid (blocks of columns, groups): write each column's list of packed query tiles, from its start on."""
    group = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    end = tl.load(starts + group * columns + column, mask=column < columns, other=0)
    for first in tl.range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        real = (row < rows)[:, None] & (column < columns)[None, :]
        at = (group * rows + row)[:, None] * columns + column[None, :]
        # [ROWS, COLUMNS]
        seen = tl.load(kept + at, mask=real, other=0).to(tl.int32)
        position = group * capacity + end[None, :] + tl.cumsum(seen, 0) - 1
        entry = pack(tile_place(row, (frames, height, width), QUERY_TILE), (row_bits, column_bits))
        tl.store(places + position, tl.broadcast_to(entry[:, None], [ROWS, COLUMNS]), mask=seen > 0)
        end += tl.sum(seen, 0)


@dataclass(frozen=True)
class Columns:
    """The lists that the gradients of keys and values walk. G = batch * heads of the map.

    Attributes:
        places: int32 [G, capacity], packed places of query tiles, list after list.
        pieces: int32 [G, P, 5]: column, part of the column, begin and end in `places`, and the slot for the piece's
            sums, -1 if it is the column's only piece. Unused pieces have column -1.
        slots: int32 [G, columns, 2]: the first slot of a column, and its number of slots: 0 for a single piece.
        every_place: int32 [query tiles], the list of the extra keys, which all queries see.
    """

    places: torch.Tensor
    pieces: torch.Tensor
    slots: torch.Tensor
    every_place: torch.Tensor

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The attributes, as an operator takes them."""
        return [self.places, self.pieces, self.slots, self.every_place]


def piece_limit(capacity: int, columns: int, programs: int) -> int:
    """The most query tiles of a piece, unless memory requires longer ones. `capacity` bounds the pairs of one head."""
    return math.ceil(capacity * max(SPLIT / columns, SMALL * programs))


def slot_count(rows: int, columns: int, capacity: int, limit: int) -> int:
    """The slots of each head: as many as `limit` could need, and at most the part SLOTS of the columns."""
    # A divided column is longer than the limit, so it has fewer than twice as many pieces as limits.
    return 0 if limit >= rows else min(2 * capacity // limit, int(columns * SLOTS))


def divide(lengths: torch.Tensor, rows: int, limit: int, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide the columns into parts that need at most `slots` slots.

    Where they would need more, the group's limit doubles until they fit: longer pieces, never a wrong result.

    Args:
        lengths: int32 [G, columns], none above `rows`.
        rows: query tiles. limit: the most query tiles of a part. slots: of each group.

    Returns:
        int32 [G, columns], the parts of each column; int32 [G, 1], the limit of each group.
    """
    doublings = max(0, math.ceil(math.log2(rows / limit)))
    limits = limit * 2 ** torch.arange(doublings + 1, device=lengths.device, dtype=torch.int32)
    parts = ((lengths[..., None] + limits - 1) // limits).clamp(min=1)
    needed = torch.where(parts > 1, parts, 0).sum(dim=1)
    # No column is longer than the last limit, so one limit always fits.
    chosen = (needed <= slots).to(torch.uint8).argmax(dim=-1, keepdim=True)
    return parts.gather(2, chosen[:, None].expand(-1, lengths.shape[1], 1))[..., 0].to(torch.int32), limits[chosen]


def _make(
    counts: torch.Tensor, indices: torch.Tensor, view: Triple, tile: Triple, columns: int, programs: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, list_width = indices.shape[-2:]
    groups, capacity, device = counts.shape[0] * counts.shape[1], rows * list_width, counts.device
    # A byte for each pair of tiles: 20 MB for 115,000 tokens, tiles of 128 and 24 heads.
    kept = torch.zeros(groups, rows, columns, dtype=torch.int8, device=device)
    mark_kernel[(groups * rows,)](counts, indices, kept, list_width, columns, triton.next_power_of_2(list_width))
    lengths = kept.sum(dim=1, dtype=torch.int32)
    ends = lengths.cumsum(dim=1, dtype=torch.int32)
    starts = ends - lengths
    places = torch.empty(groups, capacity, dtype=torch.int32, device=device)
    column_lists_kernel[(triton.cdiv(columns, 32), groups)](
        kept,
        starts,
        places,
        rows,
        columns,
        capacity,
        *view,
        *place_bits(view, tile),
        QUERY_TILE=tile,
        ROWS=128,
        COLUMNS=32,
    )
    limit = piece_limit(capacity, columns, programs)
    parts, limits = divide(lengths, rows, limit, slot_count(rows, columns, capacity, limit))
    slots = torch.where(parts > 1, parts, 0)
    first_slots = slots.cumsum(dim=1, dtype=torch.int32) - slots
    last_pieces = parts.cumsum(dim=1, dtype=torch.int32)
    number = torch.arange(columns + capacity // limit, device=device, dtype=torch.int32).expand(groups, -1).contiguous()
    owner = torch.searchsorted(last_pieces, number, right=True)
    used = owner < columns
    owner = owner.clamp(max=columns - 1)
    part = number - (last_pieces - parts).gather(1, owner)
    begin = starts.gather(1, owner) + part * limits
    end = torch.minimum(begin + limits, ends.gather(1, owner))
    slot = torch.where(slots.gather(1, owner) > 0, first_slots.gather(1, owner) + part, -1)
    pieces = torch.stack((torch.where(used, owner, -1), part, begin, end, slot), dim=2).to(torch.int32)
    return places, pieces, torch.stack((first_slots, slots), dim=2)


def every_place(view: Triple, tile: Triple, device: torch.device) -> torch.Tensor:
    """The packed places of all tiles, int32 [tiles]."""
    row_bits, column_bits = place_bits(view, tile)
    frames, rows, columns = (torch.arange(n, device=device, dtype=torch.int32) for n in tile_counts(view, tile))
    return ((((frames[:, None, None] << row_bits) | rows[:, None]) << column_bits) | columns).flatten()


@torch.library.custom_op("vidsparse::columns", mutates_args=())
def _columns(
    counts: torch.Tensor,
    indices: torch.Tensor,
    view: Sequence[int],
    tile: Sequence[int],
    columns: int,
    programs: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    (a, b, c), (d, e, f) = view, tile
    # The result is cached with the map, and a training may use it later.
    with torch.cuda.device_of(counts), torch.inference_mode(False):
        made = _make(counts, indices, (a, b, c), (d, e, f), columns, programs)
        return *made, every_place((a, b, c), (d, e, f), counts.device)


@_columns.register_fake
def _(counts, indices, view, tile, columns, programs):
    groups, (rows, list_width) = counts.shape[0] * counts.shape[1], indices.shape[-2:]
    pieces = columns + rows * list_width // piece_limit(rows * list_width, columns, programs)
    shapes = (groups, rows * list_width), (groups, pieces, 5), (groups, columns, 2), (rows,)
    return tuple(counts.new_empty(shape) for shape in shapes)


def transpose(counts: torch.Tensor, indices: torch.Tensor, layout: TileLayout, programs: int) -> Columns:
    """Transpose lists, and divide the columns.

    Args:
        counts: int32 [B|1, H|1, rows]. indices: int32 [B|1, H|1, rows, W].
        layout: geometry of the map.
        programs: batch * heads of the query.
    """
    query = layout.query
    return Columns(*_columns(counts, indices, list(query.view), list(query.tile), layout.key.tiles, programs))
