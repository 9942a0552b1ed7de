"""The backward pass: two numbers per query from its softmax, then the gradients of queries, and of keys and values.

Names, besides those of primitives.py:
    o, grad_o         [ROWS, head_dim], outputs of the program's queries and their gradients
    lse, grad_lse     float32 [batch, heads, tokens], natural log
    row_terms         float32 [batch * heads, 2, rows]: lse in base 2, and `shift`, of each query
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from vidsparse_kernels.gpu.columns import Columns
from vidsparse_kernels.gpu.forward import LOG2_E
from vidsparse_kernels.gpu.key_gradient import key_gradients
from vidsparse_kernels.gpu.launch import Launch
from vidsparse_kernels.gpu.lists import KeyLists
from vidsparse_kernels.gpu.primitives import SIZES, held_tokens, load_rows, strides
from vidsparse_kernels.gpu.query_gradient import query_gradient

ROW_TERMS = {"num_warps": 4, "num_stages": 1}


@triton.jit(do_not_specialize=SIZES)
def row_terms_kernel(
    out,
    grad_out,
    lse,
    grad_lse,
    row_terms,
    out_strides,
    grad_strides,
    map_batch,
    map_head,
    query_frames,
    query_height,
    query_width,
    query_prefix,
    query_extra,
    heads,
    QUERY_TILE: tl.constexpr,
    HEAD: tl.constexpr,
):
    """Grid (blocks of extra queries + query tiles, batch * heads): two numbers per query, in the order of the tiles.

    The rows of a tile are contiguous in `row_terms`, so that the gradient kernels need no addresses or masks for them;
    those of extra queries come last. The first number is the lse in base 2, +inf for a row that holds no query or sees
    no key, which makes its weights 0. The second is rowsum(out * grad_out) - grad_lse, which the softmax and the lse
    subtract from the gradient of each score.
    """
    view = (query_frames, query_height, query_width)
    ROWS: tl.constexpr = QUERY_TILE[0] * QUERY_TILE[1] * QUERY_TILE[2]
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    tile = tl.program_id(0) - tl.cdiv(query_extra, ROWS)
    tokens, mine = held_tokens(tile, tl.program_id(0) * ROWS, view, query_prefix, query_extra, QUERY_TILE)
    # [ROWS, head_dim] each
    o = load_rows(out + batch * out_strides[0] + head * out_strides[2], tokens, out_strides[1], mine, HEAD)
    grad_o = load_rows(grad_out + batch * grad_strides[0] + head * grad_strides[2], tokens, grad_strides[1], mine, HEAD)
    at = tl.program_id(1).to(tl.int64) * (view[0] * view[1] * view[2] + query_extra) + tokens
    # [ROWS]
    base = tl.load(lse + at, mask=mine, other=float("-inf"))
    base = tl.where(base == float("-inf"), float("inf"), base * LOG2_E)
    shift = tl.sum(o[0].to(tl.float32) * grad_o[0].to(tl.float32), 1) - tl.load(grad_lse + at, mask=mine, other=0.0)
    if HEAD[1] > 0:
        shift += tl.sum(o[1].to(tl.float32) * grad_o[1].to(tl.float32), 1)
    block = tl.where(tile >= 0, tile, tile + tl.num_programs(0))
    row_terms += (tl.program_id(1).to(tl.int64) * 2 * tl.num_programs(0) + block) * ROWS + tl.arange(0, ROWS)
    tl.store(row_terms, base)
    tl.store(row_terms + tl.num_programs(0) * ROWS, shift)


def backward(
    launch: Launch,
    lists: KeyLists,
    columns: Columns,
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch all kernels of the backward pass.

    Args:
        launch: geometry of the call. lists, columns: of its map, in both directions.
        grad_out, query, out: [B, tokens, H, head_dim], `readable`.
        key, value: [B, key tokens, H, head_dim], `readable`.
        grad_lse, lse: float32 [B, H, tokens], contiguous.
        scale: positive factor on the logits.

    Returns:
        The gradients of query, key and value, contiguous; zero for keys that no query sees.
    """
    rows = launch.query_blocks * launch.query.volume
    row_terms = torch.empty(launch.programs, 2, rows, dtype=torch.float32, device=query.device)
    row_terms_kernel[launch.grid(launch.query_blocks)](
        **launch.arguments,
        **launch.sizes("query"),
        **ROW_TERMS,
        # inputs
        out=out,
        grad_out=grad_out,
        lse=lse,
        grad_lse=grad_lse,
        out_strides=strides(out),
        grad_strides=strides(grad_out),
        # outputs
        row_terms=row_terms,
        # geometry
        QUERY_TILE=launch.query.tile,
    )
    shared: dict[str, Any] = dict(query=query, key=key, value=value, grad_out=grad_out, row_terms=row_terms)
    shared |= {f"{name}_strides": strides(x) for name, x in (("query", query), ("key", key), ("value", value))}
    shared |= dict(grad_strides=strides(grad_out), extra_valid=launch.valid, scale=scale, PRECISION="ieee")
    shared |= dict(QUERY_TILE=launch.query.tile, KEY_TILE=launch.key.tile) | launch.sizes("query", "key")
    grad_query = query_gradient(launch, lists, query, key, value, shared)
    return grad_query, *key_gradients(launch, columns, query, key, value, grad_out, shared)
