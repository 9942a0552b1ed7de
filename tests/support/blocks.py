"""What block-sparse kernels of other packages compute, from their own arguments: in float64, for tests without them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch


def listed(counts: torch.Tensor, indices: torch.Tensor, columns: int) -> torch.Tensor:
    """The lists as bool [..., rows, columns]. A column that is listed twice counts twice, and fails."""
    dense = torch.zeros(*counts.shape, columns, dtype=torch.int64)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in counts.shape)).tolist():
        for column in indices[tuple(place)][: counts[tuple(place)]].tolist():
            dense[(*place, column)] += 1
    assert dense.max() <= 1
    return dense.bool()


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of [batch, rows, heads, head_dim] under a mask [batch, heads, rows, rows], and its lse."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.mT * scale).masked_fill(~mask, -math.inf)
    lse = scores.logsumexp(dim=-1)
    weights = (scores - lse.masked_fill(lse.isneginf(), 0)[..., None]).exp()
    return (weights @ v).transpose(1, 2), lse


def cudnn_frontend() -> SimpleNamespace:
    """The two functions of `cudnn.BSA`, for the layout "bshd"."""

    def mask_of(q: torch.Tensor, k: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
        length, indices, counts = given["sparse_block_size"], given["q2k_block_index"], given["q2k_block_nums"]
        runs = tuple(x.shape[1] // length for x in (q, k))
        assert given["layout"] == "bshd" and all(x.is_contiguous() for x in (indices, counts))
        assert counts.shape == (q.shape[0], q.shape[2], runs[0]) == indices.shape[:3]
        assert counts.dtype == indices.dtype == torch.int32
        mask = listed(counts, indices, runs[1])
        mask = mask.repeat_interleave(length, dim=-1).repeat_interleave(length, dim=-2)
        if (sizes := given["block_sizes"]) is not None:
            assert sizes.dtype == torch.int32 and sizes.shape[-1] == runs[1]
            real = torch.arange(length) < sizes[..., None]
            mask = mask & real.flatten(-2).view(-1, 1, 1, k.shape[1])
        return mask

    def forward(q, k, v, *, softmax_scale, allow_empty_block_nums, **given):
        assert allow_empty_block_nums
        out, lse = attention(q, k, v, mask_of(q, k, given), softmax_scale)
        return {"o_tensor": out, "lse_tensor": lse}

    def backward(grad, q, k, v, out, lse, *, softmax_scale, **given):
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            again, lse_again = attention(*leaves, mask_of(q, k, given), softmax_scale)
            assert torch.equal(again, out) and torch.equal(lse_again, lse)
            grads = torch.autograd.grad(again, leaves, grad)
        return dict(zip(("dq_tensor", "dk_tensor", "dv_tensor"), grads, strict=True))

    return SimpleNamespace(block_sparse_attention_forward=forward, block_sparse_attention_backward=backward)


class BlockSparse(NamedTuple):
    """The fields of FlashAttention-4's `BlockSparseTensorsTorch` that we set."""

    mask_block_cnt: torch.Tensor
    mask_block_idx: torch.Tensor
    full_block_cnt: torch.Tensor
    full_block_idx: torch.Tensor
    block_size: tuple[int, int]

    def dense(self, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Both kinds of lists, as bool [..., rows, columns]."""
        return listed(*self[:2], columns), listed(*self[2:4], columns)


def flash_attention() -> SimpleNamespace:
    """`flash_attn_func` of FlashAttention-4; its mask keeps the keys where the first additional tensor has a 1."""

    def flash_attn_func(
        q, k, v, *, softmax_scale, return_lse, block_sparse_tensors, block_sparse_tensors_bwd=None, **masked
    ):
        assert return_lse
        rows, columns = (x.shape[1] // n for x, n in zip((q, k), block_sparse_tensors.block_size, strict=True))
        partial, full = block_sparse_tensors.dense(columns)
        if block_sparse_tensors_bwd is not None:
            for forward, backward in zip((partial, full), block_sparse_tensors_bwd.dense(rows), strict=True):
                assert torch.equal(forward.mT, backward)
        (query_rows, key_rows), kinds = block_sparse_tensors.block_size, []
        for lists in (partial, full):
            kinds.append(lists.repeat_interleave(query_rows, dim=-2).repeat_interleave(key_rows, dim=-1))
        real = masked["aux_tensors"][0].bool()[:, None, None] if masked else torch.zeros((), dtype=torch.bool)
        return attention(q, k, v, (kinds[0] & real) | kinds[1], softmax_scale)

    return SimpleNamespace(flash_attn_func=flash_attn_func)
