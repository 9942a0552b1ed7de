"""Block-sparse attention for a CPU: each thread takes a query tile, collects its keys, and does plain products.

Keys and values are copied once into the order of their tiles, so that a tile is one piece of memory. One query tile
against some thousand keys is a matrix product of a good size for one core, and faster for each FLOP than PyTorch's
flash kernel, which cuts 128 queries into blocks of 32 (benchmarks/NOTES.md).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch

from vidsparse_kernels.threads import divide
from vidsparse_kernels.tiles import TileLayout, tile_tokens

ROWS = 128  # most queries of one product
KEYS = 3072  # most keys of one product: scores of 1.5 MiB
VIEWS = 1024  # most views of buffers to keep
PIECES = 256  # products to divide over the threads at a time: of few, the last ones keep threads waiting
SHARES = 4  # into which the gradients of a head's keys are divided; a constant, so that threads do not change sums

Boxes = tuple[torch.Tensor, ...]


class _Chunk(NamedTuple):
    """Boxes of one product, and how many keys they hold."""

    boxes: list[int]
    keys: int


class _Row(NamedTuple):
    """A query tile, or some prefix and suffix tokens, and the boxes of its keys, cut into chunks."""

    queries: torch.Tensor  # int64 [rows], positions in the sequence
    chunks: list[_Chunk]


class _Plan(NamedTuple):
    """The map of one sample. Box 0 holds the valid prefix and suffix tokens, box 1 + i the key tile i."""

    order: torch.Tensor  # int64 [keys], positions in the sequence, box after box
    sizes: list[int]  # tokens of each box
    rows: list[list[_Row]]  # of each head, or of all heads alike

    def boxes(self, x: torch.Tensor, dtype: torch.dtype, scale: float = 1.0) -> list[Boxes]:
        """Copy [tokens, H, head_dim] into boxes [size, head_dim] of each head, times `scale`."""
        copy = x.transpose(0, 1).index_select(1, self.order).to(dtype)
        return [of_head.split(self.sizes) for of_head in (copy if scale == 1.0 else copy.mul_(scale))]

    def rows_of(self, head: int) -> list[_Row]:
        return self.rows[head % len(self.rows)]


def _plan(counts: torch.Tensor, indices: torch.Tensor, layout: TileLayout, valid: int | None) -> _Plan:
    """Read counts int32 [H|1, query tiles] and indices int32 [H|1, query tiles, W] of one sample."""
    extra = layout.extra_tokens
    boxes = [layout.valid_extra_tokens(valid), *tile_tokens(layout.view, layout.key_tile, layout.prefix)]
    sizes = [len(box) for box in boxes]
    queries = [*tile_tokens(layout.view, layout.query_tile, layout.prefix), extra]
    rows = []
    for of_counts, of_indices in zip(counts.tolist(), (indices + 1).tolist(), strict=True):
        lists = [[0, *listed[:count]] for count, listed in zip(of_counts, of_indices, strict=True)]
        lists.append(list(range(len(boxes))) if len(extra) else [])
        seen = [(tile, _chunks(listed, sizes)) for tile, listed in zip(queries, lists, strict=True)]
        # The longest lists first: buffers need not grow, and what the threads end on is short.
        seen.sort(key=lambda row: sum(chunk.keys for chunk in row[1]), reverse=True)
        rows.append([_Row(part, chunks) for tile, chunks in seen if chunks for part in tile.split(ROWS)])
    return _Plan(torch.cat(boxes), sizes, rows)


def _chunks(listed: list[int], sizes: list[int]) -> list[_Chunk]:
    """Cut a list of boxes into runs of nearly equal length, of about `KEYS` keys at most; none if there are no keys."""
    total = sum(sizes[i] for i in listed)
    number = math.ceil(total / KEYS)
    chunks: list[list[int]] = [[] for _ in range(number)]
    before = 0
    for box in listed:
        if sizes[box]:
            chunks[before * number // total].append(box)
            before += sizes[box]
    return [_Chunk(chunk, sum(sizes[i] for i in chunk)) for chunk in chunks if chunk]


class _Scratch(threading.local):
    """Buffers of each thread, which live as long as it does: fresh ones would cost more in page faults than in copying.

    They hold one product: some 5 MiB, 9 in the backward. Views of them are kept too: threads wait for Python's lock
    after each operation, however small.
    """

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], torch.Tensor] = {}
        self.views: dict[tuple[str, tuple[int, ...], torch.dtype], torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor of this shape, in memory that an earlier one of the same name had."""
        view = self.views.get((name, shape, dtype))
        return self._view(name, shape, dtype) if view is None else view

    def _view(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        size = math.prod(shape)
        buffer = self.buffers.get((name, dtype))
        with torch.inference_mode(False):  # or no call outside that mode could write to it
            if buffer is None or len(buffer) < size:
                buffer = self.buffers[name, dtype] = torch.empty(size, dtype=dtype)
                self.views.clear()
            elif len(self.views) >= VIEWS:
                self.views.clear()
            view = self.views[name, shape, dtype] = buffer[:size].view(shape)
        return view

    def collect(self, name: str, boxes: Boxes, chunk: _Chunk) -> torch.Tensor:
        """The keys or values of a chunk: [keys, head_dim]."""
        listed = [boxes[i] for i in chunk.boxes]
        return torch.cat(listed, out=self.take(name, (chunk.keys, listed[0].shape[1]), listed[0].dtype))

    def cast(self, name: str, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`x` in another dtype, itself where it has that dtype."""
        return x if x.dtype == dtype else self.take(name, tuple(x.shape), dtype).copy_(x)


_scratch = _Scratch()


def _as(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`x.to(dtype)`, which would let go of Python's lock even where there is nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


class _Query(NamedTuple):
    """What one head's rows read and write, [tokens, head_dim or 1] each."""

    query: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor | None


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, with_lse: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of queries over one chunk of scaled keys: out [rows, head_dim] and, where asked for, lse [rows, 1]."""
    scores = _scratch.take("scores", (len(q), len(k)), q.dtype)
    torch.mm(q, k.T, out=scores)
    top = scores.amax(dim=1, keepdim=True) if with_lse else scores
    torch.softmax(scores, dim=1, out=scores)
    # The largest weight is exp(top - lse), so the lse needs no sum of its own.
    lse = top - scores.amax(dim=1, keepdim=True).log_() if with_lse else scores
    return torch.mm(_scratch.cast("weights", scores, v.dtype), v), lse


def _forward(row: _Row, keys: Boxes, values: Boxes, head: _Query) -> None:
    """Write one row's output, and its lse where that is asked for."""
    q = _as(head.query.index_select(0, row.queries), keys[0].dtype)
    with_lse = head.lse is not None or len(row.chunks) > 1
    parts = (
        _attend(q, _scratch.collect("key", keys, c), _scratch.collect("value", values, c), with_lse) for c in row.chunks
    )
    out, lse = next(parts)
    for part, part_lse in parts:
        joint = torch.logaddexp(lse, part_lse)
        out = out * (lse - joint).exp_() + part * (part_lse - joint).exp_()
        lse = joint
    head.out.index_copy_(0, row.queries, _as(out, head.out.dtype))
    if head.lse is not None:
        head.lse.index_copy_(0, row.queries, lse)


def _forward_pieces(pieces: Iterator[tuple[_Row, Boxes, Boxes, _Query]]) -> None:
    """What one thread does: rows, as long as there are any."""
    for piece in pieces:
        _forward(*piece)


class _Gradients(NamedTuple):
    """What one head's rows read in the backward, [tokens, head_dim or 1] each, and where they add."""

    query: torch.Tensor
    grad_out: torch.Tensor
    lse: torch.Tensor
    shift: torch.Tensor
    grad_query: torch.Tensor


def _backward(row: _Row, keys: Boxes, values: Boxes, head: _Gradients, sums: tuple[Boxes, Boxes], scale: float) -> None:
    """Write one row's query gradient, and add to the boxes of key (short of the scale) and value gradients."""
    wide, low = keys[0].dtype, head.query.dtype
    q, g, lse, shift = (x.index_select(0, row.queries) for x in head[:4])
    wide_q, wide_g = q.to(wide) * scale, g.to(wide)
    grad_q = torch.zeros_like(wide_q)
    for chunk in row.chunks:
        k, v = _scratch.collect("key", keys, chunk), _scratch.collect("value", values, chunk)
        weights, scores = (_scratch.take(name, (len(q), len(k)), wide) for name in ("weights", "scores"))
        torch.mm(wide_q, k.T, out=weights).sub_(lse).exp_()
        torch.mm(wide_g, v.T, out=scores).sub_(shift).mul_(weights)
        # Products of gradients take the dtype of the inputs, as the second product of the forward does.
        weights, scores = _scratch.cast("low weights", weights, low), _scratch.cast("low scores", scores, low)
        grad_q += torch.mm(scores, _scratch.cast("low key", k, low))
        for boxes, part in zip(sums, (torch.mm(scores.T, q), torch.mm(weights.T, g)), strict=True):
            targets = [boxes[i] for i in chunk.boxes]
            torch._foreach_add_(targets, part.split([len(x) for x in targets]))
    head.grad_query.index_copy_(0, row.queries, (grad_q * scale).to(low))


def _backward_shares(
    rows: list[_Row],
    sizes: list[int],
    keys: Boxes,
    values: Boxes,
    head: _Gradients,
    sums: list[torch.Tensor],
    scale: float,
    shares: Iterator[int],
) -> None:
    """What one thread does: every `SHARES`-th row of a head, into that share of the sums [SHARES, keys, head_dim]."""
    for share in shares:
        of_key, of_value = (x[share].split(sizes) for x in sums)
        for row in rows[share::SHARES]:
            _backward(row, keys, values, head, (of_key, of_value), scale)


class _BlockSparse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plans: list[_Plan],
        scale: float,
        with_lse: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wide = torch.promote_types(query.dtype, torch.float32)
        out = torch.zeros_like(query, memory_format=torch.contiguous_format)
        lse = torch.full((*query.shape[:3], 1), float("-inf"), dtype=wide)

        # A few heads at a time: copies of the keys and values of all would be two thirds of the inputs.
        for b, plan in enumerate(plans):
            together = math.ceil(PIECES / max(1, len(plan.rows[0])))
            for first in range(0, query.shape[2], together):
                some = slice(first, first + together)
                boxes = zip(
                    plan.boxes(key[b, :, some], wide, scale), plan.boxes(value[b, :, some], value.dtype), strict=True
                )
                pieces = []
                for h, (keys, values) in enumerate(boxes, first):
                    head = _Query(query[b, :, h], out[b, :, h], lse[b, :, h] if with_lse else None)
                    pieces += [(row, keys, values, head) for row in plan.rows_of(h)]
                divide(_forward_pieces, pieces)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.plans, ctx.scale = plans, scale  # type: ignore[attr-defined]
        return out, lse.squeeze(-1).transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_out: torch.Tensor, grad_lse: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]
        plans: list[_Plan] = ctx.plans  # type: ignore[attr-defined]
        scale: float = ctx.scale  # type: ignore[attr-defined]
        wide = lse.dtype
        grad_query, grad_key, grad_value = (torch.zeros(x.shape, dtype=x.dtype) for x in (query, key, value))
        # The softmax's own gradient and that of the lse fold into one number a row.
        shift = (grad_out.to(wide) * out.to(wide)).sum(dim=-1, keepdim=True) - grad_lse.transpose(1, 2)[..., None]
        for b, plan in enumerate(plans):
            heads = enumerate(zip(plan.boxes(key[b], wide), plan.boxes(value[b], wide), strict=True))
            for h, (keys, values) in heads:
                head = _Gradients(*(x[b, :, h] for x in (query, grad_out, lse, shift, grad_query)))
                sums = [torch.zeros(SHARES, len(plan.order), query.shape[3], dtype=wide) for _ in range(2)]

                work = partial(_backward_shares, plan.rows_of(h), plan.sizes, keys, values, head, sums, scale)
                divide(work, range(SHARES))
                for target, x, factor in zip((grad_key, grad_value), sums, (scale, 1.0), strict=True):
                    target[b, :, h].index_copy_(0, plan.order, (x.sum(dim=0) * factor).to(target.dtype))
        return grad_query, grad_key, grad_value, None, None, None


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    counts: torch.Tensor,
    indices: torch.Tensor,
    layout: TileLayout,
    valid: list[int] | None,
    scale: float,
    return_lse: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Block-sparse attention on CPU tensors, differentiable in out and lse.

    Args:
        query, key, value: [B, tokens, H, head_dim], any strides; float32, bfloat16, float16 or float64.
        counts: int32 [B|1, H|1, query tiles]. indices: int32 [B|1, H|1, query tiles, W].
        valid: how many prefix and suffix tokens are real keys, for each sample; None for all.
        return_lse: False saves two passes over the scores where no gradient needs them.

    Returns:
        out like query, and lse float32 [B, H, tokens], undefined if not asked for; rows without keys give 0 and -inf.
        Scores and their softmax are float32; the weights take the dtype of `value` for the second product, as flash
        kernels do. For float64 inputs all is float64.
    """
    plans: list[_Plan] = []
    for b in range(len(query)):
        known = b and len(counts) == 1 and (valid is None or valid[b] == valid[0])
        of_sample = counts[b % len(counts)], indices[b % len(indices)]
        plans.append(plans[0] if known else _plan(*of_sample, layout, None if valid is None else valid[b]))
    with_lse = return_lse or (torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)))
    result: tuple[torch.Tensor, torch.Tensor]
    result = _BlockSparse.apply(query, key, value, plans, scale, with_lse)  # type: ignore[no-untyped-call]
    return result
