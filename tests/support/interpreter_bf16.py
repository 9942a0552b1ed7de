"""bfloat16 in Triton's interpreter, which keeps it as 16-bit integers: its products multiply those, its casts truncate.

Here products take float32 operands, in which a product of two bfloat16 is exact, and casts round to nearest, ties to
even, as every chip does. Tested with Triton 3.6, 3.7 and 3.9.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def widened(x: TensorHandle) -> TensorHandle:
    """A bfloat16 tensor in float32; others as they are."""
    if x.dtype.scalar != tl.bfloat16:
        return x
    return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def rounded(x: TensorHandle) -> TensorHandle:
    """A float32 tensor in bfloat16."""
    bits = np.ascontiguousarray(x.data).view(np.uint32).astype(np.uint64)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return TensorHandle(np.where(np.isnan(x.data), np.uint16(0x7FFF), nearest), tl.bfloat16)


def install() -> None:
    """Mend the interpreter, for this process."""
    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def create_dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        return dot(self, widened(a), widened(b), *rest)

    def cast_impl(self: InterpreterBuilder, x: TensorHandle, to: Any) -> TensorHandle:
        between = x.dtype.scalar, to.scalar
        if between == (tl.float32, tl.bfloat16):
            return rounded(x)
        return widened(x) if between == (tl.bfloat16, tl.float32) else cast(self, x, to)

    InterpreterBuilder.create_dot = create_dot
    InterpreterBuilder.cast_impl = cast_impl
