"""What kernels do to lists of tiles, on the device, without waiting for it: order, transpose and divide them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vidsparse_kernels.boxes import box_origin
from vidsparse_kernels.tiles import Triple

# A key tile is divided if its list of queries is longer than this many average ones, and than this part of all work:
# shorter ones, even last, end with the others (sixteen to each of the 256 programs that run at once on a large GPU).
SPLIT, SMALL = 4, 1 / 4096


@triton.jit
def _whole_first_kernel(counts, indices, ordered, whole_counts, view, width, TILE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    listed = i < tl.load(counts + row)
    number = tl.load(indices + row * width + i, mask=listed, other=0)
    f, y, x = box_origin(number, 0, view, TILE, TILE)
    whole = listed & (f + TILE[0] <= view[0]) & (y + TILE[1] <= view[1]) & (x + TILE[2] <= view[2])
    ragged = listed & (whole == 0)
    wholes = tl.sum(whole.to(tl.int32))
    place = tl.where(whole, tl.cumsum(whole.to(tl.int32)), wholes + tl.cumsum(ragged.to(tl.int32))) - 1
    tl.store(ordered + row * width + place, number, mask=listed)
    tl.store(whole_counts + row, wholes)


def whole_first(
    counts: torch.Tensor, indices: torch.Tensor, view: Triple, tile: Triple
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the tiles that lie inside the grid before those that its border cuts, ascending among themselves.

    Args:
        counts: int32 [..., rows]. indices: int32 [..., rows, W].

    Returns:
        How many whole tiles each row has, int32 [..., rows], and the lists in their new order.
    """
    if all(size % side == 0 for size, side in zip(view, tile, strict=True)):
        return counts, indices
    whole_counts, ordered = torch.empty_like(counts), torch.empty_like(indices)
    width = indices.shape[-1]
    _whole_first_kernel[(counts.numel(),)](
        counts, indices, ordered, whole_counts, view, width, tile, triton.next_power_of_2(width)
    )
    return whole_counts, ordered


@triton.jit
def _mark_kernel(counts, indices, kept, width, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    listed = i < tl.load(counts + row)
    tl.store(kept + row * columns + tl.load(indices + row * width + i, mask=listed, other=0), 1, mask=listed)


@triton.jit
def _column_lists_kernel(kept, starts, listed, rows, columns, capacity, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    group = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    end = tl.load(starts + group * columns + column, mask=column < columns, other=0)
    for first in tl.range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        real = (row < rows)[:, None] & (column < columns)[None, :]
        at = (group * rows + row)[:, None] * columns + column[None, :]
        seen = tl.load(kept + at, mask=real, other=0).to(tl.int32)
        place = group * capacity + end[None, :] + tl.cumsum(seen, 0) - 1
        tl.store(listed + place, tl.broadcast_to(row[:, None], [ROWS, COLUMNS]), mask=seen > 0)
        end += tl.sum(seen, 0)


@dataclass(frozen=True)
class ColumnWork:
    """The transposed lists, divided into pieces of work of bounded length.

    A column is a key tile, its list the query tiles that see it, ascending. G = batch * heads of the map.

    Attributes:
        queries: int32 [G, capacity], list after list.
        pieces: int32 [G, P, 5]: column, part of the column, begin and end in `queries`, and the slot in which the piece
            leaves its sums; -1 where it is the column's only piece. Unused pieces have column -1.
        slots: int32 [G, columns, 2]: a column's first slot and number of slots; 0 slots where it has one piece.
        limit: most queries of a piece.
        slot_count: how many slots there must be.
    """

    queries: torch.Tensor
    pieces: torch.Tensor
    slots: torch.Tensor
    limit: int
    slot_count: int


def column_work(counts: torch.Tensor, indices: torch.Tensor, columns: int, programs: int) -> ColumnWork:
    """Transpose lists int32 [Bm, Hm, rows] and [Bm, Hm, rows, W]; no order of threads shows in the result.

    `programs` is the number of heads, of all samples, that compute with them.
    """
    rows, width = indices.shape[-2:]
    groups, capacity, device = counts.shape[0] * counts.shape[1], rows * width, counts.device
    # A byte for each pair of tiles: 20 MB for 115,000 tokens, tiles of 128 and 24 heads.
    kept = torch.zeros(groups, rows, columns, dtype=torch.int8, device=device)
    _mark_kernel[(groups * rows,)](counts, indices, kept, width, columns, triton.next_power_of_2(width))
    lengths = kept.sum(dim=1, dtype=torch.int32)
    ends = lengths.cumsum(dim=1, dtype=torch.int32)
    starts = ends - lengths
    queries = torch.empty(groups, capacity, dtype=torch.int32, device=device)
    _column_lists_kernel[(triton.cdiv(columns, 32), groups)](
        kept, starts, queries, rows, columns, capacity, ROWS=128, COLUMNS=32
    )

    limit = math.ceil(capacity * max(SPLIT / columns, SMALL * programs))
    parts = ((lengths + limit - 1) // limit).clamp(min=1)
    slots = torch.where(parts > 1, parts, 0)
    first_slots = slots.cumsum(dim=1, dtype=torch.int32) - slots
    last_pieces = parts.cumsum(dim=1, dtype=torch.int32)
    # No list is longer than the rows, nor than all together: so many pieces and slots suffice, whatever the lists.
    slot_count = 0 if limit >= rows else 2 * capacity // limit
    number = torch.arange(columns + capacity // limit, device=device, dtype=torch.int32).expand(groups, -1).contiguous()
    owner = torch.searchsorted(last_pieces, number, right=True)
    used = owner < columns
    owner = owner.clamp(max=columns - 1)
    part = number - (last_pieces - parts).gather(1, owner)
    begin = starts.gather(1, owner) + part * limit
    end = torch.minimum(begin + limit, ends.gather(1, owner))
    slot = torch.where(slots.gather(1, owner) > 0, first_slots.gather(1, owner) + part, -1)
    pieces = torch.stack((torch.where(used, owner, -1), part, begin, end, slot), dim=2).to(torch.int32)
    return ColumnWork(queries, pieces, torch.stack((first_slots, slots), dim=2), limit, slot_count)
