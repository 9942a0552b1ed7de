"""Block-sparse attention for a CPU: gather the listed keys, then two matrix products over a score buffer that stays in cache.

PyTorch's flash kernel for CPUs splits queries of one tile into blocks of 32 rows; plain products over a whole tile
are faster for each FLOP (benchmarks/NOTES.md), as long as the scores never leave the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vidsparse_kernels.tiles import TileLayout, tile_tokens

SCORE_BYTES = 4 << 20  # scores of one step, float32: about the cache that two cores share


@dataclass(frozen=True)
class _Work:
    """One step: these query rows of these heads of one sample against these keys (positions in the sequence)."""

    sample: int
    heads: slice
    rows: torch.Tensor
    keys: torch.Tensor


def _work(
    counts: torch.Tensor, indices: torch.Tensor, layout: TileLayout, batch: int, heads: int, valid: list[int] | None
) -> Iterator[_Work]:
    queries = tile_tokens(layout.view, layout.query_tile, layout.prefix)
    keys = tile_tokens(layout.view, layout.key_tile, layout.prefix)
    everything = torch.arange(layout.prefix, layout.tokens - layout.suffix)
    map_batch, map_heads = counts.shape[:2]
    for sample in range(batch):
        extra = layout.valid_extra_tokens(None if valid is None else valid[sample])
        for head in range(map_heads):
            chosen = slice(0, heads) if map_heads == 1 else slice(head, head + 1)
            count = counts[sample % map_batch, head].tolist()
            index = indices[sample % map_batch, head].tolist()
            for rows, n, tiles in zip(queries, count, index, strict=True):
                yield from _split(_Work(sample, chosen, rows, torch.cat([extra, *(keys[t] for t in tiles[:n])])))
        if layout.prefix + layout.suffix:
            yield from _split(_Work(sample, slice(0, heads), layout.extra_tokens, torch.cat((extra, everything))))


def _split(work: _Work) -> Iterator[_Work]:
    """Cut a step so that its scores fit `SCORE_BYTES`: fewer heads first, then fewer rows."""
    if not len(work.keys):
        return
    rows = min(len(work.rows), max(32, SCORE_BYTES // (4 * len(work.keys))))
    together = max(1, SCORE_BYTES // (4 * len(work.keys) * rows))
    for start in range(work.heads.start, work.heads.stop, together):
        heads = slice(start, min(start + together, work.heads.stop))
        for part in work.rows.split(rows):
            yield _Work(work.sample, heads, part, work.keys)


def _gather(x: torch.Tensor, sample: int, positions: torch.Tensor, heads: slice) -> torch.Tensor:
    """Rows of [B, tokens, H, D] as [heads, rows, D]."""
    return x[sample, :, heads].index_select(0, positions).transpose(0, 1)


class _BlockSparse(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: torch.autograd.function.FunctionCtx,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        counts: torch.Tensor,
        indices: torch.Tensor,
        layout: TileLayout,
        valid: list[int] | None,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch, tokens, heads, _ = query.shape
        out = torch.zeros_like(query, memory_format=torch.contiguous_format)
        lse = query.new_full((batch, tokens, heads), float("-inf"), dtype=torch.float32)
        buffer = torch.empty(0)
        for work in _work(counts, indices, layout, batch, heads, valid):
            q = _gather(query, work.sample, work.rows, work.heads).float().mul_(scale)
            k = _gather(key, work.sample, work.keys, work.heads).float()
            v = _gather(value, work.sample, work.keys, work.heads)
            if buffer.numel() < q.shape[0] * q.shape[1] * k.shape[1]:
                buffer = torch.empty(q.shape[0] * q.shape[1] * k.shape[1])
            scores = buffer[: q.shape[0] * q.shape[1] * k.shape[1]].view(q.shape[0], q.shape[1], k.shape[1])
            torch.bmm(q, k.mT, out=scores)
            top = scores.amax(dim=-1, keepdim=True)
            total = scores.sub_(top).exp_().sum(dim=-1, keepdim=True)
            part = (scores.to(v.dtype) @ v).float() / total
            out[work.sample, :, work.heads].index_copy_(0, work.rows, part.transpose(0, 1).to(out.dtype))
            row_lse = (top + total.log()).squeeze(-1).T
            lse[work.sample, :, work.heads].index_copy_(0, work.rows, row_lse)
        lse = lse.transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.call = counts, indices, layout, valid, scale  # type: ignore[attr-defined]
        return out, lse

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: torch.autograd.function.FunctionCtx, grad_out: torch.Tensor, grad_lse: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]
        counts, indices, layout, valid, scale = ctx.call  # type: ignore[attr-defined]
        batch, _, heads, _ = query.shape
        dq, dk, dv = (torch.zeros(x.shape, dtype=torch.float32) for x in (query, key, value))
        # The softmax's own gradient and that of the lse fold into one number a row.
        delta = (grad_out.float() * out.float()).sum(dim=-1) - grad_lse.transpose(1, 2)
        row_lse = lse.transpose(1, 2)
        for work in _work(counts, indices, layout, batch, heads, valid):
            s, h = work.sample, work.heads
            q, g = (_gather(x, s, work.rows, h).float() for x in (query, grad_out))
            k, v = (_gather(x, s, work.keys, h).float() for x in (key, value))
            at, shift = (_gather(x[..., None], s, work.rows, h) for x in (row_lse, delta))
            p = torch.bmm(q * scale, k.mT).sub_(at).exp_()
            ds = torch.bmm(g, v.mT).sub_(shift).mul_(p).mul_(scale)
            dv[s, :, h].index_add_(0, work.keys, torch.bmm(p.mT, g).transpose(0, 1))
            dq[s, :, h].index_add_(0, work.rows, torch.bmm(ds, k).transpose(0, 1))
            dk[s, :, h].index_add_(0, work.keys, torch.bmm(ds.mT, q).transpose(0, 1))
        return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype), None, None, None, None, None


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    counts: torch.Tensor,
    indices: torch.Tensor,
    layout: TileLayout,
    valid: list[int] | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Block-sparse attention on CPU tensors, differentiable in out and lse.

    Args:
        query, key, value: [B, tokens, H, head_dim], any strides; float32, bfloat16 or float16.
        counts: int32 [B|1, H|1, query tiles]. indices: int32 [B|1, H|1, query tiles, W].
        valid: how many prefix and suffix tokens are real keys, for each sample; None for all.

    Returns:
        out like query, and lse float32 [B, H, tokens]; rows without keys give 0 and -inf. Scores and their softmax are
        float32; the weights take the dtype of `value` for the second product, as flash kernels do.
    """
    result: tuple[torch.Tensor, torch.Tensor] = _BlockSparse.apply(
        query, key, value, counts, indices, layout, valid, scale
    )
    return result
