"""The forward kernel for Hopper in Gluon: two warps load, two groups of four warps compute half a query tile each.

The groups do not wait for each other: while one computes the softmax of its scores, the other uses the matrix unit.
Within a group the product of a step's weights and values runs under the scores of the next step and their softmax. The
result is that of `forward.forward_kernel`. It needs Triton 3.6 or newer.

Names, besides those of primitives.py, lists.py and forward.py:
    ROWS, D           queries of a group; head_dim
    ring              shared memory of keys and values, and its barriers: see ring.py
    seen              what the tile sees: (pointer of its list, count, whole, number of valid extra tokens)
    grid              of the keys: (view, bits, prefix)
    rows              what belongs to the queries: pointers, strides, heads, shared memory for queries and positions,
                      and their (view, prefix, extra)
    hidden            float32 [KEYS], added to the scores of a step: 0 for a key, else -inf
    SCORES, SUMS      register layouts of scores [ROWS, KEYS] and of sums [ROWS, D]; LINES: of rows in memory
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from vidsparse_kernels.gpu.gluon.ring import barriers, head_start, keys_of, produce, values_of
from vidsparse_kernels.gpu.primitives import SIZES, box_origin, box_start, key_list, tile_count, tile_place, unpack

ROWS: gl.constexpr = gl.constexpr(64)  # queries of a group
LOG2_E: gl.constexpr = gl.constexpr(1.4426950408889634)
# Registers of a thread: 2 * 240 + 24 are the 504 that three groups of four warps may have.
COMPUTES: gl.constexpr = gl.constexpr(240)
LOADS: gl.constexpr = gl.constexpr(24)


@gluon.jit
def hidden_keys(i, seen, grid, KEY_TILE: gl.constexpr, STEP: gl.constexpr):
    """What to add to the logits of step `i`, float32 [KEYS]: 0 for keys, -inf for rows without one.

    A key is inside the grid, or one of the valid extra tokens.
    """
    listed, count, _whole, valid = seen
    view, bits = grid[0], grid[1]
    KEYS: gl.constexpr = STEP[0] * STEP[1] * STEP[2]
    STEPS: gl.constexpr = KEY_TILE[0] * KEY_TILE[1] * KEY_TILE[2] // KEYS
    number = gl.arange(0, KEYS, gl.BlockedLayout([1], [32], [4], [0]))
    frame, row, column = number // (STEP[1] * STEP[2]), number // STEP[2] % STEP[1], number % STEP[2]
    video = i < count * STEPS
    entry = gl.load(listed + i // STEPS, mask=video, other=0)
    origin = box_origin(unpack(entry, bits), i % STEPS, KEY_TILE, STEP)
    inside = (origin[0] + frame < view[0]) & (origin[1] + row < view[1]) & (origin[2] + column < view[2])
    real = gl.where(video, inside, (i - count * STEPS) * KEYS + number < valid)
    return gl.where(real, 0.0, float("-inf"))


@gluon.jit
def softmax_step(scores, top, total, scale, hidden, MASKED: gl.constexpr):
    """One step of the online softmax in base 2; `scale` includes log2(e). With MASKED, `hidden` is added to all rows.

    Returns the weights [ROWS, KEYS], the factor by which earlier sums shrink, and the new top and total, [ROWS] each.
    """
    if MASKED:
        scores = scores + gl.convert_layout(hidden, gl.SliceLayout(0, scores.type.layout))[None, :]
    highest = gl.maximum(top, gl.max(scores, 1) * scale)
    # A row that has seen no key yet would compute -inf minus -inf.
    shift = gl.where(highest == float("-inf"), 0.0, highest) if MASKED else highest
    weights = gl.exp2(scores * scale - shift[:, None])
    decay = gl.exp2(top - shift)
    return weights, decay, highest, total * decay + gl.sum(weights, 1)


@gluon.jit
def walk(
    first,
    last,
    state,
    q,
    ring,
    seen,
    grid,
    scale,
    GROUP: gl.constexpr,
    KEY_TILE: gl.constexpr,
    STEP: gl.constexpr,
    STAGES: gl.constexpr,
    D: gl.constexpr,
    TURNS: gl.constexpr,
    MASKED: gl.constexpr,
):
    """Steps `first` to `last`: the scores of each, and the product of the weights and values of the one before."""
    turns = ring[3]
    KEYS: gl.constexpr = STEP[0] * STEP[1] * STEP[2]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    acc, weights, top, total = state
    unset = gl.zeros([ROWS, KEYS], gl.float32, SCORES)
    for i in range(first, last):
        operand = gl.convert_layout(weights.to(q.dtype), gl.DotOperandLayout(0, SUMS, 2))
        hidden = hidden_keys(i, seen, grid, KEY_TILE, STEP) if MASKED else None
        if TURNS:
            mbarrier.wait(turns.index(GROUP), (i + 1 - GROUP) & 1)
        k, k_left = keys_of(i, ring, KEYS, D, STAGES)
        scores = warpgroup_mma(q, k, unset, use_acc=False, is_async=True)
        v, v_left = values_of(i - 1, ring, KEYS, D, STAGES)
        sums = warpgroup_mma(operand, v, acc, is_async=True)
        if TURNS:
            mbarrier.arrive(turns.index(1 - GROUP), count=1)
        scores = warpgroup_mma_wait(1, deps=[scores])
        mbarrier.arrive(k_left, count=1)
        weights, decay, top, total = softmax_step(scores, top, total, scale, hidden, MASKED)
        acc, operand = warpgroup_mma_wait(0, deps=[sums, operand])
        mbarrier.arrive(v_left, count=1)
        acc = acc * gl.convert_layout(decay, gl.SliceLayout(1, SUMS))[:, None]
    return acc, weights, top, total


@gluon.jit
def consume(
    rows,
    ring,
    seen,
    grid,
    tile,
    scale,
    GROUP: gl.constexpr,
    QUERY_TILE: gl.constexpr,
    KEY_TILE: gl.constexpr,
    STEP: gl.constexpr,
    STAGES: gl.constexpr,
    D: gl.constexpr,
    TURNS: gl.constexpr,
    EXTRA: gl.constexpr,
    RAGGED: gl.constexpr,
):
    """A computing group: attention of queries `64 * GROUP` to `64 * GROUP + 63` of the program's tile."""
    query, out, lse, query_strides, out_strides, heads, queries, positions, held = rows
    turns = ring[3]
    _listed, count, whole, valid = seen
    view, prefix, extra = held
    KEYS: gl.constexpr = STEP[0] * STEP[1] * STEP[2]
    STEPS: gl.constexpr = KEY_TILE[0] * KEY_TILE[1] * KEY_TILE[2] // KEYS
    MASKED: gl.constexpr = EXTRA or RAGGED
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    LINES: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])

    row = GROUP * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, LINES))
    origin = box_origin(tile_place(tile, view, QUERY_TILE), 0, QUERY_TILE, QUERY_TILE)
    frame = origin[0] + row // (QUERY_TILE[1] * QUERY_TILE[2])
    line = origin[1] + row // QUERY_TILE[2] % QUERY_TILE[1]
    column = origin[2] + row % QUERY_TILE[2]
    mine = (frame < view[0]) & (line < view[1]) & (column < view[2])
    token = prefix + (frame * view[1] + line) * view[2] + column
    video = view[0] * view[1] * view[2]
    if EXTRA:
        number = gl.program_id(0) * (2 * ROWS) + row
        token = gl.where(tile < 0, number + gl.where(number < prefix, 0, video), token)
        mine = gl.where(tile < 0, number < extra, mine)
    channel = gl.arange(0, D, gl.SliceLayout(0, LINES))[None, :]
    source = query + head_start(query_strides, heads) + token.to(gl.int64)[:, None] * query_strides[1] + channel
    q = queries.index(GROUP)
    # [ROWS, D]
    q.store(gl.load(source, mask=mine[:, None], other=0.0))
    fence_async_shared()
    # In shared memory, because the walk needs all registers.
    positions.index(GROUP).store(gl.where(mine, token, -1))

    acc = gl.zeros([ROWS, D], gl.float32, SUMS)
    top = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, SCORES))
    total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, SCORES))
    steps = count * STEPS + gl.cdiv(valid, KEYS) if EXTRA else count * STEPS
    if steps > 0:
        hidden = hidden_keys(0, seen, grid, KEY_TILE, STEP) if MASKED else None
        if TURNS:
            mbarrier.wait(turns.index(GROUP), 1 - GROUP)
        k, k_left = keys_of(0, ring, KEYS, D, STAGES)
        scores = warpgroup_mma(q, k, gl.zeros([ROWS, KEYS], gl.float32, SCORES), use_acc=False, is_async=True)
        if TURNS:
            mbarrier.arrive(turns.index(1 - GROUP), count=1)
        scores = warpgroup_mma_wait(0, deps=[scores])
        mbarrier.arrive(k_left, count=1)
        weights, _decay, top, total = softmax_step(scores, top, total, scale, hidden, MASKED)

        state = (acc, weights, top, total)
        wholes = whole * STEPS
        state = walk(1, wholes, state, q, ring, seen, grid, scale, GROUP, KEY_TILE, STEP, STAGES, D, TURNS, False)
        if MASKED:
            first = gl.maximum(1, wholes)
            state = walk(first, steps, state, q, ring, seen, grid, scale, GROUP, KEY_TILE, STEP, STAGES, D, TURNS, True)
        acc, weights, top, total = state
        v, _v_left = values_of(steps - 1, ring, KEYS, D, STAGES)
        operand = gl.convert_layout(weights.to(q.dtype), gl.DotOperandLayout(0, SUMS, 2))
        acc = warpgroup_mma_wait(0, deps=[warpgroup_mma(operand, v, acc, is_async=True)])

    # A row without keys has total 0: its output is 0 and its lse -inf.
    token = positions.index(GROUP).load(gl.SliceLayout(1, LINES))
    mine = token >= 0
    target = out + head_start(out_strides, heads) + token.to(gl.int64)[:, None] * out_strides[1] + channel
    divisor = gl.where(total > 0.0, total, 1.0)
    acc = acc * gl.convert_layout(1.0 / divisor, gl.SliceLayout(1, SUMS))[:, None]
    gl.store(target, gl.convert_layout(acc.to(q.dtype), LINES), mask=mine[:, None])
    natural = gl.where(total > 0.0, (top + gl.log2(divisor)) / LOG2_E, float("-inf"))
    lse += gl.program_id(1).to(gl.int64) * (view[0] * view[1] * view[2] + extra)
    gl.store(lse + token, gl.convert_layout(natural, gl.SliceLayout(1, LINES)), mask=mine)


@gluon.jit(do_not_specialize=SIZES)
def gluon_forward_kernel(
    query,
    key,
    value,
    key_boxes,
    value_boxes,
    out,
    lse,
    counts,
    whole_counts,
    places,
    every_place,
    extra_valid,
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
    scale,
    QUERY_TILE: gl.constexpr,
    KEY_TILE: gl.constexpr,
    STEP: gl.constexpr,
    HEAD: gl.constexpr,
    STAGES: gl.constexpr,
    TURNS: gl.constexpr,
    EXTRA: gl.constexpr,
    RAGGED: gl.constexpr,
    HEADS_FIRST: gl.constexpr,
):
    """Grid (blocks of extra queries + query tiles, batch * heads); arguments as for `forward.forward_kernel`.

    There are STAGES buffers for a step's keys and as many for its values. With TURNS the groups take turns at the
    matrix unit.
    """
    query_view, key_view = (query_frames, query_height, query_width), (key_frames, key_height, key_width)
    bits = (row_bits, column_bits)
    D: gl.constexpr = HEAD[0]
    dtype: gl.constexpr = query.dtype.element_ty
    batch, head = gl.program_id(1) // heads, gl.program_id(1) % heads
    wide_batch, wide_head = batch.to(gl.int64), head.to(gl.int64)
    starts = (
        box_start(batch, head, heads, key_strides, HEADS_FIRST[0]),
        box_start(batch, head, heads, value_strides, HEADS_FIRST[1]),
    )
    tile = gl.program_id(0) - gl.cdiv(query_extra, 2 * ROWS)
    map_row = (wide_batch * map_batch + wide_head * map_head) * tile_count(query_view, QUERY_TILE) + tile
    listed, count, whole = key_list(
        places, counts, whole_counts, every_place, map_row, tile, list_width, key_view, KEY_TILE
    )
    valid = gl.load(extra_valid + batch) if EXTRA else 0

    LINES: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, D], dtype)
    queries = gl.allocate_shared_memory(dtype, [2, ROWS, D], LINES)
    positions = gl.allocate_shared_memory(gl.int32, [2, ROWS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    SLOTS: gl.constexpr = 2 * STAGES
    buffers = gl.allocate_shared_memory(dtype, [SLOTS, 1, STEP[0], STEP[1], STEP[2], D], key_boxes.layout)
    full, empty, turns = barriers(SLOTS, 1), barriers(SLOTS, 2), barriers(2, 1)
    fence_async_shared()

    grid = (key_view, bits, key_prefix)
    seen = (listed, count, whole, valid)
    ring = (buffers, full, empty, turns)
    held = (query_view, query_prefix, query_extra)
    rows = (query, out, lse, query_strides, out_strides, heads, queries, positions, held)
    loaded = ((key_boxes, value_boxes), starts, (key, value), (key_strides, value_strides), heads)
    gl.warp_specialize(
        [
            (
                consume,
                (rows, ring, seen, grid, tile, scale, 0, QUERY_TILE, KEY_TILE, STEP, STAGES, D, TURNS, EXTRA, RAGGED),
            ),
            (
                consume,
                (rows, ring, seen, grid, tile, scale, 1, QUERY_TILE, KEY_TILE, STEP, STAGES, D, TURNS, EXTRA, RAGGED),
            ),
            (produce, (loaded, ring, seen, grid, KEY_TILE, STEP, STAGES, D, EXTRA)),
        ],
        [4, 2],
        [COMPUTES, LOADS],
    )
