"""The kernels of the gradients of keys and values: a program takes a key tile and walks the query tiles that see it.

A column that many queries see, such as a sink or a text token, is divided into pieces. Each piece writes float32 sums
to its own slot, and a second kernel adds the slots in order: without atomics the same input gives the same bits.

Names, besides those of primitives.py:
    column            a key tile, or a block of extra keys, with the query tiles that see it
    piece, part       a program's share of a column, numbered over all columns, and within its column
    slot              float32 [2, KEYS, head_dim], the sums of one piece; -1 for the only piece of a column
    k, v              [KEYS, head_dim], keys and values of the program
    q, grad_o         [ROWS, head_dim], queries of a step, and the gradients of their outputs
    grad_k, grad_v    float32 [KEYS, head_dim], the sums
    lse, shift        float32 [ROWS], see `backward.row_terms_kernel`
    real, mine        bool [KEYS], which rows of the program are keys, and which hold a token
    HEAD_DIM          channels of a head
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from vidsparse_kernels.gpu.columns import Columns, piece_limit, slot_count
from vidsparse_kernels.gpu.forward import LOG2_E
from vidsparse_kernels.gpu.launch import Launch, step_box
from vidsparse_kernels.gpu.primitives import (
    SIZES,
    add_product,
    add_rows,
    box_origin,
    box_start,
    box_tokens,
    extra_tokens,
    held_tokens,
    inner_products,
    keep_rows,
    load_box,
    load_rows,
    scale_rows,
    store_rows,
    strides,
    tile_count,
    tile_number,
    unpack,
    zeros,
)
from vidsparse_kernels.layout import place_bits


@triton.jit
def add_key_gradients(grad_k, grad_v, k, v, q, grad_o, lse, shift, scale, HEAD: tl.constexpr, PRECISION: tl.constexpr):
    """Add one step of queries to grad_k, without the factor `scale`, and to grad_v.

    Both products are issued before the exponentials, which then wait for the first one only.
    """
    # [KEYS, ROWS] each
    scores, gains = inner_products(k, q, HEAD, PRECISION), inner_products(v, grad_o, HEAD, PRECISION)
    weights = tl.exp2(scores * (scale * LOG2_E) - lse[None, :])
    grad_v = add_product(grad_v, weights, grad_o, HEAD, PRECISION)
    return add_product(grad_k, weights * (gains - shift[None, :]), q, HEAD, PRECISION), grad_v


@triton.jit(do_not_specialize=SIZES)
def key_gradient_kernel(
    query,
    key,
    value,
    grad_out,
    query_boxes_low,
    query_boxes_high,
    grad_boxes_low,
    grad_boxes_high,
    grad_key,
    grad_value,
    sums,
    row_terms,
    places,
    pieces,
    every_place,
    extra_valid,
    query_strides,
    key_strides,
    value_strides,
    grad_strides,
    grad_key_strides,
    grad_value_strides,
    map_batch,
    map_head,
    list_width,
    query_frames,
    query_height,
    query_width,
    query_prefix,
    query_extra,
    key_frames,
    key_height,
    key_width,
    key_prefix,
    key_extra,
    row_bits,
    column_bits,
    heads,
    scale,
    limit,
    piece_count,
    slot_count,
    QUERY_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    STEP: tl.constexpr,
    HEAD: tl.constexpr,
    EXTRA: tl.constexpr,
    TMA: tl.constexpr,
    HEADS_FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (pieces of the columns of extra keys + pieces of key tiles, batch * heads).

    `sums` are the slots, float32 [batch * heads, slots, 2, KEYS, head_dim]; those of extra keys come last. Rows of the
    program that hold no key take part in the products but are never stored. Rows of a step that hold no query have lse
    +inf, so that their weights are 0.
    """
    query_view, key_view = (query_frames, query_height, query_width), (key_frames, key_height, key_width)
    bits = (row_bits, column_bits)
    KEYS: tl.constexpr = KEY_TILE[0] * KEY_TILE[1] * KEY_TILE[2]
    ROWS: tl.constexpr = STEP[0] * STEP[1] * STEP[2]
    STEPS: tl.constexpr = QUERY_TILE[0] * QUERY_TILE[1] * QUERY_TILE[2] // ROWS
    HEAD_DIM: tl.constexpr = HEAD[0] + HEAD[1]
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    wide_batch, wide_head = batch.to(tl.int64), head.to(tl.int64)
    query += wide_batch * query_strides[0] + wide_head * query_strides[2]
    key += wide_batch * key_strides[0] + wide_head * key_strides[2]
    value += wide_batch * value_strides[0] + wide_head * value_strides[2]
    grad_out += wide_batch * grad_strides[0] + wide_head * grad_strides[2]
    grad_key += wide_batch * grad_key_strides[0] + wide_head * grad_key_strides[2]
    grad_value += wide_batch * grad_value_strides[0] + wide_head * grad_value_strides[2]
    query_start = box_start(batch, head, heads, query_strides, HEADS_FIRST[0])
    grad_start = box_start(batch, head, heads, grad_strides, HEADS_FIRST[1])

    query_tiles = tile_count(query_view, QUERY_TILE)
    term_rows = (query_tiles + tl.cdiv(query_extra, ROWS * STEPS)) * ROWS * STEPS
    row_terms += tl.program_id(1).to(tl.int64) * (2 * term_rows)
    parts = tl.cdiv(query_tiles, limit)
    extra_pieces = tl.cdiv(key_extra, KEYS) * parts
    piece = tl.program_id(0) - extra_pieces
    group = wide_batch * map_batch + wide_head * map_head
    if piece >= 0:
        work = pieces + (group * piece_count + piece) * 5
        column, part, begin = tl.load(work), tl.load(work + 1), tl.load(work + 2)
        end, slot = tl.load(work + 3), tl.load(work + 4)
        if column < 0:
            return
        listed = places + group * list_width
        tokens, mine = held_tokens(column, 0, key_view, key_prefix, key_extra, KEY_TILE)
        real = mine
    else:
        number = piece + extra_pieces
        column, part = number // parts, number % parts
        begin, end = part * limit, tl.minimum((part + 1) * limit, query_tiles)
        slot = tl.where(parts > 1, slot_count - extra_pieces + number, -1)
        listed = every_place
        tokens, mine = extra_tokens(column * KEYS, key_prefix, key_view, key_extra, KEYS)
        real = column * KEYS + tl.arange(0, KEYS) < tl.load(extra_valid + batch)

    # [KEYS, head_dim] each
    k = load_rows(key, tokens, key_strides[1], real, HEAD)
    v = load_rows(value, tokens, value_strides[1], real, HEAD)
    grad_k, grad_v = zeros(KEYS, HEAD), zeros(KEYS, HEAD)
    entry = tl.load(listed + begin, mask=begin < end, other=0)
    for i in tl.range(begin * STEPS, end * STEPS):
        following = tl.load(listed + (i + 1) // STEPS, mask=i + 1 < end * STEPS, other=0)
        place = unpack(entry, bits)
        origin = box_origin(place, i % STEPS, QUERY_TILE, STEP)
        # [ROWS, head_dim] each
        if TMA:
            q = load_box((query_boxes_low, query_boxes_high), query_start, origin, STEP, HEAD)
            grad_o = load_box((grad_boxes_low, grad_boxes_high), grad_start, origin, STEP, HEAD)
        else:
            at, inside = box_tokens(origin, query_view, query_prefix, STEP)
            q = load_rows(query, at, query_strides[1], inside, HEAD)
            grad_o = load_rows(grad_out, at, grad_strides[1], inside, HEAD)
        terms = row_terms + (tile_number(place, query_view, QUERY_TILE) * STEPS + i % STEPS) * ROWS + tl.arange(0, ROWS)
        # [ROWS] each
        lse, shift = tl.load(terms), tl.load(terms + term_rows)
        grad_k, grad_v = add_key_gradients(grad_k, grad_v, k, v, q, grad_o, lse, shift, scale, HEAD, PRECISION)
        entry = following
    if EXTRA:
        for first in tl.range(0, tl.where(part == 0, query_extra, 0), ROWS, num_stages=1):
            at, inside = extra_tokens(first, query_prefix, query_view, query_extra, ROWS)
            # [ROWS, head_dim] each
            q = load_rows(query, at, query_strides[1], inside, HEAD)
            grad_o = load_rows(grad_out, at, grad_strides[1], inside, HEAD)
            terms = row_terms + query_tiles * (ROWS * STEPS) + first + tl.arange(0, ROWS)
            # [ROWS] each
            lse, shift = tl.load(terms), tl.load(terms + term_rows)
            grad_k, grad_v = add_key_gradients(grad_k, grad_v, k, v, q, grad_o, lse, shift, scale, HEAD, PRECISION)

    # Rows without a key took part in the products as zeros, and may have overflowed.
    grad_k, grad_v = keep_rows(grad_k, real, HEAD), keep_rows(grad_v, real, HEAD)
    if slot < 0:
        store_rows(grad_key, tokens, grad_key_strides[1], mine, scale_rows(grad_k, scale, HEAD), HEAD)
        store_rows(grad_value, tokens, grad_value_strides[1], mine, grad_v, HEAD)
    else:
        row = tl.arange(0, KEYS)
        sums += (tl.program_id(1).to(tl.int64) * slot_count + slot) * (2 * KEYS * HEAD_DIM)
        store_rows(sums, row, HEAD_DIM, None, grad_k, HEAD)
        store_rows(sums + KEYS * HEAD_DIM, row, HEAD_DIM, None, grad_v, HEAD)


@triton.jit(do_not_specialize=SIZES)
def add_slots_kernel(
    sums,
    grad,
    slots,
    grad_strides,
    map_batch,
    map_head,
    key_frames,
    key_height,
    key_width,
    key_prefix,
    key_extra,
    heads,
    scale,
    parts,
    columns,
    slot_count,
    SECOND: tl.constexpr,
    KEY_TILE: tl.constexpr,
    HEAD: tl.constexpr,
):
    """Grid (blocks of extra keys + key tiles, batch * heads): add the slots of divided columns, scale and store them.

    Serves one of the two gradients: the first half of each slot, or with SECOND the second.
    """
    key_view = (key_frames, key_height, key_width)
    KEYS: tl.constexpr = KEY_TILE[0] * KEY_TILE[1] * KEY_TILE[2]
    HEAD_DIM: tl.constexpr = HEAD[0] + HEAD[1]
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    extra_blocks = tl.cdiv(key_extra, KEYS)
    column = tl.program_id(0) - extra_blocks
    if column >= 0:
        entry = slots + ((batch * map_batch + head * map_head) * columns + column) * 2
        first, number = tl.load(entry), tl.load(entry + 1)
    else:
        number = tl.where(parts > 1, parts, 0)
        first = slot_count - extra_blocks * number + tl.program_id(0) * number
    if number == 0:
        return
    tokens, mine = held_tokens(column, tl.program_id(0) * KEYS, key_view, key_prefix, key_extra, KEY_TILE)
    sums += ((tl.program_id(1).to(tl.int64) * slot_count + first) * 2 + SECOND) * (KEYS * HEAD_DIM)
    row = tl.arange(0, KEYS)
    total = zeros(KEYS, HEAD)
    for _ in range(number):
        # [KEYS, head_dim]
        total = add_rows(total, load_rows(sums, row, HEAD_DIM, None, HEAD), HEAD)
        sums += 2 * KEYS * HEAD_DIM
    grad += batch * grad_strides[0] + head * grad_strides[2]
    store_rows(grad, tokens, grad_strides[1], mine, scale_rows(total, scale, HEAD), HEAD)


# A gradient of 128 x 128 numbers fills the registers of 8 warps; both gradients at once would spill.
ADD_SLOTS = {"num_warps": 8, "num_stages": 1}


def key_gradients(
    launch: Launch,
    columns: Columns,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grad_out: torch.Tensor,
    shared: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernels.

    Args:
        launch: geometry of the call. columns: of its map.
        query, grad_out: [B, tokens, H, head_dim], `readable`. key, value: [B, key tokens, H, head_dim], `readable`.
        shared: the arguments that both gradient kernels take.

    Returns:
        The gradients of keys and values, [B, key tokens, H, head_dim], contiguous; zero for keys that no query sees.
    """
    of_query, of_key, device = launch.query, launch.key, query.device
    grad_key, grad_value = (torch.empty(x.shape, dtype=x.dtype, device=device) for x in (key, value))
    capacity = columns.places.shape[1]
    limit = piece_limit(capacity, of_key.tiles, launch.programs)
    parts = math.ceil(of_query.tiles / limit)
    slots = slot_count(of_query.tiles, of_key.tiles, capacity, limit)
    all_slots = slots + (of_key.extra_blocks * parts if parts > 1 else 0)
    shape = (launch.programs, all_slots, 2, of_key.volume, query.shape[3])
    sums = torch.empty(shape, dtype=torch.float32, device=device)
    config = launch.config("key_gradient", of_key)
    step = step_box(of_query.tile, config.step)
    query_boxes, grad_boxes = (launch.boxes(step, x, of_query) for x in (query, grad_out))
    row_bits, column_bits = place_bits(of_query.view, of_query.tile)
    key_gradient_kernel[launch.grid(of_key.extra_blocks * parts + columns.pieces.shape[1])](
        **launch.arguments,
        **config.options,
        **shared,
        # inputs
        query_boxes_low=query_boxes.low,
        query_boxes_high=query_boxes.high,
        grad_boxes_low=grad_boxes.low,
        grad_boxes_high=grad_boxes.high,
        # outputs
        grad_key=grad_key,
        grad_value=grad_value,
        grad_key_strides=strides(grad_key),
        grad_value_strides=strides(grad_value),
        sums=sums,
        # lists
        places=columns.places,
        pieces=columns.pieces,
        every_place=columns.every_place,
        list_width=capacity,
        row_bits=row_bits,
        column_bits=column_bits,
        limit=limit,
        piece_count=columns.pieces.shape[1],
        slot_count=all_slots,
        # geometry
        STEP=step,
        EXTRA=of_query.extra > 0,
        TMA=query_boxes.low is not None,
        HEADS_FIRST=(query_boxes.heads_first, grad_boxes.heads_first),
    )
    for second, (grad, factor) in enumerate(((grad_key, shared["scale"]), (grad_value, 1.0))):
        if all_slots:
            add_slots_kernel[launch.grid(of_key.extra_blocks + of_key.tiles)](
                **launch.arguments,
                **launch.sizes("key"),
                **ADD_SLOTS,
                # inputs
                sums=sums,
                scale=factor,
                # outputs
                grad=grad,
                grad_strides=strides(grad),
                # lists
                slots=columns.slots,
                slot_count=all_slots,
                parts=parts,
                columns=of_key.tiles,
                # geometry
                KEY_TILE=of_key.tile,
                SECOND=second,
            )
    return grad_key, grad_value
