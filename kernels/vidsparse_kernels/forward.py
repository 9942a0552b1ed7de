"""The forward kernel: a program takes a query tile, walks its list of key tiles, and keeps the softmax online."""

from __future__ import annotations

import math

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
from vidsparse_kernels.launch import SIZES, Launch, step_box, strides

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def attend(acc, top, total, q, k, v, real, scale, HEAD: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr):
    """One step of the online softmax in base 2: `scale` holds log2(e); `real`, without WHOLE, says what is a key."""
    scores = inner_products(q, k, HEAD, PRECISION)
    if not WHOLE:
        scores = tl.where(real[None, :], scores, float("-inf"))
    highest = tl.maximum(top, tl.max(scores, 1) * scale)
    # A row that has seen no key yet would be -inf minus -inf.
    shift = highest if WHOLE else tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp2(scores * scale - shift[:, None])
    decay = tl.exp2(top - shift)
    total = total * decay + tl.sum(weights, 1)
    acc = add_product(scale_rows(acc, decay[:, None], HEAD), weights, v, HEAD, PRECISION)
    return acc, highest, total


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    query,
    key,
    value,
    key_boxes_a,
    key_boxes_b,
    value_boxes_a,
    value_boxes_b,
    out,
    lse,
    counts,
    whole_counts,
    indices,
    every_tile,
    extra_valid,
    query_strides,
    key_strides,
    value_strides,
    out_strides,
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
    """Grid (blocks of extra queries + query tiles, batch * heads).

    Strides of [batch, tokens, heads] in elements; those of the map in rows of `indices`, (batch, head, width).
    """
    view = (frames, height, width)
    ROWS: tl.constexpr = QUERY_TILE[0] * QUERY_TILE[1] * QUERY_TILE[2]
    KEYS: tl.constexpr = STEP[0] * STEP[1] * STEP[2]
    STEPS: tl.constexpr = KEY_TILE[0] * KEY_TILE[1] * KEY_TILE[2] // KEYS
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    wide_batch, wide_head = batch.to(tl.int64), head.to(tl.int64)
    query += wide_batch * query_strides[0] + wide_head * query_strides[2]
    key += wide_batch * key_strides[0] + wide_head * key_strides[2]
    value += wide_batch * value_strides[0] + wide_head * value_strides[2]
    out += wide_batch * out_strides[0] + wide_head * out_strides[2]
    column = head * (HEAD[0] + HEAD[1])

    row = wide_batch * map_strides[0] + wide_head * map_strides[1]
    tokens, mine, listed, count, whole = query_row(
        indices, counts, whole_counts, every_tile, row, map_strides[2], view, prefix, extra, QUERY_TILE, KEY_TILE
    )

    q = load_rows(query, tokens, query_strides[1], mine, HEAD)
    acc = zeros(ROWS, HEAD)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)

    number = tl.load(listed, mask=count > 0, other=0)
    # Whole tiles first, without masks; then those at the border.
    for part in tl.static_range(2 if RAGGED else 1):
        for i in tl.range(whole * STEPS * part, (whole if part == 0 else count) * STEPS):
            # The next number is read one step ahead: a load that waits for a load would cost the pipeline a stage.
            following = tl.load(listed + (i + 1) // STEPS, mask=i + 1 < count * STEPS, other=0)
            origin = box_origin(number, i % STEPS, view, KEY_TILE, STEP)
            at, real = box_tokens(origin, view, prefix, STEP)
            if TMA:
                k = load_box((key_boxes_a, key_boxes_b), batch, origin, column, STEP, HEAD)
                v = load_box((value_boxes_a, value_boxes_b), batch, origin, column, STEP, HEAD)
            else:
                k = load_rows(key, at, key_strides[1], None if part == 0 else real, HEAD)
                v = load_rows(value, at, value_strides[1], None if part == 0 else real, HEAD)
            acc, top, total = attend(acc, top, total, q, k, v, real, scale, HEAD, part == 0, PRECISION)
            number = following
    if EXTRA:
        valid = tl.load(extra_valid + batch)
        for first in tl.range(0, valid, KEYS):
            at, real = extra_tokens(first, prefix, view, valid, KEYS)
            k = load_rows(key, at, key_strides[1], real, HEAD)
            v = load_rows(value, at, value_strides[1], real, HEAD)
            acc, top, total = attend(acc, top, total, q, k, v, real, scale, HEAD, False, PRECISION)

    # A row without keys has total 0: its output is 0 and its lse -inf.
    store_rows(
        out,
        tokens,
        out_strides[1],
        mine,
        scale_rows(acc, (1.0 / tl.where(total > 0.0, total, 1.0))[:, None], HEAD),
        HEAD,
    )
    natural = tl.where(total > 0.0, (top + tl.log2(total)) / LOG2_E, float("-inf"))
    length = view[0] * view[1] * view[2] + extra
    tl.store(lse + tl.program_id(1).to(tl.int64) * length + tokens, natural, mask=mine)


def forward(
    launch: Launch, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Start the kernel: out [B, tokens, H, head_dim] contiguous, lse float32 [B, H, tokens]."""
    layout = launch.layout
    config = launch.config("forward", layout.query_tile)
    step = step_box(layout.key_tile, config.step)
    key_a, key_b, value_a, value_b = launch.boxes(step, key, value)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(query.shape[0], query.shape[2], query.shape[1], dtype=torch.float32, device=query.device)
    extra_blocks = math.ceil(launch.extra / math.prod(layout.query_tile))
    launch.run(
        forward_kernel,
        extra_blocks + launch.query_tiles,
        config.options,
        query=query,
        key=key,
        value=value,
        key_boxes_a=key_a,
        key_boxes_b=key_b,
        value_boxes_a=value_a,
        value_boxes_b=value_b,
        out=out,
        lse=lse,
        counts=launch.counts,
        whole_counts=launch.whole_counts,
        indices=launch.ordered,
        every_tile=launch.every_key_tile,
        extra_valid=launch.valid,
        query_strides=strides(query),
        key_strides=strides(key),
        value_strides=strides(value),
        out_strides=strides(out),
        map_strides=launch.map_strides,
        scale=scale * math.log2(math.e),
        QUERY_TILE=layout.query_tile,
        KEY_TILE=layout.key_tile,
        STEP=step,
        EXTRA=launch.extra > 0,
        RAGGED=launch.ragged,
        TMA=key_a is not None,
        PRECISION="ieee",
    )
    return out, lse
