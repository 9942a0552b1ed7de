"""A bound of the scores before they are computed: |q k| <= |q| |k|, with the largest norm of a head's keys.

Names: `norms` are float32 [batch * heads, blocks], the largest norm of each block of `BLOCK` keys.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vidsparse_kernels.gpu.launch import Launch
from vidsparse_kernels.gpu.primitives import load_rows, strides

BLOCK = 256  # keys measured by one program


@triton.jit
def row_norm(x, HEAD: tl.constexpr):
    """The largest norm of the rows of x [rows, head_dim], float32. Rows with a NaN are ignored: their output is NaN."""
    squares = tl.sum(x[0].to(tl.float32) * x[0].to(tl.float32), 1)
    if HEAD[1] > 0:
        squares += tl.sum(x[1].to(tl.float32) * x[1].to(tl.float32), 1)
    return tl.sqrt(tl.max(squares, 0))


@triton.jit(do_not_specialize=["tokens", "heads", "blocks"])
def key_norms_kernel(key, norms, key_strides, tokens, heads, blocks, HEAD: tl.constexpr, ROWS: tl.constexpr):
    """Grid (blocks of keys, batch * heads)."""
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    # [ROWS, head_dim]
    k = load_rows(key + batch * key_strides[0] + head * key_strides[2], row, key_strides[1], row < tokens, HEAD)
    tl.store(norms + tl.program_id(1).to(tl.int64) * blocks + tl.program_id(0), row_norm(k, HEAD))


def key_norms(launch: Launch, key: torch.Tensor) -> torch.Tensor:
    """The largest norm of each block of a head's keys: float32 [batch * heads, blocks]."""
    tokens, heads = key.shape[1:3]
    blocks = triton.cdiv(tokens, BLOCK)
    norms = torch.empty(launch.programs, blocks, dtype=torch.float32, device=key.device)
    key_norms_kernel[(blocks, launch.programs)](
        key, norms, strides(key), tokens, heads, blocks, HEAD=launch.head, ROWS=BLOCK, num_warps=8
    )
    return norms


@triton.jit
def largest_norm(norms, blocks):
    """The largest of a head's norms, float32."""
    largest = tl.zeros([256], tl.float32)
    for first in tl.range(0, blocks, 256, num_stages=1):
        i = first + tl.arange(0, 256)
        # [256]
        largest = tl.maximum(largest, tl.load(norms + i, mask=i < blocks, other=0.0))
    return tl.max(largest, 0)
