"""The kernel of the queries' gradient: the walk of the forward over key tiles, with the softmax already known.

Names, besides those of primitives.py, lists.py and forward.py:
    grad_o            [ROWS, head_dim], gradient of the program's outputs
    grad_q            float32 [ROWS, head_dim], the sum
    row_lse           float32 [ROWS], log-sum-exp in base 2
    row_shift         float32 [ROWS], see `backward.row_terms_kernel`
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from vidsparse_kernels.gpu.forward import LOG2_E
from vidsparse_kernels.gpu.launch import Launch, step_box
from vidsparse_kernels.gpu.lists import KeyLists
from vidsparse_kernels.gpu.primitives import (
    SIZES,
    add_product,
    box_origin,
    box_start,
    box_tokens,
    extra_tokens,
    held_tokens,
    inner_products,
    key_list,
    load_box,
    load_rows,
    scale_rows,
    store_rows,
    strides,
    tile_count,
    unpack,
    zeros,
)
from vidsparse_kernels.layout import place_bits


@triton.jit
def add_query_gradient(
    grad_q, q, grad_o, k, v, lse, shift, real, scale, HEAD: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr
):
    """Add one step of keys to grad_q, without the factor `scale`.

    Both products are issued before the exponentials, which then wait for the first one only.
    """
    # [ROWS, KEYS] each
    scores, gains = inner_products(q, k, HEAD, PRECISION), inner_products(grad_o, v, HEAD, PRECISION)
    exponents = scores * (scale * LOG2_E) - lse[:, None]
    if not WHOLE:
        exponents = tl.where(real[None, :], exponents, float("-inf"))
    return add_product(grad_q, tl.exp2(exponents) * (gains - shift[:, None]), k, HEAD, PRECISION)


@triton.jit(do_not_specialize=SIZES)
def query_gradient_kernel(
    query,
    key,
    value,
    grad_out,
    key_boxes_low,
    key_boxes_high,
    value_boxes_low,
    value_boxes_high,
    grad_query,
    row_terms,
    counts,
    whole_counts,
    places,
    every_place,
    extra_valid,
    query_strides,
    key_strides,
    value_strides,
    grad_strides,
    grad_query_strides,
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
    QUERY_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    STEP: tl.constexpr,
    HEAD: tl.constexpr,
    EXTRA: tl.constexpr,
    RAGGED: tl.constexpr,
    TMA: tl.constexpr,
    HEADS_FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid and walk of the forward kernel; `row_terms` come from `backward.row_terms_kernel`."""
    query_view, key_view = (query_frames, query_height, query_width), (key_frames, key_height, key_width)
    bits = (row_bits, column_bits)
    ROWS: tl.constexpr = QUERY_TILE[0] * QUERY_TILE[1] * QUERY_TILE[2]
    KEYS: tl.constexpr = STEP[0] * STEP[1] * STEP[2]
    STEPS: tl.constexpr = KEY_TILE[0] * KEY_TILE[1] * KEY_TILE[2] // KEYS
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    wide_batch, wide_head = batch.to(tl.int64), head.to(tl.int64)
    query += wide_batch * query_strides[0] + wide_head * query_strides[2]
    key += wide_batch * key_strides[0] + wide_head * key_strides[2]
    value += wide_batch * value_strides[0] + wide_head * value_strides[2]
    grad_out += wide_batch * grad_strides[0] + wide_head * grad_strides[2]
    grad_query += wide_batch * grad_query_strides[0] + wide_head * grad_query_strides[2]
    key_start = box_start(batch, head, heads, key_strides, HEADS_FIRST[0])
    value_start = box_start(batch, head, heads, value_strides, HEADS_FIRST[1])

    tile, tiles = tl.program_id(0) - tl.cdiv(query_extra, ROWS), tile_count(query_view, QUERY_TILE)
    row = (wide_batch * map_batch + wide_head * map_head) * tiles + tile
    tokens, mine = held_tokens(tile, tl.program_id(0) * ROWS, query_view, query_prefix, query_extra, QUERY_TILE)
    listed, count, whole = key_list(
        places, counts, whole_counts, every_place, row, tile, list_width, key_view, KEY_TILE
    )

    # [ROWS, head_dim] each
    q = load_rows(query, tokens, query_strides[1], mine, HEAD)
    grad_o = load_rows(grad_out, tokens, grad_strides[1], mine, HEAD)
    # The terms of tiles come first, those of extra queries last.
    block = tl.where(tile >= 0, tile, tile + tl.num_programs(0))
    row_terms += (tl.program_id(1).to(tl.int64) * 2 * tl.num_programs(0) + block) * ROWS + tl.arange(0, ROWS)
    # [ROWS] each
    row_lse, row_shift = tl.load(row_terms), tl.load(row_terms + tl.num_programs(0) * ROWS)
    grad_q = zeros(ROWS, HEAD)

    entry = tl.load(listed, mask=count > 0, other=0)
    for part in tl.static_range(2 if RAGGED else 1):
        for i in tl.range(whole * STEPS * part, (whole if part == 0 else count) * STEPS):
            following = tl.load(listed + (i + 1) // STEPS, mask=i + 1 < count * STEPS, other=0)
            origin = box_origin(unpack(entry, bits), i % STEPS, KEY_TILE, STEP)
            at, real = box_tokens(origin, key_view, key_prefix, STEP)
            # [KEYS, head_dim] each
            if TMA:
                k = load_box((key_boxes_low, key_boxes_high), key_start, origin, STEP, HEAD)
                v = load_box((value_boxes_low, value_boxes_high), value_start, origin, STEP, HEAD)
            else:
                k = load_rows(key, at, key_strides[1], None if part == 0 else real, HEAD)
                v = load_rows(value, at, value_strides[1], None if part == 0 else real, HEAD)
            grad_q = add_query_gradient(
                grad_q, q, grad_o, k, v, row_lse, row_shift, real, scale, HEAD, part == 0, PRECISION
            )
            entry = following
    if EXTRA:
        valid = tl.load(extra_valid + batch)
        for first in tl.range(0, valid, KEYS):
            at, real = extra_tokens(first, key_prefix, key_view, valid, KEYS)
            # [KEYS, head_dim] each
            k = load_rows(key, at, key_strides[1], real, HEAD)
            v = load_rows(value, at, value_strides[1], real, HEAD)
            grad_q = add_query_gradient(
                grad_q, q, grad_o, k, v, row_lse, row_shift, real, scale, HEAD, False, PRECISION
            )

    store_rows(grad_query, tokens, grad_query_strides[1], mine, scale_rows(grad_q, scale, HEAD), HEAD)


def query_gradient(
    launch: Launch,
    lists: KeyLists,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    shared: dict[str, Any],
) -> torch.Tensor:
    """Launch the kernel.

    Args:
        launch: geometry of the call. lists: of its map.
        query: [B, tokens, H, head_dim], `readable`. key, value: [B, key tokens, H, head_dim], `readable`.
        shared: the arguments that both gradient kernels take.

    Returns:
        The gradient of the queries, [B, tokens, H, head_dim], contiguous.
    """
    grad_query = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    config = launch.config("query_gradient", launch.query)
    step = step_box(launch.key.tile, config.step)
    key_boxes, value_boxes = (launch.boxes(step, x, launch.key) for x in (key, value))
    row_bits, column_bits = place_bits(launch.key.view, launch.key.tile)
    query_gradient_kernel[launch.grid(launch.query_blocks)](
        **launch.arguments,
        **config.options,
        **shared,
        # inputs
        key_boxes_low=key_boxes.low,
        key_boxes_high=key_boxes.high,
        value_boxes_low=value_boxes.low,
        value_boxes_high=value_boxes.high,
        # outputs
        grad_query=grad_query,
        grad_query_strides=strides(grad_query),
        # lists
        counts=lists.counts,
        whole_counts=lists.whole_counts,
        places=lists.places,
        every_place=lists.every_place,
        list_width=lists.places.shape[-1],
        row_bits=row_bits,
        column_bits=column_bits,
        # geometry
        STEP=step,
        EXTRA=launch.key.extra > 0,
        RAGGED=launch.key.ragged,
        TMA=key_boxes.low is not None,
        HEADS_FIRST=(key_boxes.heads_first, value_boxes.heads_first),
    )
    return grad_query
