"""The kernels of the gradients of keys and values: a program takes a key tile and walks the query tiles that see it.

A column that many queries see, such as a sink or a text token, is divided into pieces; each leaves float32 sums in a
slot of its own, and a second kernel adds the slots in their order: no atomics, so the same input gives the same bits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from vidsparse_kernels.boxes import (
    add_product,
    add_rows,
    box_origin,
    box_tokens,
    extra_tokens,
    inner_products,
    keep_rows,
    load_box,
    load_rows,
    scale_rows,
    store_rows,
    tile_count,
    zeros,
)
from vidsparse_kernels.forward import LOG2_E
from vidsparse_kernels.launch import SIZES, Launch, step_box, strides
from vidsparse_kernels.lists import column_work


@triton.jit
def add_key_gradients(grad_k, grad_v, k, v, q, g, lse, shift, scale, HEAD: tl.constexpr, PRECISION: tl.constexpr):
    """Add one box of queries to the gradients [keys, head_dim], that of the key short of the scale."""
    weights = tl.exp2(inner_products(k, q, HEAD, PRECISION) * (scale * LOG2_E) - lse[None, :])
    grad_v = add_product(grad_v, weights, g, HEAD, PRECISION)
    scores = weights * (inner_products(v, g, HEAD, PRECISION) - shift[None, :])
    return add_product(grad_k, scores, q, HEAD, PRECISION), grad_v


@triton.jit(do_not_specialize=SIZES)
def key_gradient_kernel(
    query,
    key,
    value,
    grad_out,
    query_boxes_a,
    query_boxes_b,
    grad_boxes_a,
    grad_boxes_b,
    grad_key,
    grad_value,
    sums,
    lse,
    shift,
    queries,
    pieces,
    every_query,
    extra_valid,
    query_strides,
    key_strides,
    value_strides,
    grad_strides,
    grad_key_strides,
    grad_value_strides,
    group_strides,
    frames,
    height,
    width,
    prefix,
    extra,
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
    PRECISION: tl.constexpr,
):
    """Grid (pieces of the columns of extra keys + pieces of key tiles, batch * heads).

    `sums` are slots float32 [batch * heads, slots, 2, keys, head_dim]; those of extra keys come last. Rows that are no
    keys of a whole product take part in it, but are never stored; queries that are none have lse +inf, so weight 0.
    """
    view = (frames, height, width)
    KEYS: tl.constexpr = KEY_TILE[0] * KEY_TILE[1] * KEY_TILE[2]
    ROWS: tl.constexpr = STEP[0] * STEP[1] * STEP[2]
    STEPS: tl.constexpr = QUERY_TILE[0] * QUERY_TILE[1] * QUERY_TILE[2] // ROWS
    WIDTH: tl.constexpr = HEAD[0] + HEAD[1]
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    wide_batch, wide_head = batch.to(tl.int64), head.to(tl.int64)
    query += wide_batch * query_strides[0] + wide_head * query_strides[2]
    key += wide_batch * key_strides[0] + wide_head * key_strides[2]
    value += wide_batch * value_strides[0] + wide_head * value_strides[2]
    grad_out += wide_batch * grad_strides[0] + wide_head * grad_strides[2]
    grad_key += wide_batch * grad_key_strides[0] + wide_head * grad_key_strides[2]
    grad_value += wide_batch * grad_value_strides[0] + wide_head * grad_value_strides[2]
    length = view[0] * view[1] * view[2] + extra
    lse += tl.program_id(1).to(tl.int64) * length
    shift += tl.program_id(1).to(tl.int64) * length

    query_tiles = tile_count(view, QUERY_TILE)
    parts = tl.cdiv(query_tiles, limit)
    extra_pieces = tl.cdiv(extra, KEYS) * parts
    piece = tl.program_id(0) - extra_pieces
    group = wide_batch * group_strides[0] + wide_head * group_strides[1]
    if piece >= 0:
        work = pieces + (group * piece_count + piece) * 5
        column, part, begin = tl.load(work), tl.load(work + 1), tl.load(work + 2)
        end, slot = tl.load(work + 3), tl.load(work + 4)
        if column < 0:
            return
        listed = queries + group * group_strides[2]
        tokens, mine = box_tokens(box_origin(column, 0, view, KEY_TILE, KEY_TILE), view, prefix, KEY_TILE)
        real = mine
    else:
        number = piece + extra_pieces
        column, part = number // parts, number % parts
        begin, end = part * limit, tl.minimum((part + 1) * limit, query_tiles)
        slot = tl.where(parts > 1, slot_count - extra_pieces + number, -1)
        listed = every_query
        tokens, mine = extra_tokens(column * KEYS, prefix, view, extra, KEYS)
        real = column * KEYS + tl.arange(0, KEYS) < tl.load(extra_valid + batch)

    k = load_rows(key, tokens, key_strides[1], real, HEAD)
    v = load_rows(value, tokens, value_strides[1], real, HEAD)
    grad_k, grad_v = zeros(KEYS, HEAD), zeros(KEYS, HEAD)
    number = tl.load(listed + begin, mask=begin < end, other=0)
    for i in tl.range(begin * STEPS, end * STEPS):
        following = tl.load(listed + (i + 1) // STEPS, mask=i + 1 < end * STEPS, other=0)
        origin = box_origin(number, i % STEPS, view, QUERY_TILE, STEP)
        at, inside = box_tokens(origin, view, prefix, STEP)
        if TMA:
            q = load_box((query_boxes_a, query_boxes_b), batch, origin, head * WIDTH, STEP, HEAD)
            g = load_box((grad_boxes_a, grad_boxes_b), batch, origin, head * WIDTH, STEP, HEAD)
        else:
            q = load_rows(query, at, query_strides[1], inside, HEAD)
            g = load_rows(grad_out, at, grad_strides[1], inside, HEAD)
        row_lse = tl.load(lse + at, mask=inside, other=float("inf")) * LOG2_E
        row_shift = tl.load(shift + at, mask=inside, other=0.0)
        grad_k, grad_v = add_key_gradients(grad_k, grad_v, k, v, q, g, row_lse, row_shift, scale, HEAD, PRECISION)
        number = following
    if EXTRA:
        for first in tl.range(0, tl.where(part == 0, extra, 0), ROWS, num_stages=1):
            at, inside = extra_tokens(first, prefix, view, extra, ROWS)
            q = load_rows(query, at, query_strides[1], inside, HEAD)
            g = load_rows(grad_out, at, grad_strides[1], inside, HEAD)
            row_lse = tl.load(lse + at, mask=inside, other=float("inf")) * LOG2_E
            row_shift = tl.load(shift + at, mask=inside, other=0.0)
            grad_k, grad_v = add_key_gradients(grad_k, grad_v, k, v, q, g, row_lse, row_shift, scale, HEAD, PRECISION)

    # What is no key took part in the products with zeros for its key, and may have overflowed.
    grad_k, grad_v = keep_rows(grad_k, real, HEAD), keep_rows(grad_v, real, HEAD)
    if slot < 0:
        store_rows(grad_key, tokens, grad_key_strides[1], mine, scale_rows(grad_k, scale, HEAD), HEAD)
        store_rows(grad_value, tokens, grad_value_strides[1], mine, grad_v, HEAD)
    else:
        row = tl.arange(0, KEYS)
        sums += (tl.program_id(1).to(tl.int64) * slot_count + slot) * (2 * KEYS * WIDTH)
        store_rows(sums, row, WIDTH, None, grad_k, HEAD)
        store_rows(sums + KEYS * WIDTH, row, WIDTH, None, grad_v, HEAD)


@triton.jit
def add_slots_kernel(
    sums,
    grad_key,
    grad_value,
    slots,
    grad_key_strides,
    grad_value_strides,
    group_strides,
    frames,
    height,
    width,
    prefix,
    extra,
    heads,
    scale,
    parts,
    columns,
    slot_count,
    KEY_TILE: tl.constexpr,
    HEAD: tl.constexpr,
):
    """Grid (blocks of extra keys + key tiles, batch * heads): the sums of divided columns, added and stored."""
    view = (frames, height, width)
    KEYS: tl.constexpr = KEY_TILE[0] * KEY_TILE[1] * KEY_TILE[2]
    WIDTH: tl.constexpr = HEAD[0] + HEAD[1]
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    extra_blocks = tl.cdiv(extra, KEYS)
    column = tl.program_id(0) - extra_blocks
    if column >= 0:
        entry = slots + ((batch * group_strides[0] + head * group_strides[1]) * columns + column) * 2
        first, number = tl.load(entry), tl.load(entry + 1)
        tokens, mine = box_tokens(box_origin(column, 0, view, KEY_TILE, KEY_TILE), view, prefix, KEY_TILE)
    else:
        number = tl.where(parts > 1, parts, 0)
        first = slot_count - extra_blocks * number + (column + extra_blocks) * number
        tokens, mine = extra_tokens((column + extra_blocks) * KEYS, prefix, view, extra, KEYS)
    if number == 0:
        return
    sums += (tl.program_id(1).to(tl.int64) * slot_count + first) * (2 * KEYS * WIDTH)
    row = tl.arange(0, KEYS)
    grad_k, grad_v = zeros(KEYS, HEAD), zeros(KEYS, HEAD)
    for _ in range(number):
        grad_k = add_rows(grad_k, load_rows(sums, row, WIDTH, None, HEAD), HEAD)
        grad_v = add_rows(grad_v, load_rows(sums + KEYS * WIDTH, row, WIDTH, None, HEAD), HEAD)
        sums += 2 * KEYS * WIDTH
    grad_key += batch * grad_key_strides[0] + head * grad_key_strides[2]
    grad_value += batch * grad_value_strides[0] + head * grad_value_strides[2]
    store_rows(grad_key, tokens, grad_key_strides[1], mine, scale_rows(grad_k, scale, HEAD), HEAD)
    store_rows(grad_value, tokens, grad_value_strides[1], mine, grad_v, HEAD)


def key_gradients(
    launch: Launch,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grad_out: torch.Tensor,
    shared: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Start the kernels: gradients of keys and values, contiguous, zero for keys that nobody sees."""
    layout, device = launch.layout, query.device
    grad_key, grad_value = (torch.empty(x.shape, dtype=x.dtype, device=device) for x in (key, value))
    work = column_work(launch.counts, launch.indices, launch.key_tiles, launch.programs)
    keys = math.prod(layout.key_tile)
    extra_blocks, parts = math.ceil(launch.extra / keys), math.ceil(launch.query_tiles / work.limit)
    slot_count = work.slot_count + (extra_blocks * parts if parts > 1 else 0)
    config = launch.config("key_gradient", layout.key_tile)
    step = step_box(layout.query_tile, config.step)
    query_a, query_b, grad_a, grad_b = launch.boxes(step, query, grad_out)
    gradients: dict[str, Any] = dict(
        grad_key=grad_key,
        grad_value=grad_value,
        grad_key_strides=strides(grad_key),
        grad_value_strides=strides(grad_value),
        sums=torch.empty(launch.programs, slot_count, 2, keys, query.shape[3], dtype=torch.float32, device=device),
        slot_count=slot_count,
    )
    launch.run(
        key_gradient_kernel,
        extra_blocks * parts + work.pieces.shape[1],
        config.options,
        **shared,
        **gradients,
        query_boxes_a=query_a,
        query_boxes_b=query_b,
        grad_boxes_a=grad_a,
        grad_boxes_b=grad_b,
        queries=work.queries,
        pieces=work.pieces,
        every_query=torch.arange(launch.query_tiles, dtype=torch.int32, device=device),
        group_strides=(*launch.groups, work.queries.shape[1]),
        limit=work.limit,
        piece_count=work.pieces.shape[1],
        STEP=step,
        TMA=query_a is not None,
    )
    if slot_count:
        launch.run(
            add_slots_kernel,
            extra_blocks + launch.key_tiles,
            {},
            **gradients,
            slots=work.slots,
            group_strides=launch.groups,
            parts=parts,
            columns=launch.key_tiles,
            scale=shared["scale"],
            KEY_TILE=layout.key_tile,
        )
    return grad_key, grad_value
