"""The dense attention of Triton's tutorial (06-fused-attention, not causal): the loop whose speed is published."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ROWS = KEYS = CHANNELS = 128
WARPS, STAGES = 8, 3


@triton.jit
def dense_kernel(query, key, value, out, tokens, scale, ROWS: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr):
    """Rows of one head, [tokens, CHANNELS] by descriptors; scale holds log2(e)."""
    row = tl.program_id(0) * ROWS
    q = query.load([row, 0])
    acc = tl.zeros([ROWS, CHANNELS], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for first in tl.range(0, tokens, KEYS):
        scores = tl.dot(q, key.load([first, 0]).T)
        highest = tl.maximum(top, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - highest[:, None])
        decay = tl.exp2(top - highest)
        total = total * decay + tl.sum(weights, 1)
        acc = tl.dot(weights.to(tl.bfloat16), value.load([first, 0]), acc * decay[:, None])
        top = highest
    out.store([row, 0], (acc / total[:, None]).to(tl.bfloat16))


def compile_dense(capability: int) -> Any:
    """Compile it for a chip, in bfloat16."""
    constants = {"ROWS": ROWS, "KEYS": KEYS, "CHANNELS": CHANNELS}
    signature = dict.fromkeys(("query", "key", "value", "out"), f"tensordesc<bf16[{ROWS},{CHANNELS}]>")
    signature |= {"tokens": "i32", "scale": "fp32"} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(dense_kernel, {name: signature[name] for name in dense_kernel.arg_names}, constexprs=constants)
    options = {"num_warps": WARPS, "num_stages": STAGES, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
