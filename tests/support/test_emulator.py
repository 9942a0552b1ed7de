"""The emulator itself: what instructions compute, and the rules whose breach ends a launch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
from emulator import ORDERS, EmulationError, Order, core, run, tensor_map
from emulator.encode import plain_name
from emulator.ptx import parse

pytestmark = pytest.mark.skipif(core.compiler() is None, reason="needs a C++ compiler")

KERNEL = """
.version 8.4
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(
  .param .u64 .ptr .global .align 1 to, .param .u64 from, .param .align 64 .b8 box[128], .param .f32 number
)
.reqntid {threads}
{{
  .reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<99>; .reg .b64 %rd<9>;
  ld.param.b64 %rd1, [to];
  ld.param.b64 %rd2, [from];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd3, %r1, 4;
  add.s64 %rd4, %rd1, %rd3;
  add.s64 %rd5, %rd2, %rd3;
  ld.global.b32 %r2, [%rd5];
  {body}
  ret;
}}
"""


def execute(
    body: str,
    given: np.ndarray,
    threads: int = 32,
    shared: int = 65536,
    order: Order = ORDERS[0],
    box: object = 0,
    size: int = 0,
) -> np.ndarray:
    """What a block of threads leaves in `to` after `body`.

    %r1 is the thread, %r2 its 4 bytes of `given` at [%rd5], [%rd4] the place of its result.
    """
    given = np.resize(given, max(threads, given.size))
    to = np.zeros(size or threads, dtype=given.dtype)
    memory = [(x.ctypes.data, x.ctypes.data + x.nbytes) for x in (to, given)]
    ptx = KERNEL.format(threads=threads, body=body)
    run(ptx, [to.ctypes.data, given.ctypes.data, box, 2.5], memory, (1, 1, 1), shared, order, limit=1_000_000)
    return to


STORE = "st.global.b32 [%rd4], %r9;"
F32 = np.array(
    [
        0.0,
        -0.0,
        1.5,
        -2.25,
        3e38,
        1e-30,
        math.inf,
        -math.inf,
        math.nan,
        0.1,
        -7.7,
        126.9,
        -126.2,
        65519.0,
        65520.0,
        6e-8,
    ],
    np.float32,
)
I32 = np.array([0, 1, -1, 7, -7, 2**31 - 1, -(2**31), 12345, -98765, 255, 256, -128], np.int32)


def bf16(x: np.ndarray) -> np.ndarray:

    return torch.from_numpy(x).bfloat16().view(torch.int16).numpy().astype(np.uint16)


COMPUTED: dict[str, tuple[str, np.ndarray, Callable[[np.ndarray], np.ndarray]]] = {
    "add": ("add.s32 %r9, %r2, -5;", I32, lambda x: x - 5),
    "sub": ("sub.s32 %r9, 5, %r2;", I32, lambda x: 5 - x),
    "product-low": ("mul.lo.s32 %r9, %r2, 100003;", I32, lambda x: x * np.int32(100003)),
    "product-high": (
        "mul.hi.s32 %r9, %r2, -100003;",
        I32,
        lambda x: (x.astype(np.int64) * -100003 >> 32).astype(np.int32),
    ),
    "division": ("div.s32 %r9, %r2, -7;", I32, lambda x: np.trunc(x / -7).astype(np.int32)),
    "remainder": ("rem.s32 %r9, %r2, 7;", I32, lambda x: np.fmod(x, 7)),
    "minimum-signed": ("min.s32 %r9, %r2, 3;", I32, lambda x: np.minimum(x, 3)),
    "minimum-unsigned": ("min.u32 %r9, %r2, 3;", I32, lambda x: np.minimum(x.view(np.uint32), 3).view(np.int32)),
    "shift-signed": ("shr.s32 %r9, %r2, 4;", I32, lambda x: x >> 4),
    "shift-unsigned": ("shr.u32 %r9, %r2, 4;", I32, lambda x: (x.view(np.uint32) >> 4).view(np.int32)),
    "shift-by-more": ("shl.b32 %r9, %r2, 32;", I32, lambda x: x * 0),
    "field": ("bfe.u32 %r9, %r2, 3, 5;", I32, lambda x: x >> 3 & 31),
    "signed-field": ("bfe.s32 %r9, %r2, 3, 5;", I32, lambda x: ((x >> 3 & 31) ^ 16) - 16),
    "bytes": (
        "prmt.b32 %r9, %r2, 0, 0x4123;",
        I32,
        lambda x: (x.view(np.uint32) >> 8 & 0xFF) << 16 | x.view(np.uint32) >> 8 & 0xFF00 | x.view(np.uint32) >> 24,
    ),
    "bits-set": ("popc.b32 %r9, %r2;", I32, lambda x: np.array([int(n).bit_count() for n in x.view(np.uint32)])),
    "narrow": ("cvt.u16.u32 %rs1, %r2; cvt.s32.s8 %r9, %rs1;", I32, lambda x: x.astype(np.int8).astype(np.int32)),
    "to-float": ("cvt.rn.f32.s32 %r9, %r2;", I32, lambda x: x.astype(np.float32).view(np.int32)),
    "predicates": (
        "setp.gt.s32 %p1, %r2, 0; setp.ne.s32 %p2, %r2, 7; and.pred %p3, %p1, %p2;"
        "selp.b32 %r9, 1, 0, %p3; @!%p2 mov.b32 %r9, 9;",
        I32,
        lambda x: np.where(x == 7, 9, (x > 0).astype(np.int32)),
    ),
    "float-product": ("mul.f32 %r9, %r2, 0f3FC00000;", F32, lambda x: x * np.float32(1.5)),
    "fused": (
        "fma.rn.f32 %r9, %r2, %r2, 0fBF800000;",
        F32,
        lambda x: (x.astype(np.float64) ** 2 - 1).astype(np.float32),
    ),
    "maximum": ("max.f32 %r9, %r2, 0f40000000;", F32, lambda x: np.fmax(x, np.float32(2))),
    "less-or-unordered": (
        "setp.ltu.f32 %p1, %r2, 0f00000000; selp.f32 %r9, 0f3F800000, 0f00000000, %p1;",
        F32,
        lambda x: (~(x >= 0)).astype(np.float32),
    ),
    "to-integer": (
        "cvt.rni.s32.f32 %r9, %r2;",
        F32,
        lambda x: (
            np.clip(np.nan_to_num(np.rint(x.astype(np.float64))), -(2**31), 2**31 - 1).astype(np.int32).view(np.float32)
        ),
    ),
    "to-bf16": (
        "cvt.rn.bf16x2.f32 %r9, 0f00000000, %r2;",
        F32,
        lambda x: np.where(np.isnan(x), 0x7FFF, bf16(x)).astype(np.uint32).view(np.float32),
    ),
    "to-f16": (
        "cvt.rn.f16.f32 %rs1, %r2; cvt.u32.u16 %r9, %rs1;",
        F32,
        lambda x: (
            np.where(np.isnan(x), 0x7FFF, x.astype(np.float16).view(np.uint16)).astype(np.uint32).view(np.float32)
        ),
    ),
    "from-f16": (
        "cvt.rn.f16.f32 %rs1, %r2; cvt.f32.f16 %r9, %rs1;",
        F32,
        lambda x: x.astype(np.float16).astype(np.float32),
    ),
    "lane": ("mov.u32 %r9, %laneid;", I32, lambda x: np.arange(len(x), dtype=np.int32)),
    "butterfly": ("shfl.sync.bfly.b32 %r9, %r2, 3, 31, -1;", I32, lambda x: x[np.arange(32) ^ 3]),
    "shift-up": ("shfl.sync.up.b32 %r9|%p1, %r2, 2, 0, -1;", I32, lambda x: x[[0, 1, *range(30)]]),
    "highest-of-a-warp": ("redux.sync.max.s32 %r9, %r2, -1;", I32, lambda x: np.full(32, x.max())),
    "parameter": ("ld.param.f32 %r9, [number];", F32, lambda x: np.full(32, np.float32(2.5))),
}


@pytest.mark.parametrize(("body", "given", "wanted"), COMPUTED.values(), ids=COMPUTED)
def test_what_instructions_compute(body: str, given: np.ndarray, wanted: Callable[[np.ndarray], np.ndarray]) -> None:
    given = np.resize(given, 32)
    with np.errstate(all="ignore"):
        right = wanted(given)
    found = execute(f"{body} {STORE}", given)
    np.testing.assert_array_equal(found, right.view(found.dtype) if right.itemsize == 4 else right.astype(found.dtype))


def test_powers_of_two_are_within_two_ulp() -> None:
    x = np.linspace(-130, 127.9, 4096, dtype=np.float32)
    found = np.concatenate([execute(f"ex2.approx.ftz.f32 %r9, %r2; {STORE}", part) for part in x.reshape(-1, 32)])
    wanted = np.exp2(x.astype(np.float64)).astype(np.float32)
    normal = wanted >= np.finfo(np.float32).tiny
    assert (found[~normal] == 0).all()
    assert (
        np.abs(found[normal].astype(np.float64) - np.exp2(x[normal].astype(np.float64)))
        <= 2 * np.spacing(wanted[normal])
    ).all()
    special = execute(
        f"ex2.approx.ftz.f32 %r9, %r2; {STORE}", np.resize(np.array([np.inf, -np.inf, np.nan, 128.5], np.float32), 32)
    )
    assert special[0] == np.inf and special[1] == 0 and np.isnan(special[2]) and special[3] == np.inf


# Threads that work together

EXCHANGE = """
  shl.b32 %r3, %r1, 2;  mov.b32 %r4, global_smem;  add.s32 %r5, %r4, %r3;
  st.shared.b32 [%r5], %r2;
  {barrier}
  xor.b32 %r6, %r3, 128;  add.s32 %r7, %r4, %r6;
  ld.shared.b32 %r9, [%r7];
"""


@pytest.mark.parametrize("barrier", ["bar.sync 0;", "bar.sync 3, 64;", "barrier.sync.aligned 1, 64;"])
def test_warps_exchange_numbers_over_a_barrier(barrier: str) -> None:
    given = np.arange(64, dtype=np.int32)
    assert np.array_equal(execute(EXCHANGE.format(barrier=barrier) + STORE, given, 64), given ^ 32)
    assert not np.array_equal(execute(EXCHANGE.format(barrier="") + STORE, given, 64), given ^ 32)


def test_a_table_of_branches() -> None:
    body = """
      shr.u32 %r3, %r1, 5;
      $L_table: .branchtargets $L_a, $L_b;
      brx.idx %r3, $L_table;
      $L_a: mov.b32 %r9, 10; bra.uni $L_end;
      $L_b: mov.b32 %r9, 20;
      $L_end:
    """
    assert execute(body + STORE, I32, 64).tolist() == [10] * 32 + [20] * 32


def test_labels_and_registers_of_inner_scopes_are_their_own() -> None:
    inner = """{
      .reg .b32 count; mov.b32 count, 0;
      again: add.s32 count, count, 1; setp.lt.s32 %p1, count, 3; @%p1 bra.uni again;
      add.s32 %r9, %r9, count;
    }"""
    assert execute(f"mov.b32 %r9, 0; {inner} {inner} {STORE}", I32).tolist() == [6] * 32


MBARRIER = """
  mov.b32 %r4, global_smem; setp.eq.s32 %p1, %r1, 0;
  @%p1 mbarrier.init.shared::cta.b64 [%r4], {arrivals};
  bar.sync 0;
  @%p1 mbarrier.arrive.shared::cta.b64 _, [%r4], {arrives};
  {{
    .reg .pred complete;
    waitLoop: mbarrier.try_wait.parity.shared::cta.b64 complete, [%r4], {parity};
    @!complete bra.uni waitLoop;
  }}
  bar.sync 0;
  @%p1 mbarrier.inval.shared::cta.b64 [%r4];
  mov.b32 %r9, 1;
"""


def test_an_mbarrier_lets_go_when_its_phase_is_over() -> None:
    assert execute(MBARRIER.format(arrivals=1, arrives=1, parity=0) + STORE, I32, 64).all()


# The tensor memory accelerator

BOX = """
  mov.b32 %r4, global_smem; add.s32 %r3, %r4, 32768; setp.eq.s32 %p1, %r1, 0;
  @%p1 mbarrier.init.shared::cta.b64 [%r3], 1;
  bar.sync 0;
  mov.b64 %rd6, box; cvta.param.u64 %rd7, %rd6;
  @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], {bytes};
  @%p1 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r4], [%rd7, {{{x}, {y}}}], [%r3];
  {{
    .reg .pred complete;
    waitLoop: mbarrier.try_wait.parity.shared::cta.b64 complete, [%r3], 0;
    @!complete bra.uni waitLoop;
  }}
  shl.b32 %r5, %r1, 2; add.s32 %r6, %r4, %r5;
  ld.shared.b32 %r9, [%r6];
"""


@pytest.mark.parametrize("order", ORDERS[::2], ids=str)
@pytest.mark.parametrize("swizzle", [0, 32])
@pytest.mark.parametrize(("x", "y"), [(0, 0), (-3, 2), (12, 7)])
def test_boxes_are_cut_and_swizzled(x: int, y: int, swizzle: int, order: Order) -> None:
    field = np.arange(1, 16 * 9 + 1, dtype=np.int32)
    box = tensor_map(0, (9, 16), (16, 1), (8, 8), 4, swizzle)
    given = np.concatenate([field, np.zeros(16, np.int32)])
    aligned = np.zeros(given.size + 4, np.int32)
    start = -aligned.ctypes.data % 16 // 4
    aligned[start : start + given.size] = given
    box.base = aligned.ctypes.data + 4 * start
    to = np.zeros(64, np.int32)
    memory = [(a.ctypes.data, a.ctypes.data + a.nbytes) for a in (to, aligned)]
    ptx = KERNEL.format(threads=64, body=BOX.format(bytes=256, x=x, y=y) + STORE)
    run(ptx, [to.ctypes.data, box.base, box, 0.0], memory, (1, 1, 1), 65536, order)
    padded = np.pad(field.reshape(9, 16), 8)
    wanted = padded[8 + y : 16 + y, 8 + x : 16 + x].copy()
    if swizzle:  # of 32-byte rows, four to a line of 128 bytes: odd lines have their halves of 16 bytes exchanged
        odd = np.arange(8) // 4 % 2 == 1
        wanted[odd] = np.concatenate([wanted[odd, 4:], wanted[odd, :4]], axis=1)
    assert np.array_equal(to.reshape(8, 8), wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": 8}, "globalAddress 0x8 is not aligned to 16 bytes"),
        ({"shape": (9, 0)}, r"globalDim \[9, 0\] is not 1 to 2\^32"),
        ({"strides": (15, 1)}, r"globalStrides \[60\] are not multiples of 16"),
        ({"strides": (0, 1)}, r"globalStrides \[0\] are not"),
        ({"strides": (2**38, 1)}, "globalStrides .* below 2"),
        ({"strides": (16, 2)}, "the innermost stride is 2"),
        ({"box": (257, 8)}, r"boxDim \[257, 8\] is not 1 to 256"),
        ({"box": (8, 3)}, "rows of a box of 12 bytes are no multiple of 16"),
        ({"swizzle": 32, "box": (8, 16)}, "rows of a box of 64 bytes exceed the swizzle of 32"),
        ({"shape": (1,) * 6, "strides": (4,) * 5 + (1,), "box": (4,) * 6}, "rank 6 is not 1 to 5"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,
)
def test_rules_of_tensor_maps(changes: dict[str, object], message: str) -> None:
    right = dict(base=0, shape=(9, 16), strides=(16, 1), box=(8, 8), element=4, swizzle=0)
    with pytest.raises(EmulationError, match=message):
        tensor_map(**{**right, **changes})  # type: ignore[arg-type]


# What ends a launch

BROKEN = {
    "reads-beyond-a-tensor": (
        "ld.global.b32 %r9, [%rd5+128];",
        "4 bytes at global address .* outside all tensors: byte 128 of a storage of 128",
    ),
    "reads-before-a-tensor": ("ld.global.b32 %r9, [%rd5+-4096];", "outside all tensors"),
    "reads-an-odd-address": ("ld.global.b32 %r9, [%rd5+2];", "is not aligned to 4 bytes"),
    "reads-beyond-shared-memory": (
        "mov.b32 %r4, global_smem; ld.shared.b32 %r9, [%r4+65536];",
        "outside the block's 65536",
    ),
    "reads-a-null-pointer": ("mov.b32 %r4, 0; ld.shared.b32 %r9, [%r4];", "outside the block's"),
    "lanes-part": (
        "setp.lt.s32 %p1, %r1, 5; @%p1 bra $L_end; mov.b32 %r9, 1; $L_end:",
        "lanes of a warp part at a branch: 0x1f alone",
    ),
    "never-ends": ("$L_loop: bra.uni $L_loop;", "no end after 1000001 instructions"),
    "an-arrival-too-many": (MBARRIER.format(arrivals=1, arrives=2, parity=0), "more than 1 arrivals in one phase"),
    "an-arrival-too-few": (
        MBARRIER.format(arrivals=2, arrives=1, parity=0),
        "deadlock: warps 0 wait for parity 0 of the mbarrier .* lacks 1 of 2 arrivals",
    ),
    "the-next-phase": (
        MBARRIER.format(arrivals=1, arrives=1, parity=1),
        "deadlock: warps 0 wait for parity 1 of the mbarrier",
    ),
    "an-unknown-mbarrier": (
        "mov.b32 %r4, global_smem; mbarrier.arrive.shared::cta.b64 _, [%r4], 1;",
        "no mbarrier is at shared address 0",
    ),
    "a-barrier-of-two-sizes": (
        "setp.lt.u32 %p1, %r1, 32; @%p1 bra.uni $L_a; bar.sync 1, 96; $L_a: bar.sync 1, 64;",
        "barrier 1 is used for",
    ),
    "a-barrier-that-some-miss": (
        "setp.lt.u32 %p1, %r1, 32; @%p1 bra.uni $L_a; bar.sync 1, 64; $L_a:",
        "deadlock: warps 1 wait at barrier 1 with 32 of 64 threads",
    ),
    "a-copy-that-is-not-waited-for": (
        "mov.b32 %r4, global_smem; cp.async.ca.shared.global [%r4], [%rd2], 4; cp.async.commit_group;",
        "nothing has waited for",
    ),
    "trap": ("trap;", "trap"),
}


@pytest.mark.parametrize(("body", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_rules(body: str, message: str) -> None:
    with pytest.raises(EmulationError, match=message) as caught:
        execute(body + "mov.b32 %r9, 0;" + STORE, I32, 64 if "warps 1" in message or "barrier 1" in message else 32)
    assert str(caught.value).startswith("kernel: block (0, 0, 0)")


def test_bytes_that_were_not_expected() -> None:
    box = tensor_map(0, (8, 8), (8, 1), (8, 8), 4, 0)
    field = np.zeros(64 + 4, np.int32)
    box.base = field.ctypes.data + -field.ctypes.data % 16
    for number, message in ((128, "128 bytes more than expected arrive"), (512, "lacks 0 of 1 arrivals and 256 bytes")):
        ptx = KERNEL.format(threads=32, body=BOX.format(bytes=number, x=0, y=0) + STORE)
        memory = [(field.ctypes.data, field.ctypes.data + field.nbytes)]
        with pytest.raises(EmulationError, match=message):
            run(ptx, [field.ctypes.data, field.ctypes.data, box, 0.0], memory, (1, 1, 1), 65536)


def test_an_unknown_instruction_is_named_with_its_line() -> None:
    body = ".loc\t1 7 3 // attention.py:7:3\n  tanh.approx.bf16x2 %r9, %r2;\n"
    with pytest.raises(NotImplementedError, match=re.escape("tanh.approx.bf16x2 %r9, %r2; (attention.py:7:3)")):
        execute(body + STORE, I32)


def test_a_fault_names_its_line() -> None:
    body = ".loc\t1 9 5 // attention.py:9:5\n  ld.global.b32 %r9, [%rd5+4096];\n"
    with pytest.raises(EmulationError, match=re.escape("at `ld.global.b32 %r9, [%rd5+4096]; (attention.py:9:5)`")):
        execute(body + STORE, I32)


def test_names_lose_what_makes_no_difference() -> None:
    names = {
        "ex2.approx.ftz.f32": "ex2.f32",
        "mad.lo.s32": "mad.s32",
        "setp.lo.u32": "setp.lo.u32",
        "ld.global.L1::evict_last.v4.b32": "ld.global.v4.b32",
        "cp.async.bulk.tensor.5d.shared::cta.global.mbarrier::complete_tx::bytes": (
            "cp.async.bulk.tensor.5d.shared.global.mbarrier"
        ),
        "bar.sync": "bar.sync",
        "wgmma.fence.sync.aligned": "nop",
        "cvt.rn.bf16x2.f32": "cvt.bf16x2.f32",
        "cvt.rz.f16.f32": "cvt.rz.f16.f32",
        "max.NaN.f32": "max.NaN.f32",
    }
    assert {name: plain_name(name) for name in names} == names


def test_a_module_without_a_kernel() -> None:
    with pytest.raises(ValueError, match=r"no \.entry"):
        parse(".version 8.4\n")
