"""Some tiles of a long video against float32: what a small call cannot show."""

from __future__ import annotations

import math

import torch

from vidsparse.attention import sparse_attention
from vidsparse.block_map import BlockMap
from vidsparse_kernels.layout import tile_tokens

ALLOWED = 0.01


def error(tensors: list[torch.Tensor], grad_out: torch.Tensor, block_map: BlockMap) -> float:
    """The worst relative error of out, dq, dk and dv over three query tiles and three key tiles of the last head."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    query, key, value = leaves
    out, lse = sparse_attention(query, key, value, block_map, impl="triton", return_lse=True)
    out.backward(grad_out)
    head, device = query.shape[2] - 1, query.device
    q, k, v, g, o = (x[0, :, head].detach().float() for x in (*tensors, grad_out, out))
    shift, row_lse, scale = (g * o).sum(-1, keepdim=True), lse[0, head].detach()[:, None], q.shape[1] ** -0.5
    dense = block_map.to_dense()[0, 0]
    of_query, of_key = (tile_tokens(block_map.view, t) for t in (block_map.query_tile, block_map.key_tile))
    worst = 0.0

    def compare(found: torch.Tensor, wanted: torch.Tensor) -> None:
        nonlocal worst
        off = ((found.detach().float() - wanted).norm() / wanted.norm()).item()
        worst = max(worst, off if math.isfinite(off) else math.inf)

    for tile in (0, len(dense) // 3, len(dense) - 1):
        rows = of_query[tile].to(device)
        keys = torch.cat([of_key[i] for i in dense[tile].nonzero().flatten().tolist()]).to(device)
        weights = (q[rows] @ k[keys].T * scale).softmax(-1)
        compare(out[0, rows, head], weights @ v[keys])
        scores = weights * (g[rows] @ v[keys].T - shift[rows])
        compare(gradient(query)[0, rows, head], scores @ k[keys] * scale)
    for tile in (0, dense.shape[1] // 3, dense.shape[1] - 1):
        keys = of_key[tile].to(device)
        rows = torch.cat([of_query[i] for i in dense[:, tile].nonzero().flatten().tolist()]).to(device)
        weights = (q[rows] @ k[keys].T * scale - row_lse[rows]).exp()
        compare(gradient(value)[0, keys, head], weights.T @ g[rows])
        scores = weights * (g[rows] @ v[keys].T - shift[rows])
        compare(gradient(key)[0, keys, head], scores.T @ q[rows] * scale)
    return worst


def gradient(leaf: torch.Tensor) -> torch.Tensor:
    """What a backward pass left."""
    if leaf.grad is None:
        raise RuntimeError("the backward pass left no gradient")
    return leaf.grad
