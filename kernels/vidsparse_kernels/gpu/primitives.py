"""How a kernel finds its tokens: boxes of the video grid where they stand, and the tokens before and after the video.

A tile is read in steps: boxes of `STEP` sides that fill it, in raster order. Rows of a box that leave the grid are no
tokens; whoever uses them masks them. Lists of tiles hold each tile's place in the grid of tiles, packed into an int32.

A head's channels are read in `HEAD` = (64, 32) or (128, 0): two powers of two that sum up to head_dim, so that 96
channels cost no more than 96. What holds channels is therefore a tuple of one or two tensors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# head_dim in two powers of two: Triton has no other sizes, and 96 in 128 channels would cost a third more.
HEADS = {32: (32, 0), 64: (64, 0), 96: (64, 32), 128: (128, 0)}


def strides(x: torch.Tensor) -> tuple[int, int, int]:
    """Strides of batch, tokens and heads; the channels lie side by side."""
    return x.stride(0), x.stride(1), x.stride(2)


@triton.jit
def tile_count(view, TILE: tl.constexpr):
    """How many tiles cover the view (frames, height, width)."""
    return tl.cdiv(view[0], TILE[0]) * tl.cdiv(view[1], TILE[1]) * tl.cdiv(view[2], TILE[2])


@triton.jit
def tile_place(number, view, TILE: tl.constexpr):
    """Where tile `number` stands in the grid of tiles: (frame, row, column), in tiles."""
    rows, columns = tl.cdiv(view[1], TILE[1]), tl.cdiv(view[2], TILE[2])
    return number // (rows * columns), number // columns % rows, number % columns


@triton.jit
def tile_number(place, view, TILE: tl.constexpr):
    """The reverse of `tile_place`."""
    return (place[0] * tl.cdiv(view[1], TILE[1]) + place[1]) * tl.cdiv(view[2], TILE[2]) + place[2]


@triton.jit
def pack(place, bits):
    """A place as one int32: frame, row, column from the highest bits on; `bits` are those of a row and of a column."""
    return (((place[0] << bits[0]) | place[1]) << bits[1]) | place[2]


@triton.jit
def unpack(entry, bits):
    """The reverse of `pack`: shifts and masks, where finding a tile's place costs two divisions in every step."""
    above = entry >> bits[1]
    return above >> bits[0], above & ((1 << bits[0]) - 1), entry & ((1 << bits[1]) - 1)


@triton.jit
def box_origin(place, step, TILE: tl.constexpr, STEP: tl.constexpr):
    """First frame, row and column of a step of the tile at `place`, in tokens."""
    f = place[0] * TILE[0] + step // (TILE[1] // STEP[1] * (TILE[2] // STEP[2])) * STEP[0]
    y = place[1] * TILE[1] + step // (TILE[2] // STEP[2]) % (TILE[1] // STEP[1]) * STEP[1]
    x = place[2] * TILE[2] + step % (TILE[2] // STEP[2]) * STEP[2]
    return f, y, x


@triton.jit
def box_tokens(origin, view, prefix, BOX: tl.constexpr):
    """Positions in the sequence of the rows of a box, int32, and which of them are tokens at all."""
    ROWS: tl.constexpr = BOX[0] * BOX[1] * BOX[2]
    row = tl.arange(0, ROWS)
    f, y, x = row // (BOX[1] * BOX[2]), row // BOX[2] % BOX[1], row % BOX[2]
    inside = (origin[0] + f < view[0]) & (origin[1] + y < view[1]) & (origin[2] + x < view[2])
    # What is the same in every box stands apart, so that a loop computes it once.
    first = prefix + (origin[0] * view[1] + origin[1]) * view[2] + origin[2]
    return first + ((f * view[1] + y) * view[2] + x), inside


@triton.jit
def extra_tokens(first, prefix, view, valid, ROWS: tl.constexpr):
    """Positions of `ROWS` prefix and suffix tokens from number `first` on, and which of them are below `valid`."""
    number = first + tl.arange(0, ROWS)
    return number + tl.where(number < prefix, 0, view[0] * view[1] * view[2]), number < valid


@triton.jit
def held_tokens(tile, first_extra, view, prefix, extra, TILE: tl.constexpr):
    """The tokens that a program holds: those of a tile, or of a block of extra ones where `tile` is negative.

    Returns their positions, int32 [tokens of a tile], and which of them are tokens at all.
    """
    place = tile_place(tile, view, TILE)
    tokens, mine = box_tokens(box_origin(place, 0, TILE, TILE), view, prefix, TILE)
    if tile < 0:
        tokens, mine = extra_tokens(first_extra, prefix, view, extra, TILE[0] * TILE[1] * TILE[2])
    return tokens, mine


@triton.jit
def key_list(places, counts, whole_counts, every_place, row, tile, list_width, view, KEY_TILE: tl.constexpr):
    """The list of key tiles that query tile `tile` sees: where it starts, its length, how many, its first, are whole.

    `tile` is negative for extra queries, which see every tile.
    """
    listed = places + row * list_width
    # Selected, not branched: Triton 3.5 fails on a loop that starts from what a branch gives.
    count = tl.where(tile >= 0, tl.load(counts + row, mask=tile >= 0, other=0), tile_count(view, KEY_TILE))
    every_whole = (view[0] // KEY_TILE[0]) * (view[1] // KEY_TILE[1]) * (view[2] // KEY_TILE[2])
    whole = tl.where(tile >= 0, tl.load(whole_counts + row, mask=tile >= 0, other=0), every_whole)
    if tile < 0:
        listed = every_place
    return listed, count, whole


@triton.jit
def _at(pointer, tokens, stride, FIRST: tl.constexpr, CHANNELS: tl.constexpr):
    # Offsets into a long video do not fit 32 bits.
    return pointer + tokens.to(tl.int64)[:, None] * stride + (FIRST + tl.arange(0, CHANNELS))[None, :]


@triton.jit
def load_rows(pointer, tokens, stride, inside, HEAD: tl.constexpr):
    """One head's rows [tokens, head_dim]; zero where there is no token. `inside` None: all are tokens."""
    A: tl.constexpr = HEAD[0]
    B: tl.constexpr = HEAD[1]
    mask = None if inside is None else inside[:, None]
    other = None if inside is None else 0.0
    a = tl.load(_at(pointer, tokens, stride, 0, A), mask=mask, other=other)
    if B > 0:
        return a, tl.load(_at(pointer, tokens, stride, A, B), mask=mask, other=other)
    else:
        return (a,)


@triton.jit
def store_rows(pointer, tokens, stride, inside, x, HEAD: tl.constexpr):
    """The reverse of `load_rows`, in the dtype of the pointer."""
    A: tl.constexpr = HEAD[0]
    B: tl.constexpr = HEAD[1]
    mask = None if inside is None else inside[:, None]
    tl.store(_at(pointer, tokens, stride, 0, A), x[0].to(pointer.dtype.element_ty), mask=mask)
    if B > 0:
        tl.store(_at(pointer, tokens, stride, A, B), x[1].to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def box_start(batch, head, heads, strides, HEADS_FIRST: tl.constexpr):
    """Where a head stands in the descriptors of its tensor: number of the video, and first channel.

    Descriptors are [videos, frames, height, width, channels]: a video is a sample, with its heads side by side in the
    channels, or, with HEADS_FIRST, a head of a sample.
    """
    if HEADS_FIRST:
        return batch * heads + head, 0
    else:
        return batch, head * strides[2]


@triton.jit
def load_box(boxes, start, origin, BOX: tl.constexpr, HEAD: tl.constexpr):
    """One head's rows [tokens, head_dim] of a box, by the tensor memory accelerator; zero outside the grid.

    `boxes` are descriptors, one for each part of `HEAD`; `start` is what `box_start` gives.
    """
    ROWS: tl.constexpr = BOX[0] * BOX[1] * BOX[2]
    A: tl.constexpr = HEAD[0]
    B: tl.constexpr = HEAD[1]
    a = boxes[0].load([start[0], origin[0], origin[1], origin[2], start[1]]).reshape(ROWS, A)
    if B > 0:
        return a, boxes[1].load([start[0], origin[0], origin[1], origin[2], start[1] + A]).reshape(ROWS, B)
    else:
        return (a,)


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
    """Rows of x [rows, head_dim] that are kept, zeros for the others."""
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
    """total + weights @ x for weights [rows, columns] and x [columns, head_dim]; weights take the dtype of x."""
    weights = weights.to(x[0].dtype)
    a = tl.dot(weights, x[0], total[0], input_precision=PRECISION)
    if HEAD[1] > 0:
        return a, tl.dot(weights, x[1], total[1], input_precision=PRECISION)
    else:
        return (a,)
