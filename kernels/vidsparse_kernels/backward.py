"""The backward pass: what the softmax takes from each row, then the gradients of queries, and of keys and values."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from vidsparse_kernels.boxes import load_rows
from vidsparse_kernels.key_gradient import key_gradients
from vidsparse_kernels.launch import Launch, strides
from vidsparse_kernels.query_gradient import query_gradient


@triton.jit
def shift_kernel(
    out, grad_out, grad_lse, shift, out_strides, grad_strides, tokens, heads, HEAD: tl.constexpr, ROWS: tl.constexpr
):
    """shift = rowsum(out * grad_out) - grad_lse: what the softmax and the lse take from each score's gradient."""
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < tokens
    o = load_rows(out + batch * out_strides[0] + head * out_strides[2], row, out_strides[1], real, HEAD)
    g = load_rows(grad_out + batch * grad_strides[0] + head * grad_strides[2], row, grad_strides[1], real, HEAD)
    at = tl.program_id(1).to(tl.int64) * tokens + row
    total = tl.sum(o[0].to(tl.float32) * g[0].to(tl.float32), 1) - tl.load(grad_lse + at, mask=real, other=0.0)
    if HEAD[1] > 0:
        total += tl.sum(o[1].to(tl.float32) * g[1].to(tl.float32), 1)
    tl.store(shift + at, total, mask=real)


def backward(
    launch: Launch,
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Start all kernels: gradients of query, key and value, contiguous; zero for keys that nobody sees."""
    layout, tokens = launch.layout, query.shape[1]
    shift = torch.empty_like(lse)
    shift_kernel[(triton.cdiv(tokens, 64), launch.programs)](
        out, grad_out, grad_lse, shift, strides(out), strides(grad_out), tokens, query.shape[2], launch.head, ROWS=64
    )
    shared: dict[str, Any] = dict(query=query, key=key, value=value, grad_out=grad_out, lse=lse, shift=shift)
    shared |= {f"{name}_strides": strides(x) for name, x in (("query", query), ("key", key), ("value", value))}
    shared |= dict(grad_strides=strides(grad_out), extra_valid=launch.valid, scale=scale, PRECISION="ieee")
    shared |= dict(QUERY_TILE=layout.query_tile, KEY_TILE=layout.key_tile, EXTRA=launch.extra > 0)
    grad_query = query_gradient(launch, query, key, value, shared)
    return grad_query, *key_gradients(launch, query, key, value, grad_out, shared)
