"""One launch of a kernel: its parameters packed, its tensor maps checked, its blocks executed."""

from __future__ import annotations

import ctypes
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from emulator import core
from emulator.encode import Code
from emulator.ptx import parse

SWIZZLES = {0: 0, 1: 32, 2: 64, 3: 128}  # CUtensorMapSwizzle -> bytes


class EmulationError(Exception):
    """A launch that breaks a rule of the machine."""


@dataclass(frozen=True)
class Order:
    """When asynchronous work is done: when it is issued, or as late as something waits for it.

    Attributes:
        late_copies: of cp.async and the tensor memory accelerator.
        late_products: of wgmma.
    """

    late_copies: bool = True
    late_products: bool = True

    def __str__(self) -> str:
        return "-".join(("late" if late else "early") for late in (self.late_copies, self.late_products))


LATE = Order()
ORDERS = [Order(copies, products) for copies in (True, False) for products in (True, False)]


def tensor_map(
    base: int, shape: Sequence[int], strides: Sequence[int], box: Sequence[int], element: int, swizzle: int
) -> core.TensorMap:
    """What cuTensorMapEncodeTiled makes, under its rules; the innermost axis last, strides in elements.

    Args:
        base: address. element: bytes of a number. swizzle: bytes, 0, 32, 64 or 128.

    Raises:
        EmulationError: what the driver would refuse.
    """
    rank = len(shape)
    inner = box[-1] * element
    steps = [stride * element for stride in strides[:-1]]
    rules = {
        f"rank {rank} is not 1 to 5": 1 <= rank <= 5,
        f"globalAddress {base:#x} is not aligned to 16 bytes": base % 16 == 0,
        f"globalDim {list(shape)} is not 1 to 2^32": all(1 <= size <= 2**32 for size in shape),
        f"globalStrides {steps} are not multiples of 16 below 2^40": all(0 < x < 2**40 and x % 16 == 0 for x in steps),
        f"the innermost stride is {strides[-1]}, not 1": strides[-1] == 1,
        f"boxDim {list(box)} is not 1 to 256": all(1 <= side <= 256 for side in box),
        f"rows of a box of {inner} bytes are no multiple of 16": inner % 16 == 0,
        f"rows of a box of {inner} bytes exceed the swizzle of {swizzle}": not swizzle or inner <= swizzle,
    }
    for broken in (rule for rule, holds in rules.items() if not holds):
        raise EmulationError(f"cuTensorMapEncodeTiled: {broken}")
    made = core.TensorMap(base=base, rank=rank, element=element, swizzle=swizzle)
    for i in range(rank):
        made.size[i], made.box[i], made.stride[i] = shape[-1 - i], box[-1 - i], strides[-1 - i] * element
    return made


@lru_cache(maxsize=1024)
def encoded(ptx: str) -> Code:
    """A kernel's code: read and encoded once."""
    return Code(parse(ptx))


def run(
    ptx: str,
    arguments: Sequence[Any],
    storages: Sequence[tuple[int, int]],
    grid: tuple[int, int, int],
    shared_bytes: int = 0,
    order: Order = LATE,
    limit: int = 50_000_000,
) -> Counter[str]:
    """Execute a kernel's blocks, one after another.

    Args:
        ptx: a module with one kernel.
        arguments: one for each parameter: an int, a float, or a tensor map.
        storages: the memory that it may touch, as (begin, end).
        grid: blocks along each axis.
        shared_bytes: dynamic shared memory.
        order: of asynchronous work.
        limit: instructions of a block's warps, after which it counts as endless.

    Returns:
        How often each instruction was executed by a warp, by plain name.

    Raises:
        NotImplementedError: an instruction that the emulator does not know.
        EmulationError: a rule that was broken: the block, the warp, the instruction, the line of the source.
    """
    code = encoded(ptx)
    kernel = code.kernel
    if len(arguments) != len(kernel.parameters):
        raise ValueError(f"{kernel.name} has {len(kernel.parameters)} parameters, got {len(arguments)}")
    packed = bytearray(max((p.offset + p.size for p in kernel.parameters.values()), default=0) + 1)
    for argument, p in zip(arguments, kernel.parameters.values(), strict=True):
        packed[p.offset : p.offset + p.size] = _packed(argument, p.type, p.size)
    parameters = (ctypes.c_uint8 * len(packed)).from_buffer(packed)
    ranges, counts = np.array(storages, dtype=np.uint64).reshape(-1, 2), np.zeros(len(core.names()), dtype=np.uint64)
    message = ctypes.create_string_buffer(1024)
    launch = core.Launch(
        code=code.instructions.ctypes.data,
        operands=code.operands.ctypes.data,
        constants=code.constants.ctypes.data,
        ranges=ranges.ctypes.data,
        parameters=ctypes.addressof(parameters),
        counts=counts.ctypes.data,
        message=ctypes.addressof(message),
        length=len(code.instructions),
        constant_count=len(code.constants),
        range_count=len(ranges),
        parameter_bytes=len(packed),
        register_bytes=code.register_bytes,
        shared_bytes=shared_bytes,
        warps=kernel.threads // 32,
        limit=limit,
        grid=(ctypes.c_int64 * 3)(*grid),
        late_copies=order.late_copies,
        late_products=order.late_products,
        fault_at=-1,
    )
    if core.library().run(ctypes.byref(launch)):
        at = launch.fault_at
        where = f" at `{code.place(at)}`" if 0 <= at < len(code.instructions) else ""
        raise EmulationError(f"{kernel.name}: {message.value.decode()}{where}")
    return Counter({name: int(n) for name, n in zip(core.names(), counts, strict=True) if n})


def _packed(argument: Any, kind: str, size: int) -> bytes:
    if isinstance(argument, core.TensorMap):
        return bytes(argument).ljust(size, b"\0")
    if kind in ("f32", "f64"):
        packed: bytes = struct.pack("<f" if kind == "f32" else "<d", argument)
        return packed
    return (int(argument) % 2 ** (8 * size)).to_bytes(size, "little")
