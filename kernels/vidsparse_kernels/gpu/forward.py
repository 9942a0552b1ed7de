"""The forward kernel: a program takes a query tile, walks its list of key tiles, and keeps the softmax online.

Names, besides those of primitives.py and lists.py:
    q, k, v           [ROWS, head_dim] queries of the program; [KEYS, head_dim] keys and values of a step
    ROWS, KEYS        tokens of the query tile; tokens of a step
    STEPS             steps of a key tile
    acc               float32 [ROWS, head_dim], the sum of weights times values
    top, total        float32 [ROWS], the highest score so far in base 2, and the sum of the weights
    real              bool [KEYS], which rows of a step are keys
    mine              bool [ROWS], which rows of the program hold a query
    whole, count      whole tiles of the program's list, and all of its tiles
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from vidsparse_kernels.gpu.bound import key_norms, largest_norm, row_norm
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

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
# Bounds the weights to 2^-80..2^80, so that a sum of 2^17 of them times values of 2^29 stays in the range of float32.
LARGEST: tl.constexpr = tl.constexpr(80.0)


@triton.jit
def attend(
    acc,
    top,
    total,
    q,
    k,
    v,
    real,
    scale,
    HEAD: tl.constexpr,
    WHOLE: tl.constexpr,
    ONLINE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add one step of keys to the softmax in base 2; `scale` includes log2(e). Returns acc, top and total.

    With WHOLE all rows of the step are keys, otherwise those of `real`. With ONLINE the weights are relative to the
    highest score so far. Without, the caller knows that the scores are bounded: no maximum, no rescaling.
    """
    scores = inner_products(q, k, HEAD, PRECISION)  # [ROWS, KEYS]
    if not WHOLE:
        # A key of zeros is not a masked key: its score would be 0.
        scores = tl.where(real[None, :], scores, float("-inf"))
    if ONLINE:
        highest = tl.maximum(top, tl.max(scores, 1) * scale)
        # A row that has seen no key yet would compute -inf minus -inf.
        shift = highest if WHOLE else tl.where(highest == float("-inf"), 0.0, highest)
        weights = tl.exp2(scores * scale - shift[:, None])
        decay = tl.exp2(top - shift)
        total, acc, top = total * decay, scale_rows(acc, decay[:, None], HEAD), highest
    else:
        weights = tl.exp2(scores * scale)
    return add_product(acc, weights, v, HEAD, PRECISION), top, total + tl.sum(weights, 1)


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    query,
    key,
    value,
    key_boxes_low,
    key_boxes_high,
    value_boxes_low,
    value_boxes_high,
    out,
    lse,
    counts,
    whole_counts,
    places,
    every_place,
    extra_valid,
    key_norms,
    query_strides,
    key_strides,
    value_strides,
    out_strides,
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
    norm_blocks,
    scale,
    QUERY_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    STEP: tl.constexpr,
    HEAD: tl.constexpr,
    EXTRA: tl.constexpr,
    RAGGED: tl.constexpr,
    BOUNDED: tl.constexpr,
    TMA: tl.constexpr,
    HEADS_FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (blocks of extra queries + query tiles, batch * heads): extra queries, whose lists are the longest, first.

    Strides of [batch, tokens, heads] are in elements, `map_batch` and `map_head` in heads of the map. HEADS_FIRST is
    that of the descriptors of keys and of values. With BOUNDED a program takes no maximum where the norms of its
    queries and of the keys (`key_norms`, see bound.py) bound its scores to LARGEST.
    """
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
    out += wide_batch * out_strides[0] + wide_head * out_strides[2]
    key_start = box_start(batch, head, heads, key_strides, HEADS_FIRST[0])
    value_start = box_start(batch, head, heads, value_strides, HEADS_FIRST[1])

    tile = tl.program_id(0) - tl.cdiv(query_extra, ROWS)
    row = (wide_batch * map_batch + wide_head * map_head) * tile_count(query_view, QUERY_TILE) + tile
    tokens, mine = held_tokens(tile, tl.program_id(0) * ROWS, query_view, query_prefix, query_extra, QUERY_TILE)
    listed, count, whole = key_list(
        places, counts, whole_counts, every_place, row, tile, list_width, key_view, KEY_TILE
    )

    # [ROWS, head_dim]
    q = load_rows(query, tokens, query_strides[1], mine, HEAD)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    if BOUNDED:
        bound = largest_norm(key_norms + tl.program_id(1).to(tl.int64) * norm_blocks, norm_blocks) * row_norm(q, HEAD)
        small = bound * scale < LARGEST  # False for NaN, such as infinity times zero
        top = tl.where(small, 0.0, top)
    acc = zeros(ROWS, HEAD)
    total = tl.zeros([ROWS], tl.float32)

    # One walk with a maximum and one without. One of them has no steps: Triton 3.5 fails on loops in a branch.
    for bounded in tl.static_range(2 if BOUNDED else 1):
        wholes, tiles, valid = whole, count, 0
        if EXTRA:
            valid = tl.load(extra_valid + batch)
        if BOUNDED:
            chosen = small == (bounded == 1)
            wholes, tiles, valid = tl.where(chosen, whole, 0), tl.where(chosen, count, 0), tl.where(chosen, valid, 0)
        entry = tl.load(listed, mask=tiles > 0, other=0)
        # Part 0 walks the whole tiles, without masks; part 1 the ragged ones.
        for part in tl.static_range(2 if RAGGED else 1):
            for i in tl.range(wholes * STEPS * part, (wholes if part == 0 else tiles) * STEPS):
                # Read one step ahead: a load that depends on a load would cost the pipeline a stage.
                following = tl.load(listed + (i + 1) // STEPS, mask=i + 1 < tiles * STEPS, other=0)
                origin = box_origin(unpack(entry, bits), i % STEPS, KEY_TILE, STEP)
                at, real = box_tokens(origin, key_view, key_prefix, STEP)
                # [KEYS, head_dim] each
                if TMA:
                    k = load_box((key_boxes_low, key_boxes_high), key_start, origin, STEP, HEAD)
                    v = load_box((value_boxes_low, value_boxes_high), value_start, origin, STEP, HEAD)
                else:
                    k = load_rows(key, at, key_strides[1], None if part == 0 else real, HEAD)
                    v = load_rows(value, at, value_strides[1], None if part == 0 else real, HEAD)
                acc, top, total = attend(
                    acc, top, total, q, k, v, real, scale, HEAD, part == 0, bounded == 0, PRECISION
                )
                entry = following
        if EXTRA:
            for first in tl.range(0, valid, KEYS):
                at, real = extra_tokens(first, key_prefix, key_view, valid, KEYS)
                # [KEYS, head_dim] each
                k = load_rows(key, at, key_strides[1], real, HEAD)
                v = load_rows(value, at, value_strides[1], real, HEAD)
                acc, top, total = attend(acc, top, total, q, k, v, real, scale, HEAD, False, bounded == 0, PRECISION)

    # A row without keys has total 0: its output is 0 and its lse -inf.
    divisor = (1.0 / tl.where(total > 0.0, total, 1.0))[:, None]
    store_rows(out, tokens, out_strides[1], mine, scale_rows(acc, divisor, HEAD), HEAD)
    natural = tl.where(total > 0.0, (top + tl.log2(total)) / LOG2_E, float("-inf"))
    length = query_view[0] * query_view[1] * query_view[2] + query_extra
    tl.store(lse + tl.program_id(1).to(tl.int64) * length + tokens, natural, mask=mine)


def forward(
    launch: Launch,
    lists: KeyLists,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    bounded: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernel.

    Args:
        launch: geometry of the call. lists: of its map.
        query: [B, tokens, H, head_dim], `readable`. key, value: [B, key tokens, H, head_dim], `readable`.
        scale: positive factor on the logits.
        bounded: for bfloat16: measure the keys first, so that programs with small scores need no online maximum. The
            kernel in Gluon keeps its maximum, which it hides under its products.

    Returns:
        out [B, tokens, H, head_dim] in the dtype of the query, contiguous; lse float32 [B, H, tokens].
    """
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(query.shape[0], query.shape[2], query.shape[1], dtype=torch.float32, device=query.device)
    row_bits, column_bits = place_bits(launch.key.view, launch.key.tile)
    arguments = dict(
        # inputs
        query=query,
        key=key,
        value=value,
        query_strides=strides(query),
        key_strides=strides(key),
        value_strides=strides(value),
        extra_valid=launch.valid,
        scale=scale * math.log2(math.e),
        # outputs
        out=out,
        lse=lse,
        out_strides=strides(out),
        # lists
        counts=lists.counts,
        whole_counts=lists.whole_counts,
        places=lists.places,
        every_place=lists.every_place,
        list_width=lists.places.shape[-1],
        row_bits=row_bits,
        column_bits=column_bits,
        # geometry
        **launch.sizes("query", "key"),
        QUERY_TILE=launch.query.tile,
        KEY_TILE=launch.key.tile,
        RAGGED=launch.key.ragged,
    )
    specialized = launch.gluon_config()
    if specialized is not None:
        from vidsparse_kernels.gpu.gluon import forward as gluon_forward  # not every Triton has Gluon

        gluon_forward.run(launch, specialized, key, value, arguments)
        return out, lse
    config = launch.config("forward", launch.query)
    step = step_box(launch.key.tile, config.step)
    key_boxes, value_boxes = (launch.boxes(step, x, launch.key) for x in (key, value))
    norms = key_norms(launch, key) if bounded else None
    forward_kernel[launch.grid(launch.query_blocks)](
        **launch.arguments,
        **config.options,
        **arguments,
        # inputs
        key_boxes_low=key_boxes.low,
        key_boxes_high=key_boxes.high,
        value_boxes_low=value_boxes.low,
        value_boxes_high=value_boxes.high,
        key_norms=norms,
        norm_blocks=0 if norms is None else norms.shape[1],
        # geometry
        STEP=step,
        EXTRA=launch.key.extra > 0,
        TMA=key_boxes.low is not None,
        HEADS_FIRST=(key_boxes.heads_first, value_boxes.heads_first),
        # arithmetic
        BOUNDED=bounded,
        PRECISION="ieee",
    )
    return out, lse
