"""Faults that compilers and authors of kernels make, put into right PTX one by one: each must show when it is executed.

A test of machine code is worth what it would notice.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import against_float64
import pytest
import torch
from against_float64 import Case, plain

from vidsparse import VideoGrid, sparse_attention

pytest.importorskip("triton")
from emulator import ORDERS, EmulationError, Order, emulated

from vidsparse_kernels import reference

pytestmark = pytest.mark.machine_code
CASE = Case(VideoGrid(4, 8, 16), (2, 8, 8), (2, 8, 8), heads=1, head_dim=128)
ALL = torch.ones(1, 1, 4, 4, dtype=torch.bool)
FORWARD, OF_QUERIES, OF_KEYS = "forward_kernel", "query_gradient_kernel", "key_gradient_kernel"


@dataclass(frozen=True)
class Fault:
    """What is put in the place of every match in one kernel's PTX, and how it shows: a pattern of messages."""

    chip: int
    kernel: str
    pattern: str
    replacement: str | Callable[[re.Match[str]], str]
    shows: str


def halved(found: re.Match[str]) -> str:
    return f"{found[1]}{int(found[2]) // 2};"


def but_last(pattern: str) -> str:
    return f"(?s){pattern}(?=.*{pattern})"


def without_swizzle(found: re.Match[str]) -> str:
    return str(int(found[0]) & ~(3 << 62))


NUMBERS = "wrong numbers"
ELSEWHERE = f"{NUMBERS}|outside the block's"  # how far a read goes astray is a matter of the launch
LOST = f"{NUMBERS}|arrivals in one phase|ends while|deadlock"  # and so is which phase is the first to be wrong
WAIT_FOR_PRODUCTS, WAIT_FOR_COPIES = r"wgmma\.wait_group\S+ \d+;", r"cp\.async\.wait_group\s+\S+;"
LATER = "wgmma.wait_group.sync.aligned 2;"
WAIT_FOR_BOXES = r"mbarrier\.try_wait[^;]*;\s*@!\w+ bra\.uni \w+;"
FAULTS = {
    "products-are-not-waited-for": Fault(90, FORWARD, WAIT_FOR_PRODUCTS, "", "nothing has waited for"),
    "dq-products-are-not-waited-for": Fault(90, OF_QUERIES, WAIT_FOR_PRODUCTS, "", "nothing has waited for"),
    "products-are-waited-for-too-late": Fault(90, FORWARD, but_last(WAIT_FOR_PRODUCTS), LATER, NUMBERS),
    "dk-products-are-waited-for-too-late": Fault(90, OF_KEYS, but_last(WAIT_FOR_PRODUCTS), LATER, NUMBERS),
    "boxes-are-not-waited-for": Fault(90, FORWARD, WAIT_FOR_BOXES, "", LOST),
    "dk-boxes-are-not-waited-for": Fault(90, OF_KEYS, WAIT_FOR_BOXES, "", LOST),
    "parity-stands-still": Fault(
        90,
        FORWARD,
        r"(mbarrier\.try_wait\S+\s+\w+, \[[^\]]*\], )%r\d+;",
        r"\g<1>0;",
        LOST,
    ),
    "half-of-the-bytes-are-expected": Fault(90, FORWARD, r"(mbarrier\.arrive\.expect_tx[^;]*, )(\d+);", halved, LOST),
    "an-mbarrier-awaits-two": Fault(90, FORWARD, r"(mbarrier\.init[^;]*), 1;", r"\1, 2;", "deadlock"),
    "an-mbarrier-is-never-made": Fault(90, FORWARD, r"mbarrier\.init[^;]*;", "fence.proxy.async;", "no mbarrier is at"),
    "values-are-not-transposed": Fault(90, FORWARD, r"(wgmma\.mma_async[^;]*\}, *\{[^;]*), 1;", r"\1, 0;", ELSEWHERE),
    "keys-are-read-without-swizzle": Fault(90, FORWARD, r"\b46116\d{14}\b", without_swizzle, ELSEWHERE),
    "two-axes-of-a-box-change-places": Fault(
        90, FORWARD, r"(\{%r\d+, %r\d+, )(%r\d+), (%r\d+)(, %r\d+\}\])", r"\1\3, \2\4", NUMBERS
    ),
    "no-fence-before-asynchronous-reads": Fault(
        90, OF_KEYS, r"fence\.proxy\.async[^;]*;", "", "without fence.proxy.async"
    ),
    "no-barriers": Fault(90, FORWARD, r"bar\.sync\s+0;", "", "."),
    "a-barrier-awaits-more-threads": Fault(
        90, FORWARD, r"bar\.sync\s+0;", "bar.sync 0, 512;", "wait at barrier 0 with 256 of 512 threads"
    ),
    "copies-are-not-waited-for": Fault(80, FORWARD, WAIT_FOR_COPIES, "", "nothing has waited for"),
    "copies-are-waited-for-too-late": Fault(80, FORWARD, but_last(WAIT_FOR_COPIES), "cp.async.wait_group 9;", NUMBERS),
    "values-are-loaded-untransposed": Fault(80, FORWARD, r"(ldmatrix\S*)\.trans", r"\1", NUMBERS),
    "stores-beyond-the-end": Fault(
        80, FORWARD, r"(st\.global\.\S+ \[ %rd\d+ \+) 0", r"\1 1099511627776", "outside all tensors"
    ),
    "copies-of-odd-addresses": Fault(
        80, FORWARD, r"(cp\.async\.cg\S* \[[^\]]*\], \[ %rd\d+ \+) 0", r"\1 2", "is not aligned to 16 bytes"
    ),
    "logarithms-stand-for-powers": Fault(80, FORWARD, r"ex2\.approx\.ftz\.f32", "lg2.approx.ftz.f32", NUMBERS),
}


def right_and_bound() -> tuple[against_float64.Results, against_float64.Results]:
    """float64's results of CASE, and those that say what plain attention errs."""
    mask = CASE.block_map(ALL).token_mask(None)

    def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return reference.attention(q, k, v, mask, CASE.head_dim**-0.5)

    tensors = [x.half() for x in CASE.tensors(4)]
    return against_float64.run(exact, tensors, torch.float64), against_float64.run(plain(mask), tensors, torch.float16)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_shows(fault: Fault) -> None:
    seeded = torch.get_rng_state()
    expected, bound = right_and_bound()
    block_map = CASE.block_map(ALL)
    edited = []

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return sparse_attention(q, k, v, block_map, impl="triton", return_lse=True)

    def edit(ptx: str) -> str:
        if f".entry {fault.kernel}(" not in ptx:
            return ptx
        changed, number = re.subn(fault.pattern, fault.replacement, ptx)
        edited.append(number)
        return changed

    def symptom(order: Order, change: Callable[[str], str]) -> str | None:
        torch.set_rng_state(seeded)
        try:
            with emulated(fault.chip, order, change):
                found = against_float64.run(attention, CASE.tensors(4), torch.float16)
            against_float64.assert_close(found, expected, bound, torch.float16)
        except EmulationError as error:
            return str(error)
        except AssertionError:
            return NUMBERS
        return None

    assert symptom(ORDERS[0], str) is None
    symptoms = [symptom(ORDERS[0], edit)]
    for order in ORDERS[1:]:  # some show in one order alone
        if symptoms[-1] is None:
            symptoms.append(symptom(order, edit))
    assert edited and all(edited), "the PTX has no place for this fault"
    found = symptoms[-1]
    assert found is not None and re.search(fault.shows, found), f"expected {fault.shows!r}, found {symptoms}"
