"""A ring of shared memory between warps: some fill its slots with keys and values, others read and release them.

Names: `ring` is (buffers, full, empty, turns): 2 * STAGES slots [KEYS, D], a barrier for each slot that completes when
the slot is full, one that completes when both computing groups have released it, and two barriers for taking turns.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from vidsparse_kernels.gpu.primitives import box_origin, unpack

# Triton 3.9 knows only the new name, 3.6 and 3.7 only the old one.
load_box, load_rows = (getattr(x, "async_load", None) or x.async_copy_global_to_shared for x in (tma, async_copy))


@gluon.jit
def barriers(NUMBER: gl.constexpr, ARRIVALS: gl.constexpr):
    """Make `NUMBER` barriers, each of which completes a phase after `ARRIVALS` arrivals."""
    made = gl.allocate_shared_memory(gl.int64, [NUMBER, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(NUMBER):
        mbarrier.init(made.index(i), count=ARRIVALS)
    return made


@gluon.jit
def slot(position, STAGES: gl.constexpr):
    """The slot of the keys of step i (position 2 * i) or of its values (2 * i + 1), of 2 * STAGES slots.

    Returns the slot, and the parity of the phase that its barrier completes when the slot is full.
    """
    return position % (2 * STAGES), position // (2 * STAGES) & 1


@gluon.jit
def keys_of(step, ring, KEYS: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr):
    """Wait for the keys of a step: [D, KEYS] in shared memory, and the barrier that releases them."""
    buffers, full, empty, _turns = ring
    at, phase = slot(2 * step, STAGES)
    mbarrier.wait(full.index(at), phase)
    return buffers.index(at).reshape([KEYS, D]).permute([1, 0]), empty.index(at)


@gluon.jit
def values_of(step, ring, KEYS: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr):
    """Wait for the values of a step: [KEYS, D] in shared memory, and the barrier that releases them."""
    buffers, full, empty, _turns = ring
    at, phase = slot(2 * step + 1, STAGES)
    mbarrier.wait(full.index(at), phase)
    return buffers.index(at).reshape([KEYS, D]), empty.index(at)


@gluon.jit
def head_start(strides, heads):
    """The offset of the program's head in a tensor, in elements."""
    return (gl.program_id(1) // heads).to(gl.int64) * strides[0] + (gl.program_id(1) % heads).to(gl.int64) * strides[2]


@gluon.jit
def copy_extra(pointer, stride, first, grid, valid, buffer, KEYS: gl.constexpr, D: gl.constexpr):
    """Start to copy `KEYS` extra tokens from number `first` on into a slot; zeros from number `valid` on."""
    PART: gl.constexpr = 16
    rows: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [2, 1], [1, 0])
    view, prefix = grid[0], grid[2]
    channel = gl.arange(0, D, gl.SliceLayout(0, rows))
    for part in gl.static_range(KEYS // PART):
        number = first + part * PART + gl.arange(0, PART, gl.SliceLayout(1, rows))
        token = number + gl.where(number < prefix, 0, view[0] * view[1] * view[2])
        source = pointer + token.to(gl.int64)[:, None] * stride + channel[None, :]
        load_rows(buffer.slice(part * PART, PART), source, (number < valid)[:, None])
    async_copy.commit_group()


@gluon.jit
def produce(
    loaded,
    ring,
    seen,
    grid,
    KEY_TILE: gl.constexpr,
    STEP: gl.constexpr,
    STAGES: gl.constexpr,
    D: gl.constexpr,
    EXTRA: gl.constexpr,
):
    """The loading warps: load the keys, then the values of each step into the next slot that both groups released."""
    boxes, starts, pointers, strides, heads = loaded
    buffers, full, empty, _turns = ring
    listed, count, _whole, valid = seen
    bits = grid[1]
    KEYS: gl.constexpr = STEP[0] * STEP[1] * STEP[2]
    STEPS: gl.constexpr = KEY_TILE[0] * KEY_TILE[1] * KEY_TILE[2] // KEYS
    entry = gl.load(listed, mask=count > 0, other=0)
    for i in range(count * STEPS):
        upcoming = gl.load(listed + (i + 1) // STEPS, mask=i + 1 < count * STEPS, other=0)
        frame, row, column = box_origin(unpack(entry, bits), i % STEPS, KEY_TILE, STEP)
        for which in gl.static_range(2):
            at, phase = slot(2 * i + which, STAGES)
            # A slot that was never used counts as released: its phase has parity 1.
            mbarrier.wait(empty.index(at), phase ^ 1)
            mbarrier.expect(full.index(at), KEYS * D * 2)
            place = [starts[which][0], frame, row, column, starts[which][1]]
            # [KEYS, D]
            load_box(boxes[which], place, full.index(at), buffers.index(at))
        entry = upcoming
    if EXTRA:
        first = 2 * count * STEPS
        last = first + 2 * gl.cdiv(valid, KEYS)
        for position in range(first, last):
            at, phase = slot(position, STAGES)
            mbarrier.wait(empty.index(at), phase ^ 1)
            buffer = buffers.index(at).reshape([KEYS, D])
            pointer, stride = pointers[0] + head_start(strides[0], heads), strides[0][1]
            if position % 2 == 1:
                pointer, stride = pointers[1] + head_start(strides[1], heads), strides[1][1]
            copy_extra(pointer, stride, (position - first) // 2 * KEYS, grid, valid, buffer, KEYS, D)
            # The copy before this one has arrived; this one is in flight.
            async_copy.wait_group(1)
            fence_async_shared()
            before, _phase = slot(position - 1, STAGES)
            mbarrier.arrive(full.index(before), count=1, pred=position > first)
        async_copy.wait_group(0)
        fence_async_shared()
        before, _phase = slot(last - 1, STAGES)
        mbarrier.arrive(full.index(before), count=1, pred=last > first)
