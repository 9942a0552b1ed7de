"""The kernel of the queries' gradient: the walk of the forward, over key tiles, without a softmax to keep."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from vidsparse_kernels.boxes import (
    add_product,
    box_origin,
    box_tokens,
    extra_tokens,
    inner_products,
    load_box,
    load_rows,
    query_row,
    scale_rows,
    store_rows,
    zeros,
)
from vidsparse_kernels.forward import LOG2_E
from vidsparse_kernels.launch import SIZES, Launch, step_box, strides


@triton.jit
def add_query_gradient(
    grad, q, g, k, v, lse, shift, real, scale, HEAD: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr
):
    """Add one box of keys to the gradient [queries, head_dim], short of the scale."""
    scores = inner_products(q, k, HEAD, PRECISION) * (scale * LOG2_E) - lse[:, None]
    if not WHOLE:
        scores = tl.where(real[None, :], scores, float("-inf"))
    scores = tl.exp2(scores) * (inner_products(g, v, HEAD, PRECISION) - shift[:, None])
    return add_product(grad, scores, k, HEAD, PRECISION)


@triton.jit(do_not_specialize=SIZES)
def query_gradient_kernel(
    query,
    key,
    value,
    grad_out,
    key_boxes_a,
    key_boxes_b,
    value_boxes_a,
    value_boxes_b,
    grad_query,
    lse,
    shift,
    counts,
    whole_counts,
    indices,
    every_tile,
    extra_valid,
    query_strides,
    key_strides,
    value_strides,
    grad_strides,
    grad_query_strides,
    map_strides,
    frames,
    height,
    width,
    prefix,
    extra,
    heads,
    scale,
    QUERY_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    STEP: tl.constexpr,
    HEAD: tl.constexpr,
    EXTRA: tl.constexpr,
    RAGGED: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid and walk of the forward kernel."""
    view = (frames, height, width)
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
    column = head * (HEAD[0] + HEAD[1])

    row = wide_batch * map_strides[0] + wide_head * map_strides[1]
    tokens, mine, listed, count, whole = query_row(
        indices, counts, whole_counts, every_tile, row, map_strides[2], view, prefix, extra, QUERY_TILE, KEY_TILE
    )

    q = load_rows(query, tokens, query_strides[1], mine, HEAD)
    g = load_rows(grad_out, tokens, grad_strides[1], mine, HEAD)
    at_row = tl.program_id(1).to(tl.int64) * (view[0] * view[1] * view[2] + extra) + tokens
    row_lse = tl.load(lse + at_row, mask=mine, other=0.0)
    # A row without keys has lse -inf: with +inf its weights are 0, where -inf would make NaN.
    row_lse = tl.where(row_lse == float("-inf"), float("inf"), row_lse * LOG2_E)
    row_shift = tl.load(shift + at_row, mask=mine, other=0.0)
    grad = zeros(ROWS, HEAD)

    number = tl.load(listed, mask=count > 0, other=0)
    for part in tl.static_range(2 if RAGGED else 1):
        for i in tl.range(whole * STEPS * part, (whole if part == 0 else count) * STEPS):
            following = tl.load(listed + (i + 1) // STEPS, mask=i + 1 < count * STEPS, other=0)
            origin = box_origin(number, i % STEPS, view, KEY_TILE, STEP)
            at, real = box_tokens(origin, view, prefix, STEP)
            if TMA:
                k = load_box((key_boxes_a, key_boxes_b), batch, origin, column, STEP, HEAD)
                v = load_box((value_boxes_a, value_boxes_b), batch, origin, column, STEP, HEAD)
            else:
                k = load_rows(key, at, key_strides[1], None if part == 0 else real, HEAD)
                v = load_rows(value, at, value_strides[1], None if part == 0 else real, HEAD)
            grad = add_query_gradient(grad, q, g, k, v, row_lse, row_shift, real, scale, HEAD, part == 0, PRECISION)
            number = following
    if EXTRA:
        valid = tl.load(extra_valid + batch)
        for first in tl.range(0, valid, KEYS):
            at, real = extra_tokens(first, prefix, view, valid, KEYS)
            k = load_rows(key, at, key_strides[1], real, HEAD)
            v = load_rows(value, at, value_strides[1], real, HEAD)
            grad = add_query_gradient(grad, q, g, k, v, row_lse, row_shift, real, scale, HEAD, False, PRECISION)

    store_rows(grad_query, tokens, grad_query_strides[1], mine, scale_rows(grad, scale, HEAD), HEAD)


def query_gradient(
    launch: Launch, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shared: dict[str, Any]
) -> torch.Tensor:
    """Start the kernel: the gradient of the queries, contiguous. `shared` are arguments of both gradient kernels."""
    layout = launch.layout
    grad_query = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    config = launch.config("query_gradient", layout.query_tile)
    step = step_box(layout.key_tile, config.step)
    key_a, key_b, value_a, value_b = launch.boxes(step, key, value)
    launch.run(
        query_gradient_kernel,
        math.ceil(launch.extra / math.prod(layout.query_tile)) + launch.query_tiles,
        config.options,
        **shared,
        key_boxes_a=key_a,
        key_boxes_b=key_b,
        value_boxes_a=value_a,
        value_boxes_b=value_b,
        grad_query=grad_query,
        counts=launch.counts,
        whole_counts=launch.whole_counts,
        indices=launch.ordered,
        every_tile=launch.every_key_tile,
        grad_query_strides=strides(grad_query),
        map_strides=launch.map_strides,
        STEP=step,
        RAGGED=launch.ragged,
        TMA=key_a is not None,
    )
    return grad_query
