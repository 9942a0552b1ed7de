"""How a kernel finds its tokens: boxes of the video grid where they are, and the tokens before and after the video.

A tile is read in steps: boxes of `STEP` sides that fill it, in raster order. Rows of a box beyond the grid hold no
token, and the callers mask them. Lists of tiles hold each tile's place in the grid of tiles, packed into an int32.

A head's channels are read in two parts, `HEAD` = (64, 32) or (128, 0): powers of two that add up to head_dim, so that
96 channels cost no more than 96. Values with channels are therefore tuples of one or two tensors, `low` and `high`.

Names:
    view, prefix      a video (frames, height, width), and the tokens before it, all in tokens: that of the queries, or
                      that of the keys
    extra             its prefix and suffix tokens together, numbered in sequence order
    TILE, STEP, BOX   sides (frames, height, width) of a tile, of what a step reads of it, of any box, in tokens
    place             a tile in the grid of tiles: (frame, row, column), in tiles
    entry             a packed place, int32; `bits` are those of its row and its column
    origin            the first (frame, row, column) of a box, in tokens
    tokens            int32 [rows], positions in the sequence
    inside            bool [rows], which of these positions hold a token
    HEAD              channels in the low and in the high part
    boxes             TMA descriptors of a tensor, one for each part of HEAD
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Arguments that change with the size of the video: a kernel is not compiled again for each value.
SIDE = ("frames", "height", "width", "prefix", "extra")
SIZES = [
    *(f"{of}_{size}" for of in ("query", "key") for size in SIDE),
    *("heads", "row_bits", "column_bits"),
    *("map_batch", "map_head", "list_width", "limit", "piece_count", "slot_count", "parts", "columns"),
    "norm_blocks",
]

# head_dim as two powers of two: Triton has no other sizes, and 96 padded to 128 channels would cost a third more.
HEADS = {32: (32, 0), 64: (64, 0), 96: (64, 32), 128: (128, 0)}


def strides(x: torch.Tensor) -> tuple[int, int, int]:
    """Strides of batch, tokens and heads, in elements; the channels are contiguous."""
    return x.stride(0), x.stride(1), x.stride(2)


@triton.jit
def tile_count(view, TILE: tl.constexpr):
    """The number of tiles that cover the view."""
    return tl.cdiv(view[0], TILE[0]) * tl.cdiv(view[1], TILE[1]) * tl.cdiv(view[2], TILE[2])


@triton.jit
def tile_place(number, view, TILE: tl.constexpr):
    """The place of tile `number` in the grid of tiles: (frame, row, column), in tiles."""
    rows, columns = tl.cdiv(view[1], TILE[1]), tl.cdiv(view[2], TILE[2])
    return number // (rows * columns), number // columns % rows, number % columns


@triton.jit
def tile_number(place, view, TILE: tl.constexpr):
    """The inverse of `tile_place`."""
    return (place[0] * tl.cdiv(view[1], TILE[1]) + place[1]) * tl.cdiv(view[2], TILE[2]) + place[2]


@triton.jit
def pack(place, bits):
    """Pack a place into an int32: frame, row and column from the highest bits down."""
    return (((place[0] << bits[0]) | place[1]) << bits[1]) | place[2]


@triton.jit
def unpack(entry, bits):
    """The inverse of `pack`: shifts and masks instead of the divisions of `tile_place` in every step."""
    above = entry >> bits[1]
    return above >> bits[0], above & ((1 << bits[0]) - 1), entry & ((1 << bits[1]) - 1)


@triton.jit
def box_origin(place, step, TILE: tl.constexpr, STEP: tl.constexpr):
    """The first frame, row and column of a step of the tile at `place`, in tokens."""
    frame = place[0] * TILE[0] + step // (TILE[1] // STEP[1] * (TILE[2] // STEP[2])) * STEP[0]
    row = place[1] * TILE[1] + step // (TILE[2] // STEP[2]) % (TILE[1] // STEP[1]) * STEP[1]
    column = place[2] * TILE[2] + step % (TILE[2] // STEP[2]) * STEP[2]
    return frame, row, column


@triton.jit
def box_tokens(origin, view, prefix, BOX: tl.constexpr):
    """The tokens of a box, int32 [rows], and which of them are inside the grid, bool [rows]."""
    ROWS: tl.constexpr = BOX[0] * BOX[1] * BOX[2]
    slot = tl.arange(0, ROWS)
    frame, row, column = slot // (BOX[1] * BOX[2]), slot // BOX[2] % BOX[1], slot % BOX[2]
    inside = (origin[0] + frame < view[0]) & (origin[1] + row < view[1]) & (origin[2] + column < view[2])
    # Offsets within a box are the same in every box: kept apart, a loop computes them once.
    first = prefix + (origin[0] * view[1] + origin[1]) * view[2] + origin[2]
    return first + ((frame * view[1] + row) * view[2] + column), inside


@triton.jit
def extra_tokens(first, prefix, view, valid, ROWS: tl.constexpr):
    """`ROWS` extra tokens from number `first` on, int32 [rows], and which of their numbers are below `valid`."""
    number = first + tl.arange(0, ROWS)
    return number + tl.where(number < prefix, 0, view[0] * view[1] * view[2]), number < valid


@triton.jit
def held_tokens(tile, first_extra, view, prefix, extra, TILE: tl.constexpr):
    """The tokens that a program holds: those of a tile, or for a negative `tile` a block of extra tokens.

    Returns int32 [rows], and which of them hold a token, bool [rows]; a block has as many rows as a tile.
    """
    place = tile_place(tile, view, TILE)
    tokens, mine = box_tokens(box_origin(place, 0, TILE, TILE), view, prefix, TILE)
    if tile < 0:
        tokens, mine = extra_tokens(first_extra, prefix, view, extra, TILE[0] * TILE[1] * TILE[2])
    return tokens, mine


@triton.jit
def key_list(places, counts, whole_counts, every_place, row, tile, list_width, view, KEY_TILE: tl.constexpr):
    """The list of key tiles that query tile `tile` sees: its pointer, its length, and how many at its start are whole.

    `row` is the tile's row in the map. `tile` is negative for extra queries, which see every tile.
    """
    listed = places + row * list_width
    # Selected instead of branched: Triton 3.5 fails on loop bounds that come from a branch.
    count = tl.where(tile >= 0, tl.load(counts + row, mask=tile >= 0, other=0), tile_count(view, KEY_TILE))
    every_whole = (view[0] // KEY_TILE[0]) * (view[1] // KEY_TILE[1]) * (view[2] // KEY_TILE[2])
    whole = tl.where(tile >= 0, tl.load(whole_counts + row, mask=tile >= 0, other=0), every_whole)
    if tile < 0:
        listed = every_place
    return listed, count, whole


@triton.jit
def _at(pointer, tokens, stride, FIRST: tl.constexpr, CHANNELS: tl.constexpr):
    # int64, because offsets into a long video do not fit 32 bits.
    return pointer + tokens.to(tl.int64)[:, None] * stride + (FIRST + tl.arange(0, CHANNELS))[None, :]


@triton.jit
def load_rows(pointer, tokens, stride, inside, HEAD: tl.constexpr):
    """Load one head's rows [rows, head_dim]; zeros where `inside` is False. `inside` None: all rows hold a token."""
    LOW: tl.constexpr = HEAD[0]
    HIGH: tl.constexpr = HEAD[1]
    mask = None if inside is None else inside[:, None]
    other = None if inside is None else 0.0
    low = tl.load(_at(pointer, tokens, stride, 0, LOW), mask=mask, other=other)  # [rows, LOW]
    if HIGH > 0:
        return low, tl.load(_at(pointer, tokens, stride, LOW, HIGH), mask=mask, other=other)  # [rows, HIGH]
    else:
        return (low,)


@triton.jit
def store_rows(pointer, tokens, stride, inside, x, HEAD: tl.constexpr):
    """Store one head's rows [rows, head_dim] in the dtype of the pointer, where `inside` is True or None."""
    LOW: tl.constexpr = HEAD[0]
    HIGH: tl.constexpr = HEAD[1]
    mask = None if inside is None else inside[:, None]
    tl.store(_at(pointer, tokens, stride, 0, LOW), x[0].to(pointer.dtype.element_ty), mask=mask)
    if HIGH > 0:
        tl.store(_at(pointer, tokens, stride, LOW, HIGH), x[1].to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def box_start(batch, head, heads, strides, HEADS_FIRST: tl.constexpr):
    """The start of a head in the descriptors of its tensor: the number of the video, and the first channel.

    Descriptors are [videos, frames, height, width, channels]. A video is a sample, with all its heads in the channels,
    or with HEADS_FIRST one head of a sample.
    """
    if HEADS_FIRST:
        return batch * heads + head, 0
    else:
        return batch, head * strides[2]


@triton.jit
def load_box(boxes, start, origin, BOX: tl.constexpr, HEAD: tl.constexpr):
    """Load one head's rows [rows, head_dim] of a box by the tensor memory accelerator; zeros outside the grid.

    `start` comes from `box_start`.
    """
    ROWS: tl.constexpr = BOX[0] * BOX[1] * BOX[2]
    LOW: tl.constexpr = HEAD[0]
    HIGH: tl.constexpr = HEAD[1]
    low = boxes[0].load([start[0], origin[0], origin[1], origin[2], start[1]]).reshape(ROWS, LOW)
    if HIGH > 0:
        return low, boxes[1].load([start[0], origin[0], origin[1], origin[2], start[1] + LOW]).reshape(ROWS, HIGH)
    else:
        return (low,)


@triton.jit
def zeros(ROWS: tl.constexpr, HEAD: tl.constexpr):
    """A float32 accumulator [ROWS, head_dim]."""
    A: tl.constexpr = HEAD[0]
    B: tl.constexpr = HEAD[1]
    if B > 0:
        return tl.zeros([ROWS, A], tl.float32), tl.zeros([ROWS, B], tl.float32)
    else:
        return (tl.zeros([ROWS, A], tl.float32),)


@triton.jit
def scale_rows(x, factor, HEAD: tl.constexpr):
    """x * factor, for x [rows, head_dim] and factor a number or [rows, 1]."""
    if HEAD[1] > 0:
        return x[0] * factor, x[1] * factor
    else:
        return (x[0] * factor,)


@triton.jit
def add_rows(x, y, HEAD: tl.constexpr):
    """x + y, [rows, head_dim] each."""
    if HEAD[1] > 0:
        return x[0] + y[0], x[1] + y[1]
    else:
        return (x[0] + y[0],)


@triton.jit
def keep_rows(x, kept, HEAD: tl.constexpr):
    """Rows of x [rows, head_dim] where `kept` is True, zeros elsewhere."""
    if HEAD[1] > 0:
        return tl.where(kept[:, None], x[0], 0.0), tl.where(kept[:, None], x[1], 0.0)
    else:
        return (tl.where(kept[:, None], x[0], 0.0),)


@triton.jit
def inner_products(x, y, HEAD: tl.constexpr, PRECISION: tl.constexpr):
    """x @ y.T for x [rows, head_dim] and y [columns, head_dim]: float32 [rows, columns]."""
    products = tl.dot(x[0], tl.trans(y[0]), input_precision=PRECISION)
    if HEAD[1] > 0:
        products = tl.dot(x[1], tl.trans(y[1]), products, input_precision=PRECISION)
    return products


@triton.jit
def add_product(total, weights, x, HEAD: tl.constexpr, PRECISION: tl.constexpr):
    """total + weights @ x for weights [rows, columns], cast to the dtype of x, and x [columns, head_dim]."""
    weights = weights.to(x[0].dtype)
    low = tl.dot(weights, x[0], total[0], input_precision=PRECISION)
    if HEAD[1] > 0:
        return low, tl.dot(weights, x[1], total[1], input_precision=PRECISION)
    else:
        return (low,)
